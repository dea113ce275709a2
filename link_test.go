// SPDX-License-Identifier: Apache-2.0

package memspan_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"sync"
	"testing"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/wire"
	"github.com/memspan/memspan/wire/control"
)

// Answers find their requests whatever their order.
func TestAnswersOutOfOrder(t *testing.T) {
	const n = 10
	c := play(t, nil, func(p *peer) {
		var frames []frame
		p.serve(func(f frame) bool {
			if frames = append(frames, f); len(frames) < n {
				return true
			}
			for i := range frames {
				f := frames[n-1-i]
				m, err := wire.ParseRead(f.prefix)
				if err != nil {
					t.Error(err)
				}
				p.answer(f, success, bytes.Repeat([]byte{byte(m.Offset)}, int(m.Size)))
			}
			frames = nil
			return true
		})
	})
	s := open(t, c)
	for range 3 {
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() {
				b := make([]byte, 5+i)
				if n, err := s.ReadAt(t.Context(), b, int64(i)); n != len(b) || err != nil {
					t.Errorf("ReadAt = %d, %v", n, err)
				}
				if !bytes.Equal(b, bytes.Repeat([]byte{byte(i)}, 5+i)) {
					t.Errorf("read %d got %v", i, b)
				}
			})
		}
		wg.Wait()
	}
}

// What a server answered before it hung up counts, also if somebody found first
// that nothing can be sent any more.
func TestAnsweredAndHungUp(t *testing.T) {
	const n = 16
	for range 50 {
		c := play(t, nil, func(p *peer) {
			var reads []frame
			p.serve(func(f frame) bool {
				if f.Kind == wire.KindControl {
					p.reply(f, control.Stats{})
					return true
				}
				if reads = append(reads, f); len(reads) < n {
					return true
				}
				for _, f := range reads {
					p.answer(f, success, make([]byte, 64))
				}
				return false
			})
		})
		s := open(t, c)
		var work sync.WaitGroup
		for range 4 {
			work.Go(func() {
				for c.Err() == nil {
					_, _ = c.Stats(t.Context())
				}
			})
		}
		for range n {
			work.Go(func() {
				if _, err := s.ReadAt(t.Context(), make([]byte, 64), 0); err != nil {
					t.Errorf("a read that was answered: %v", err)
				}
			})
		}
		work.Wait()
	}
}

// What comes after a read was given up does not touch its memory.
func TestCanceledRead(t *testing.T) {
	var withheld []frame
	asked := make(chan struct{}, 8)
	c := play(t, nil, func(p *peer) {
		p.serve(func(f frame) bool {
			switch {
			case f.Kind == wire.KindRead && len(withheld) < 2:
				withheld = append(withheld, f)
				asked <- struct{}{}
			case f.Kind == wire.KindRead: // the third is answered at once
				p.answer(f, success, bytes.Repeat([]byte{3}, 4096))
				asked <- struct{}{}
			default: // a later request: now the late answers come first
				for _, f := range withheld {
					p.answer(f, success, bytes.Repeat([]byte{9}, 4096))
				}
				p.reply(f, control.Stats{Sessions: 5})
			}
			return true
		})
	})
	s := open(t, c)
	ctx, cancel := context.WithCancelCause(t.Context())
	b := make([]byte, 3*4096)
	reason := errors.New("changed my mind")
	go func() {
		for range 3 {
			<-asked
		}
		cancel(reason)
	}()
	n, err := s.ReadAt(ctx, b, 0)
	if n != 0 || !errors.Is(err, memspan.ErrCanceled) || !errors.Is(err, reason) {
		t.Fatalf("ReadAt = %d, %v", n, err)
	}
	before := bytes.Clone(b)
	if st, err := c.Stats(t.Context()); err != nil || st.Sessions != 5 {
		t.Fatalf("Stats = %+v, %v", st, err)
	}
	if !bytes.Equal(b, before) {
		t.Error("late data was written to memory that is the caller's again")
	}
}

