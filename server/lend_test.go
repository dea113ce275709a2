// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/memspan/memspan/server"
	"github.com/memspan/memspan/wire"
	"github.com/memspan/memspan/wire/control"
)

func readRequest(handle, off, n uint64) []byte {
	return wire.AppendRead(nil, wire.MemoryCommand{Memory: handle, Offset: off, Size: n})
}

func (p *peer) open(name string) uint64 {
	p.t.Helper()
	var o control.Opened
	if err := p.control(control.OpOpen, control.Open{Name: name}, &o); err != nil {
		p.t.Fatal(err)
	}
	return o.Handle
}

// Blocks are sent from the span's own memory. A client that has asked for them
// and does not read keeps nobody from writing them, nor from freeing the span,
// and what it reads in the end are whole blocks as they were at some time.
func TestWritersDoNotWaitForASlowReader(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			const size, asked = 1 << 20, 60
			_, socket, tcp := listen(t, server.Config{IOTimeout: time.Hour})
			address := map[string]string{"tcp": tcp, "unix": socket}[network]
			good := connect(t, "unix", socket).greet()
			h := good.alloc("s", size)
			slow := connect(t, network, address).greet()
			ask := readRequest(slow.open("s"), 0, size)
			asking := make(chan error, 1)
			go func() { // more than what lies between holds
				for i := range asked {
					if err := slow.conn.WriteFrame(wire.Header{Kind: wire.KindRead, ID: uint64(100 + i)}, ask); err != nil {
						asking <- err
						return
					}
				}
				asking <- nil
			}()
			const writes = 200
			for i := range writes {
				if err := good.transfer(h, 0, bytes.Repeat([]byte{byte(i)}, size)); err != nil {
					t.Fatal(err)
				}
			}
			seen := make([]byte, asked) // by request: carried out in turn, and answered in any order
			for i := range asked {
				head, data, err := slow.receive()
				if err != nil || head.Has(wire.FlagError) || len(data) != size {
					t.Fatalf("answer %d: %d bytes, %v", i, len(data), err)
				}
				if n := bytes.Count(data, data[:1]); n != size {
					t.Fatalf("answer %d is torn: %d bytes of %d are %d", i, n, size, data[0])
				}
				seen[head.ID-100] = data[0]
			}
			if !slices.IsSorted(seen) {
				t.Errorf("reads of one connection saw the writes %d", seen)
			}
			if err := <-asking; err != nil {
				t.Fatal(err)
			}
			if data, err := slow.ask(wire.KindRead, ask, nil); err != nil || len(data) != size || data[0] != writes-1 {
				t.Errorf("asked after the last write: %v, of %d bytes", err, len(data))
			}
			for i := range asked {
				if err := slow.conn.WriteFrame(wire.Header{Kind: wire.KindRead, ID: uint64(500 + i)}, ask); err != nil {
					t.Fatal(err)
				}
			}
			if err := good.control(control.OpFree, control.Handle{Handle: h}, nil); err != nil {
				t.Errorf("free: %v", err)
			}
		})
	}
}

// Readers over TCP among writers get whole blocks.
func TestReadsAreNotTorn(t *testing.T) {
	_, socket, tcp := listen(t, server.Config{})
	const size, rounds = 1 << 20, 60
	connect(t, "unix", socket).greet().alloc("s", size)
	var work sync.WaitGroup
	for w := range 2 {
		p := connect(t, "tcp", tcp).greet()
		h := p.open("s")
		work.Go(func() {
			for i := range rounds {
				stamp := binary.LittleEndian.AppendUint64(nil, uint64(w*rounds+i))
				if err := p.transfer(h, 0, bytes.Repeat(stamp, size/8)); err != nil {
					t.Error(err)
					return
				}
			}
		})
		q := connect(t, "tcp", tcp).greet()
		g := q.open("s")
		work.Go(func() {
			for range rounds {
				data, err := q.ask(wire.KindRead, readRequest(g, 0, size), nil)
				if err == nil && bytes.Count(data, data[:8]) != size/8 {
					err = fmt.Errorf("torn: %d of %d words are the first", bytes.Count(data, data[:8]), size/8)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	work.Wait()
}
