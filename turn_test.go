// SPDX-License-Identifier: Apache-2.0

package memspan_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"sync"
	"testing"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/server"
	"github.com/memspan/memspan/wire"
	"github.com/memspan/memspan/wire/control"
)

// A caller who reads the connection for himself hands others their answers,
// and the events that come meanwhile.
func TestReaderServesOthers(t *testing.T) {
	lone := make(chan struct{}) // the first read has come, and nothing else
	c := play(t, nil, func(p *peer) {
		var first frame
		p.serve(func(f frame) bool {
			if first.Kind == 0 {
				first = f
				close(lone)
				return true
			}
			// The second is answered, then the mapping freed; the first waits.
			p.answer(f, success, []byte("second__"))
			p.write(wire.Header{Kind: wire.KindEvent}, nil, []byte(`{"event":"freed","mapping":"9"}`))
			if f, ok := p.next(); ok {
				p.answer(f, success, []byte("third___"))
				p.answer(first, success, []byte("first___"))
			}
			return true
		})
	})
	s := open(t, c)
	m := mapRange(t, s, 0, s.Size(), memspan.WriteOnly)
	read := func(want string) {
		p := make([]byte, 8)
		if _, err := s.ReadAt(t.Context(), p, 0); err != nil || string(p) != want {
			t.Errorf("read %q, %v, want %q", p, err, want)
		}
	}
	var work sync.WaitGroup
	work.Go(func() { read("first___") })
	<-lone
	read("second__")
	<-m.Done()
	if err := m.Err(); !errors.Is(err, memspan.ErrFreed) {
		t.Errorf("the mapping ended with %v", err)
	}
	read("third___")
	work.Wait()
	if err := m.Discard(t.Context()); err != nil {
		t.Error(err)
	}
}

// Events and the end of the connection are noticed when nobody calls, and when
// the only caller has just given up.
func TestNobodyReads(t *testing.T) {
	canceled, asked := make(chan struct{}), make(chan struct{})
	c := play(t, nil, func(p *peer) {
		p.serve(func(f frame) bool {
			close(asked)
			<-canceled
			p.write(wire.Header{Kind: wire.KindEvent}, nil, []byte(`{"event":"freed","mapping":"9"}`))
			p.answer(f, success, make([]byte, 8)) // nobody's
			p.next()                              // the unmapping
			return false
		})
	})
	s := open(t, c)
	m := mapRange(t, s, 0, s.Size(), memspan.WriteOnly)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-asked; cancel() }()
	if _, err := s.ReadAt(ctx, make([]byte, 8), 0); !errors.Is(err, memspan.ErrCanceled) {
		t.Fatalf("read: %v", err)
	}
	close(canceled)
	<-m.Done()
	m.Discard(t.Context())
	<-c.Done()
	if err := c.Err(); !errors.Is(err, memspan.ErrPeerLost) {
		t.Errorf("the connection ended with %v", err)
	}
}

// Many callers, alone and together, some of whom give up at any moment: each
// gets his own bytes or ErrCanceled.
func TestTurnsUnderCancellation(t *testing.T) {
	srv := serve(t, server.Config{})
	for name, address := range map[string]string{"unix": srv.unix, "tcp": srv.tcp, "tls": srv.tls + "#" + srv.fingerprint} {
		t.Run(name, func(t *testing.T) {
			s := alloc(t, dial(t, address, nil), 1<<16)
			want := make([]byte, s.Size())
			for i := 0; i < len(want); i += 8 {
				binary.LittleEndian.PutUint64(want[i:], uint64(i))
			}
			if _, err := s.WriteAt(t.Context(), want, 0); err != nil {
				t.Fatal(err)
			}
			for _, callers := range []int{1, 2, 5} {
				var work sync.WaitGroup
				for k := range callers {
					work.Go(func() {
						for i := range 300 {
							off := int64((i*7+k)*64) % s.Size()
							p := make([]byte, 64)
							ctx, cancel := context.WithCancel(t.Context())
							var canceler sync.WaitGroup
							if i%3 == 0 {
								canceler.Go(cancel)
							}
							var err error
							if i%5 == 4 {
								_, err = s.Stat(ctx)
								copy(p, want[off:])
							} else {
								_, err = s.ReadAt(ctx, p, off)
							}
							cancel()
							canceler.Wait()
							switch {
							case err == nil && !bytes.Equal(p, want[off:off+64]):
								t.Errorf("caller %d, round %d: somebody else's bytes", k, i)
							case err != nil && (i%3 != 0 || !errors.Is(err, memspan.ErrCanceled)):
								t.Errorf("caller %d, round %d: %v", k, i, err)
							}
						}
					})
				}
				work.Wait()
			}
		})
	}
}

// Closing the client ends a caller who reads for himself.
func TestCloseWhileCallerReads(t *testing.T) {
	asked := make(chan struct{})
	c := play(t, nil, func(p *peer) {
		p.serve(func(f frame) bool {
			if f.Kind == wire.KindControl {
				if op := p.request(f, nil); op != control.OpStat {
					t.Errorf("%s", op)
				}
				close(asked)
			}
			return true
		})
	})
	s := open(t, c)
	var work sync.WaitGroup
	work.Go(func() {
		if _, err := s.Stat(t.Context()); !errors.Is(err, memspan.ErrClosed) {
			t.Errorf("stat: %v", err)
		}
	})
	<-asked
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	work.Wait()
}

// A caller who is alone reads his answers himself, whatever he asks: waiting
// for the link's reader he would wait until that has rested.
func TestLoneCallerReads(t *testing.T) {
	c := play(t, nil, func(p *peer) {
		p.serve(func(f frame) bool {
			p.answer(f, success, make([]byte, 8))
			return true
		})
	})
	s := open(t, c)
	before := c.Turns()
	var p [8]byte
	for range 50 {
		if _, err := s.ReadAt(t.Context(), p[:], 0); err != nil {
			t.Fatal(err)
		}
	}
	if c.Turns() == before {
		t.Error("all of 50 answers were read by the link's reader")
	}
}