// ReadAt and WriteAt tell how much of the beginning is done.
func TestPartialTransfer(t *testing.T) {
	c := play(t, nil, func(p *peer) {
		p.serve(func(f frame) bool {
			m, err := wire.ParseRead(f.prefix)
			if f.Kind == wire.KindTransfer {
				m, err = wire.ParseTransfer(f.prefix)
			}
			if err != nil {
				t.Error(err)
			}
			if int64(m.Offset/4096) != int64(m.Offset+m.Size-1)/4096 {
				t.Errorf("[%d,+%d) crosses a block's end", m.Offset, m.Size)
			}
			switch {
			case m.Offset >= 2*4096:
				p.refuse(f, &wire.Error{Code: wire.DataLoss, Op: "read", Span: "x", Version: 5})
			case f.Kind == wire.KindTransfer:
				p.answer(f, success)
			default:
				p.answer(f, success, make([]byte, m.Size))
			}
			return true
		})
	})
	s := open(t, c)
	for name, f := range map[string]func(context.Context, []byte, int64) (int, error){"ReadAt": s.ReadAt, "WriteAt": s.WriteAt} {
		n, err := f(t.Context(), make([]byte, 14*4096), 4000)
		if n != 96+4096 || !errors.Is(err, memspan.ErrDataLoss) {
			t.Errorf("%s = %d, %v", name, n, err)
		}
		if n, err := f(t.Context(), make([]byte, 100), 0); n != 100 || err != nil {
			t.Errorf("%s after that = %d, %v", name, n, err)
		}
	}
}

// A debt is a write that is stored.
func TestWriteInDebt(t *testing.T) {
	c := play(t, nil, func(p *peer) {
		p.serve(func(f frame) bool {
			if m, _ := wire.ParseTransfer(f.prefix); m.Offset == 4096 {
				p.refuse(f, &wire.Error{Code: wire.Debt, Op: "write", Span: "x"})
			} else {
				p.answer(f, success)
			}
			return true
		})
	})
	if n, err := open(t, c).WriteAt(t.Context(), make([]byte, 3*4096), 0); n != 3*4096 || !errors.Is(err, memspan.ErrDebt) {
		t.Errorf("WriteAt = %d, %v", n, err)
	}
}

