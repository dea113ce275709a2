// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/memspan/memspan/coherency"
	"github.com/memspan/memspan/server"
	"github.com/memspan/memspan/wire"
	"github.com/memspan/memspan/wire/control"
)

// More spans than one message can describe are listed page by page.
func TestListOfManySpans(t *testing.T) {
	_, socket, _ := listen(t, server.Config{})
	p := connect(t, "unix", socket).greet()
	const n = 600
	for i := range n {
		p.alloc(fmt.Sprintf("span %d", i), 1)
	}
	seen := make(map[string]bool)
	var page control.Listed
	for page.More = true; page.More; {
		var after string
		if len(page.Spans) > 0 {
			after = page.Spans[len(page.Spans)-1].ID
		}
		page = control.Listed{}
		if err := p.control(control.OpList, control.List{After: after}, &page); err != nil {
			t.Fatal(err)
		}
		for _, s := range page.Spans {
			seen[s.Name] = true
		}
	}
	if len(seen) != n {
		t.Errorf("%d spans listed, want %d", len(seen), n)
	}
}

// A flakyListener runs out of descriptors once.
type flakyListener struct {
	net.Listener
	failed bool
}

func (l *flakyListener) Accept() (net.Conn, error) {
	if !l.failed {
		l.failed = true
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	return l.Listener.Accept()
}

// serveOn starts a server on a unix socket, which the test shuts down itself.
// served has what Serve returns.
func serveOn(t *testing.T, cfg server.Config, wrap func(net.Listener) net.Listener) (srv *server.Server, socket string, served <-chan error) {
	t.Helper()
	srv, err := server.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(t.Context(), wrap(ln)) }()
	return srv, ln.Addr().String(), done
}

