// SPDX-License-Identifier: Apache-2.0

package sharedbuf_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"testing"

	"github.com/memspan/memspan/internal/blocks"
	"github.com/memspan/memspan/sharedbuf"
)

// byHand accepts one guest, opens him a copy, and has f do the rest, which ends
// the connection when it returns.
func byHand(t *testing.T, f func(nc net.Conn, in *bufio.Reader, r *sharedbuf.Request)) (address string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		defer nc.Close()
		in := bufio.NewReaderSize(nc, 4+sharedbuf.MaxRequest)
		for {
			body, err := sharedbuf.ReadFrame(in, sharedbuf.MaxRequest)
			if err != nil {
				return
			}
			r, err := sharedbuf.ParseRequest(body)
			if err != nil {
				t.Errorf("%s: %v", body, err)
				return
			}
			if r.API != sharedbuf.APICopy {
				f(nc, in, r)
				return
			}
			if _, err := nc.Write(sharedbuf.AppendReply(nil, r.ID, struct{}{}, nil)); err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		<-done
	})
	return ln.Addr().String()
}

// A host that takes no bytes is waited for as long as the context says, and holds
// up nobody who frees and closes.
func TestHostThatTakesNoBytes(t *testing.T) {
	asked, release := make(chan struct{}), make(chan struct{})
	address := byHand(t, func(net.Conn, *bufio.Reader, *sharedbuf.Request) {
		close(asked)
		<-release
	})
	defer close(release)
	c := client(t, address, "")
	b, err := c.Alloc(t.Context(), 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	for i := range b.Bytes() {
		b.Bytes()[i] = byte(i * i >> 3)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-asked
		cancel()
	}()
	if _, err := b.Process(ctx, sharedbuf.Process()); !errors.Is(err, sharedbuf.ErrCanceled) {
		t.Errorf("given up: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// A host that breaks the protocol of blocks costs an error, and no byte of the
// buffer that it does not send whole.
func TestHostsThatSendWrongBlocks(t *testing.T) {
	const size = blocks.Size + 10
	block := func(w *blocks.Writer, i, n int) {
		b := make([]byte, n)
		b[0] = 7
		w.Add(i, b)
	}
	for name, test := range map[string]struct {
		send    func(w *blocks.Writer)
		end     bool
		options sharedbuf.AllocOptions
	}{
		"beyond the end": {func(w *blocks.Writer) { block(w, 2, 10) }, true, sharedbuf.AllocOptions{}},
		"too long":       {func(w *blocks.Writer) { block(w, 1, blocks.Size) }, true, sharedbuf.AllocOptions{}},
		"cut":            {func(w *blocks.Writer) { block(w, 0, blocks.Size) }, false, sharedbuf.AllocOptions{}},
		"given up":       {func(w *blocks.Writer) { w.End(true) }, false, sharedbuf.AllocOptions{}},
		"of what is read-only": {func(w *blocks.Writer) { block(w, 0, blocks.Size) }, true,
			sharedbuf.AllocOptions{Permissions: sharedbuf.Permissions{ReadOnly: true}}},
	} {
		t.Run(name, func(t *testing.T) {
			c := client(t, byHand(t, func(nc net.Conn, in *bufio.Reader, r *sharedbuf.Request) {
				records := blocks.NewReader(in, -1)
				for {
					if _, _, err := records.Next(); err != nil {
						if err != io.EOF {
							t.Error(err)
						}
						break
					}
				}
				result := sharedbuf.Result{BufferID: uint32(r.BufferID), Status: "processed"}
				if _, err := nc.Write(sharedbuf.AppendReplyBeforeBlocks(nil, r.ID, result, nil)); err != nil {
					t.Error(err)
				}
				w := blocks.NewWriter(nc)
				test.send(w)
				if test.end {
					w.End(false) // the guest may be gone
				}
			}), "")
			b, err := c.AllocWith(t.Context(), size, test.options)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := b.Process(t.Context(), sharedbuf.Process()); !errors.Is(err, sharedbuf.ErrPeerLost) {
				t.Errorf("Process: %v", err)
			}
			if b.Bytes()[0] != 0 {
				t.Error("the buffer changed")
			}
		})
	}
}