func TestPeerLost(t *testing.T) {
	c := play(t, nil, func(p *peer) {
		reads := 0
		p.serve(func(f frame) bool {
			if reads++; reads <= 16 { // to fill the mapping
				p.answer(f, success, bytes.Repeat([]byte{1}, 4096))
			}
			return reads < 16+3
		})
	})
	s := open(t, c)
	m := mapRange(t, s, 0, s.Size(), memspan.ReadWrite)
	m.Bytes()[0] = 77
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if _, err := s.ReadAt(t.Context(), make([]byte, 1), 0); !errors.Is(err, memspan.ErrPeerLost) || !errors.Is(err, io.EOF) {
				t.Errorf("a call that waited: %v", err)
			}
		})
	}
	wg.Wait()
	<-c.Done()
	<-m.Done()
	_, flush := m.Flush(t.Context())
	for what, err := range map[string]error{
		"Err":         c.Err(),
		"mapping Err": m.Err(),
		"Flush":       flush,
		"Unmap":       m.Unmap(t.Context()),
		"Invalidate":  m.Invalidate(t.Context()),
		"Free":        s.Free(t.Context()),
		"Map":         second(s.Map(t.Context(), 0, 1, memspan.ReadOnly)),
		"Lock":        second(s.Lock(t.Context(), 0, 1, memspan.Shared)),
	} {
		if !errors.Is(err, memspan.ErrPeerLost) {
			t.Errorf("%s after the connection broke: %v", what, err)
		}
	}
	if b := m.Bytes(); len(b) != int(s.Size()) || b[0] != 77 || b[1] != 1 {
		t.Error("the memory of the mapping is not valid any more")
	}
	if err := m.Discard(t.Context()); err != nil {
		t.Errorf("Discard: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

// A server that breaks the rules loses the connection, and nothing else
// happens.
func TestGarbage(t *testing.T) {
	read := func(c *memspan.Client, s *memspan.Span) error {
		return second(s.ReadAt(t.Context(), make([]byte, 10), 0))
	}
	write := func(c *memspan.Client, s *memspan.Span) error {
		return second(s.WriteAt(t.Context(), make([]byte, 10), 0))
	}
	stat := func(c *memspan.Client, s *memspan.Span) error { return second(s.Stat(t.Context())) }
	mapped := func(c *memspan.Client, s *memspan.Span) error {
		return second(s.Map(t.Context(), 0, s.Size(), memspan.ReadWrite))
	}
	versions := func(runs ...control.VersionRun) func(*peer, frame) {
		return func(p *peer, f frame) { p.reply(f, control.Mapped{Mapping: 1, Versions: runs}) }
	}
	for name, test := range map[string]struct {
		call   func(*memspan.Client, *memspan.Span) error
		answer func(p *peer, f frame)
	}{
		"not a frame":      {read, func(p *peer, f frame) { p.raw.Write(bytes.Repeat([]byte("garbage "), 8)) }},
		"unknown request":  {read, func(p *peer, f frame) { f.ID += 100; p.answer(f, success, make([]byte, 10)) }},
		"another kind":     {read, func(p *peer, f frame) { f.Kind = wire.KindFlush; p.answer(f, success) }},
		"too little data":  {read, func(p *peer, f frame) { p.answer(f, success, make([]byte, 9)) }},
		"too much data":    {read, func(p *peer, f frame) { p.answer(f, success, make([]byte, 11)) }},
		"data for nothing": {write, func(p *peer, f frame) { p.answer(f, success, make([]byte, 4)) }},
		"a request":        {read, func(p *peer, f frame) { p.write(f.Header, f.prefix) }},
		"half a frame":     {read, func(p *peer, f frame) { p.raw.Write(f.Header.Append(nil)[:20]) }},
		"error of no JSON": {read, func(p *peer, f frame) {
			p.write(wire.Header{Kind: f.Kind, Flags: wire.FlagReply | wire.FlagError, ID: f.ID}, nil, []byte("oops"))
		}},
		"event of no JSON":  {read, func(p *peer, f frame) { p.write(wire.Header{Kind: wire.KindEvent}, nil, []byte("{")) }},
		"answer of no JSON": {stat, func(p *peer, f frame) { p.answer(f, nil, []byte("[}")) }},
		"empty answer":      {stat, func(p *peer, f frame) { p.answer(f, nil) }},
		"other JSON":        {stat, func(p *peer, f frame) { p.reply(f, []int{1}) }},
		"hello again":       {stat, func(p *peer, f frame) { f.Kind = wire.KindHello; p.reply(f, welcome) }},
		"no versions":       {mapped, versions()},
		"few versions":      {mapped, versions(control.VersionRun{Count: 15})},
		"many versions":     {mapped, versions(control.VersionRun{Count: 15}, control.VersionRun{Count: 2})},
		"huge count":        {mapped, versions(control.VersionRun{Count: 1<<63 - 1})},
		"negative count":    {mapped, versions(control.VersionRun{Count: -1}, control.VersionRun{Count: 17})},
		"no descriptor":     {mapped, func(p *peer, f frame) { p.reply(f, control.Mapped{Mapping: 1, Direct: true, Size: 16 * 4096}) }},
	} {
		t.Run(name, func(t *testing.T) {
			c := play(t, nil, func(p *peer) {
				f, _ := p.next()
				p.reply(f, opened)
				if f, ok := p.next(); ok {
					test.answer(p, f)
				}
				for ok := name != "half a frame"; ok; { // wait for the client to leave
					_, ok = p.next()
				}
			})
			s := open(t, c)
			if err := test.call(c, s); !errors.Is(err, memspan.ErrPeerLost) {
				t.Errorf("the call returned %v", err)
			}
			<-c.Done()
		})
	}
}

// Giving up a request asks the server to, and its answer counts.
func TestCancelRequest(t *testing.T) {
	for name, grant := range map[string]bool{"refused": false, "granted": true} {
		t.Run(name, func(t *testing.T) {
			waiting := make(chan struct{})
			c := play(t, nil, func(p *peer) {
				var lock frame
				p.serve(func(f frame) bool {
					var args struct{ Request uint64 }
					switch p.request(f, nil) {
					case control.OpLock:
						lock = f
						close(waiting)
					case control.OpCancel:
						if p.request(f, &args); args.Request != lock.ID {
							t.Errorf("request %d was to be canceled, want %d", args.Request, lock.ID)
						}
						p.reply(f, struct{}{})
						if grant {
							p.reply(lock, control.Locked{Lock: 3})
						} else {
							p.refuse(lock, &wire.Error{Code: wire.Canceled})
						}
					case control.OpUnlock:
						p.reply(f, struct{}{})
					}
					return true
				})
			})
			s := open(t, c)
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				<-waiting
				cancel()
			}()
			l, err := s.Lock(ctx, 0, 1, memspan.Exclusive)
			if grant {
				if err != nil {
					t.Fatal(err)
				}
				if err := l.Unlock(t.Context()); err != nil {
					t.Fatal(err)
				}
			} else if !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
		})
	}
}

// flushed is a flush frame that the client sent, decoded.
func flushed(t testing.TB, f frame) wire.Flush {
	t.Helper()
	fl, err := wire.ParseFlush(f.prefix, nil)
	if err != nil {
		t.Error(err)
	}
	return fl
}

// Frames of a flush carry the version they are based on, and all but the last
// say that more follow.
func TestFlushFrames(t *testing.T) {
	type sent struct {
		block, base uint64
		runs        string
		data        string
		more        bool
	}
	got := make(chan sent, 8)
	version := uint64(1)
	c := play(t, nil, func(p *peer) {
		p.serve(func(f frame) bool {
			if f.Kind == wire.KindRead {
				p.answer(f, success, make([]byte, 4096))
				return true
			}
			fl := flushed(t, f)
			runs, _ := json.Marshal(fl.Runs)
			got <- sent{fl.Block, fl.Base, string(runs), string(f.data), f.Has(wire.FlagMore)}
			version++
			p.answer(f, wire.FlushReply{Block: fl.Base + 1, Span: version, Holders: 2}.Append(nil))
			return true
		})
	})
	s := open(t, c)
	m := mapRange(t, s, 0, s.Size(), memspan.ReadWrite)
	copy(m.Bytes()[4096*3+10:], "one")
	copy(m.Bytes()[4096*3+20:], "two")
	copy(m.Bytes()[4096*7:], "three")
	commit, err := m.Flush(t.Context())
	if err != nil || commit.Version != 3 || !commit.Holders.Has(memspan.Host) {
		t.Fatalf("Flush = %+v, %v", commit, err)
	}
	copy(m.Bytes()[4096*3:], "four")
	if _, err := m.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := []sent{
		{3, 1, `[{"Offset":10,"Length":3},{"Offset":20,"Length":3}]`, "onetwo", true},
		{7, 1, `[{"Offset":0,"Length":5}]`, "three", false},
		{3, 2, `[{"Offset":0,"Length":4}]`, "four", false},
	}
	if len(got) != len(want) {
		t.Fatalf("%d frames, want %d", len(got), len(want))
	}
	for i := range want {
		if got := <-got; got != want[i] {
			t.Errorf("frame %d is %+v, want %+v", i, got, want[i])
		}
	}
}

// A flush that was given up has sent what it has sent: its answers count for
// the next.
func TestCanceledFlush(t *testing.T) {
	sent := make(chan struct{}, 4)
	release := make(chan struct{})
	var mu sync.Mutex
	var data []string
	c := play(t, nil, func(p *peer) {
		p.serve(func(f frame) bool {
			if f.Kind == wire.KindRead {
				p.answer(f, success, make([]byte, 4096))
				return true
			}
			fl := flushed(t, f)
			mu.Lock()
			data = append(data, string(f.data))
			mu.Unlock()
			sent <- struct{}{}
			<-release
			p.answer(f, wire.FlushReply{Block: fl.Base + 1, Span: fl.Base + 1, Holders: 2}.Append(nil))
			return true
		})
	})
	s := open(t, c)
	m := mapRange(t, s, 0, s.Size(), memspan.ReadWrite)
	copy(m.Bytes(), "first")
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-sent
		cancel()
	}()
	if _, err := m.Flush(ctx); !errors.Is(err, memspan.ErrCanceled) {
		t.Fatalf("Flush = %v", err)
	}
	clear(m.Bytes()[:5]) // what the server holds is not what is here now
	copy(m.Bytes()[10:], "second")
	close(release)
	if _, err := m.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(data) != 2 || data[0] != "first" || data[1] != "\x00\x00\x00\x00\x00second" {
		t.Errorf("the client sent %q", data)
	}
}