func TestServeSurvivesAFailedAccept(t *testing.T) {
	srv, socket, served := serveOn(t, server.Config{HostBudget: 1 << 20}, func(ln net.Listener) net.Listener {
		return &flakyListener{Listener: ln}
	})
	connect(t, "unix", socket).greet()
	if err := srv.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// A peer that does not read holds Shutdown up for no longer than its context.
func TestShutdownIsBounded(t *testing.T) {
	srv, socket, served := serveOn(t, server.Config{HostBudget: 8 << 20, IOTimeout: time.Hour}, func(ln net.Listener) net.Listener { return ln })
	p := connect(t, "unix", socket).greet()
	h := p.alloc("s", 1<<20)
	ask := wire.AppendRead(nil, wire.MemoryCommand{Memory: h, Size: 1 << 20})
	for i := range 20 {
		if err := p.conn.WriteFrame(wire.Header{Kind: wire.KindRead, ID: uint64(100 + i)}, ask); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	srv.Shutdown(ctx) // without the bound it would take an hour
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// Of many closes of one handle, sent at once, one succeeds: another session's
// hold on the span is not taken.
func TestHandleIsClosedOnce(t *testing.T) {
	_, socket, _ := listen(t, server.Config{})
	a, b := connect(t, "unix", socket).greet(), connect(t, "unix", socket).greet()
	for range 50 {
		var mine, theirs control.Opened
		if err := a.control(control.OpAlloc, control.Alloc{Size: 1, Tier: coherency.Host, Home: coherency.Host}, &mine); err != nil {
			t.Fatal(err)
		}
		if err := b.control(control.OpOpen, control.Open{Name: mine.Span.ID}, &theirs); err != nil {
			t.Fatal(err)
		}
		args, _ := json.Marshal(control.Handle{Handle: theirs.Handle})
		request, _ := json.Marshal(control.Request{Op: control.OpClose, Args: args})
		const many = 16
		for range many {
			b.send(wire.KindControl, nil, request)
		}
		closed := 0
		for range many {
			h, _, err := b.receive()
			if err != nil {
				t.Fatal(err)
			}
			if !h.Has(wire.FlagError) {
				closed++
			}
		}
		if closed != 1 {
			t.Fatalf("one handle was closed %d times", closed)
		}
		if err := a.control(control.OpClose, control.Handle{Handle: mine.Handle}, nil); err != nil {
			t.Fatalf("the other session's handle: %v", err)
		}
	}
}

// Frames of one write are one commit, even if the last never comes.
func TestWriteIsOneCommit(t *testing.T) {
	_, socket, _ := listen(t, server.Config{})
	p := connect(t, "unix", socket).greet()
	h := p.alloc("s", 100)
	version := func(h uint64) uint64 {
		t.Helper()
		var st control.SpanStat
		if err := p.control(control.OpStat, control.Handle{Handle: h}, &st); err != nil {
			t.Fatal(err)
		}
		return st.Version
	}
	part := func(flags wire.Flags, off uint64) {
		t.Helper()
		p.id++
		prefix := wire.AppendTransfer(nil, wire.MemoryCommand{Memory: h, Offset: off, Size: 1})
		if err := p.conn.WriteFrame(wire.Header{Kind: wire.KindTransfer, Flags: flags, ID: p.id}, prefix, []byte{1}); err != nil {
			t.Fatal(err)
		}
		if _, _, err := p.receive(); err != nil {
			t.Fatal(err)
		}
	}
	part(wire.FlagMore, 0)
	part(wire.FlagMore, 1)
	part(0, 2)
	if v := version(h); v != 1 {
		t.Errorf("version %d after one write of three frames", v)
	}
	part(wire.FlagMore, 3)
	part(0, 1000) // fails, but ends the write
	if v := version(h); v != 2 {
		t.Errorf("version %d after a write whose last frame failed", v)
	}
	part(wire.FlagMore, 4)
	var again control.Opened
	if err := p.control(control.OpOpen, control.Open{Name: "s"}, &again); err != nil {
		t.Fatal(err)
	}
	if err := p.control(control.OpClose, control.Handle{Handle: h}, nil); err != nil {
		t.Fatal(err)
	}
	if v := version(again.Handle); v != 3 {
		t.Errorf("version %d after a write that its session did not end", v)
	}
	if err := p.control(control.OpStat, control.Handle{Handle: h}, nil); !errors.Is(err, wire.NotFound) {
		t.Errorf("stat of a closed handle: %v", err)
	}
}

// A session that has all the handles it may have gets no span, and leaves none.
func TestHandleLimit(t *testing.T) {
	_, socket, _ := listen(t, server.Config{Limits: server.Limits{Handles: 2}})
	p, other := connect(t, "unix", socket).greet(), connect(t, "unix", socket).greet()
	first := p.alloc("a", 1)
	p.alloc("", 1)
	more := control.Alloc{Name: "b", Size: 1, Tier: coherency.Host, Home: coherency.Host}
	code(t, "alloc beyond the limit", p.control(control.OpAlloc, more, nil), wire.Limit)
	code(t, "open beyond the limit", p.control(control.OpOpen, control.Open{Name: "a"}, nil), wire.Limit)
	var stats control.Stats
	if err := p.control(control.OpStats, nil, &stats); err != nil || stats.Coherency.Total != 2 {
		t.Errorf("%d spans, want 2 (%v)", stats.Coherency.Total, err)
	}
	other.alloc("b", 1) // others have their own
	if err := p.control(control.OpClose, control.Handle{Handle: first}, nil); err != nil {
		t.Fatal(err)
	}
	if err := p.control(control.OpOpen, control.Open{Name: "b"}, nil); err != nil {
		t.Errorf("open with room for one: %v", err)
	}
}

// The server has so many spans, whosever they are.
func TestSpanLimit(t *testing.T) {
	_, socket, _ := listen(t, server.Config{Limits: server.Limits{Spans: 2}})
	p, other := connect(t, "unix", socket).greet(), connect(t, "unix", socket).greet()
	h := p.alloc("a", 1)
	other.alloc("b", 1)
	more := control.Alloc{Name: "c", Size: 1, Tier: coherency.Host, Home: coherency.Host}
	code(t, "alloc beyond the limit", p.control(control.OpAlloc, more, nil), wire.Limit)
	if err := p.control(control.OpFree, control.Handle{Handle: h}, nil); err != nil {
		t.Fatal(err)
	}
	p.alloc("c", 1)
}

// asks sends control requests without waiting for their answers.
func (p *peer) asks(n int, op control.Op, args any) (ids []uint64) {
	p.t.Helper()
	raw, _ := json.Marshal(args)
	data, _ := json.Marshal(control.Request{Op: op, Args: raw})
	for range n {
		ids = append(ids, p.send(wire.KindControl, nil, data))
	}
	return ids
}

// answer receives the answer to some request: its error, and result where it
// has none.
func (p *peer) answer(result any) (id uint64, err error) {
	p.t.Helper()
	p.raw.SetReadDeadline(time.Now().Add(time.Minute)) // for tests that fail
	h, data, err := p.receive()
	if err != nil {
		p.t.Fatal(err)
	}
	if h.Has(wire.FlagError) {
		we, err := wire.ParseError(data)
		if err != nil {
			p.t.Fatal(err)
		}
		return h.ID, we
	}
	if result != nil {
		if err := json.Unmarshal(data, result); err != nil {
			p.t.Fatal(err)
		}
	}
	return h.ID, nil
}

// Locks that a session waits for count as those that it has.
func TestLockLimit(t *testing.T) {
	_, socket, _ := listen(t, server.Config{Limits: server.Limits{Locks: 3}})
	p := connect(t, "unix", socket).greet()
	h := p.alloc("s", 10)
	lock := control.Lock{Handle: h, Length: 10, Exclusive: true}
	var held control.Locked
	if err := p.control(control.OpLock, lock, &held); err != nil {
		t.Fatal(err)
	}
	ids := p.asks(5, control.OpLock, lock) // 2 may wait
	for range 3 {
		_, err := p.answer(nil)
		code(t, "a waiter beyond the limit", err, wire.Limit)
	}
	for range 2 { // each is granted when the one before is given back
		p.asks(1, control.OpUnlock, control.Unlock{Lock: held.Lock})
		for range 2 {
			var l control.Locked
			id, err := p.answer(&l)
			if err != nil {
				t.Fatal(err)
			}
			if slices.Contains(ids, id) {
				held = l
			}
		}
	}
	// Waiting counts no longer than it lasts.
	for i := range 2 {
		shared := control.Lock{Handle: h, Offset: int64(i), Length: 1}
		if err := p.control(control.OpUnlock, control.Unlock{Lock: held.Lock}, nil); i == 0 && err != nil {
			t.Fatal(err)
		}
		if err := p.control(control.OpLock, shared, nil); err != nil {
			t.Errorf("lock %d after all were given back: %v", i, err)
		}
	}
}

// Of the control requests of a session so many are under way; cancelling one
// makes room.
func TestRequestLimit(t *testing.T) {
	_, socket, _ := listen(t, server.Config{Limits: server.Limits{Requests: 2}})
	holder, p := connect(t, "unix", socket).greet(), connect(t, "unix", socket).greet()
	lock := control.Lock{Handle: holder.alloc("s", 10), Length: 10, Exclusive: true}
	if err := holder.control(control.OpLock, lock, nil); err != nil {
		t.Fatal(err)
	}
	var o control.Opened
	if err := p.control(control.OpOpen, control.Open{Name: "s"}, &o); err != nil {
		t.Fatal(err)
	}
	lock.Handle = o.Handle
	var waiting []uint64
	for len(waiting) < 2 {
		// The place of an answered request may be free a moment after its answer
		// only. A cancellation of nothing is answered after what was refused.
		id, ping := p.asks(1, control.OpLock, lock)[0], p.asks(1, control.OpCancel, control.Cancel{})[0]
		switch got, err := p.answer(nil); got {
		case ping:
			waiting = append(waiting, id)
		case id:
			code(t, "a request that meets no room", err, wire.Limit)
			p.answer(nil)
		}
	}
	code(t, "a request beyond the limit", p.control(control.OpStats, nil, nil), wire.Limit)
	code(t, "another one", p.control(control.OpLock, lock, nil), wire.Limit)
	cancel := p.asks(1, control.OpCancel, control.Cancel{Request: waiting[0]}) // is none of them
	for range 2 {
		switch id, err := p.answer(nil); id {
		case cancel[0]:
			code(t, "cancel", err, nil)
		case waiting[0]:
			code(t, "what was cancelled", err, wire.Canceled)
		default:
			t.Errorf("an answer to %d: %v", id, err)
		}
	}
	for err := error(wire.Limit); err != nil; {
		if err = p.control(control.OpStats, nil, nil); err != nil && !errors.Is(err, wire.Limit) {
			t.Fatal(err)
		}
	}
}
