// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/memspan/memspan/wire"
)

// After a frame that is the last one the connection carries other bytes.
func TestDetach(t *testing.T) {
	for _, tr := range transports() {
		t.Run(tr.name, func(t *testing.T) {
			client, server := tr.conns(t)
			detached, read := make(chan error, 1), make(chan error, 1)
			go func() {
				_, err := readFrame(server)
				nc, derr := server.Detach()
				detached <- errors.Join(err, derr)
				if derr == nil {
					_, err = io.Copy(nc, io.LimitReader(nc, 10))
				}
				read <- err
			}()
			if err := (frame{kind: wire.KindControl, data: text(9000)}).write(client); err != nil {
				t.Fatal(err)
			}
			if err := <-detached; err != nil { // what is sent before would be lost
				t.Fatal(err)
			}
			nc, err := client.Detach()
			if err != nil {
				t.Fatal(err)
			}
			sent := []byte("0123456789")
			echoed := make(chan error, 1)
			got := make([]byte, len(sent))
			go func() {
				_, err := io.ReadFull(nc, got)
				echoed <- err
			}()
			if _, err := nc.Write(sent); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(<-read, <-echoed); err != nil || !bytes.Equal(got, sent) {
				t.Errorf("%q came back, %v", got, err)
			}
		})
	}
}

// Bytes that are here already would be lost: that is said.
func TestDetachTooLate(t *testing.T) {
	for _, tr := range transports() {
		if tr.name != "unix" && tr.name != "tcp" {
			continue // bytes that are written before anybody reads
		}
		t.Run(tr.name, func(t *testing.T) {
			client, server := tr.conns(t)
			for range 2 {
				if err := (frame{kind: wire.KindControl, data: []byte("{}")}).write(client); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := server.ReadHeader(); err != nil {
				t.Fatal(err)
			}
			if _, err := server.Detach(); !errors.Is(err, wire.ErrMalformed) {
				t.Errorf("within a frame: %v", err)
			}
			if err := server.Discard(); err != nil {
				t.Fatal(err)
			}
			if _, err := server.Detach(); !errors.Is(err, wire.ErrMalformed) {
				t.Errorf("before another frame: %v", err)
			}
		})
	}
}