// A conflict concerns its block alone: all others are stored.
func TestConflictStopsNothing(t *testing.T) {
	c := play(t, nil, func(p *peer) {
		p.serve(func(f frame) bool {
			if f.Kind == wire.KindRead {
				p.answer(f, success, make([]byte, 4096))
			} else if fl := flushed(t, f); fl.Block == 0 {
				p.refuse(f, &wire.Error{Code: wire.Conflict, Op: "flush", Span: "x", Length: 4096})
			} else {
				p.answer(f, wire.FlushReply{Block: 2, Span: 2, Holders: 2}.Append(nil))
			}
			return true
		})
	})
	s := open(t, c)
	m := mapRange(t, s, 0, s.Size(), memspan.ReadWrite)
	for i := range m.Bytes() {
		m.Bytes()[i] = 1
	}
	frames := func() uint64 { return c.Traffic().Sent.Frames[wire.KindFlush] }
	for _, want := range []uint64{16, 17} { // then the one in conflict again
		if _, err := m.Flush(t.Context()); !errors.Is(err, memspan.ErrConflict) {
			t.Fatalf("Flush = %v", err)
		}
		if frames() != want {
			t.Errorf("%d frames were sent, want %d", frames(), want)
		}
	}
}

// Mappings made while the server stops know that it does.
func TestMapWhileServerStops(t *testing.T) {
	c := play(t, nil, func(p *peer) {
		data, _ := json.Marshal(control.Event{Event: control.EventClosing, Message: "bye"})
		p.write(wire.Header{Kind: wire.KindEvent}, nil, data)
		p.serve(func(f frame) bool { return true })
	})
	m := mapRange(t, open(t, c), 0, opened.Span.Size, memspan.WriteOnly)
	<-m.Done()
	if !errors.Is(m.Err(), memspan.ErrClosed) {
		t.Errorf("Err = %v", m.Err())
	}
}

// A flush in debt is stored: it is not sent again.
func TestFlushInDebt(t *testing.T) {
	c := play(t, nil, func(p *peer) {
		frames := 0
		p.serve(func(f frame) bool {
			switch {
			case f.Kind == wire.KindRead:
				p.answer(f, success, make([]byte, 4096))
			case f.Kind == wire.KindFlush:
				if frames++; frames == 1 {
					p.refuse(f, &wire.Error{Code: wire.Debt, Op: "flush", Span: "x", Version: 2})
				} else {
					if base := flushed(t, f).Base; base != 2 {
						t.Errorf("the next flush is based on version %d", base)
					}
					p.answer(f, wire.FlushReply{Block: 3, Span: 3, Holders: 2}.Append(nil))
				}
			}
			return true
		})
	})
	s := open(t, c)
	m := mapRange(t, s, 0, s.Size(), memspan.ReadWrite)
	m.Bytes()[0] = 1
	if _, err := m.Flush(t.Context()); !errors.Is(err, memspan.ErrDebt) {
		t.Fatalf("Flush = %v", err)
	}
	frames := func() uint64 { return c.Traffic().Sent.Frames[wire.KindFlush] }
	m.Bytes()[1] = 1
	if _, err := m.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.Unmap(t.Context()); err != nil || frames() != 2 {
		t.Errorf("Unmap after a debt = %v, %d frames", err, frames())
	}
}
