// SPDX-License-Identifier: Apache-2.0

//go:build linux

package e2e

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"syscall"
	"testing"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/wire"
	"github.com/memspan/memspan/wire/control"
)

// dataFrames counts what carries bytes of spans.
func dataFrames(f wire.Flow) uint64 {
	return f.Frames[wire.KindTransfer] + f.Frames[wire.KindRead] + f.Frames[wire.KindFlush]
}

// A direct mapping is the span's pages: a store is seen by another client at
// once, and no byte of the span crosses the socket.
func TestDirectMappingsShareTheirPages(t *testing.T) {
	t.Parallel()
	d := start(t, settings{Process: true})
	a, b := d.dial(t, "unix"), d.dial(t, "unix")
	const size = 4<<20 + 123
	s := alloc(t, a, memspan.SpanConfig{Name: "shared", Size: size})
	ma := mapped(t, s, 0, size, memspan.ReadWrite)
	mb := mapped(t, open(t, b, s), 1<<20+7, 2<<20, memspan.ReadWrite)
	if !ma.Direct() || !mb.Direct() {
		t.Fatal("not direct")
	}
	stamp(ma.Bytes(), 0, 1)
	if i := wrong(mb.Bytes(), mb.Offset(), 1); i >= 0 {
		t.Fatalf("the other client does not see the store to byte %d", i)
	}
	stamp(mb.Bytes(), mb.Offset(), 2)
	if i := wrong(ma.Bytes()[mb.Offset():][:2<<20], mb.Offset(), 2); i >= 0 {
		t.Fatalf("the store to byte %d does not come back", i)
	}
	unmap(t, ma)
	unmap(t, mb)
	for _, c := range []*memspan.Client{a, b} {
		tr := c.Traffic()
		if dataFrames(tr.Sent)+dataFrames(tr.Received) != 0 || tr.Sent.Bytes+tr.Received.Bytes > 16<<10 {
			t.Errorf("bytes moved: %+v", tr)
		}
	}
	holds(t, s, 1<<20+7, 2<<20, 2)
	if st := stat(t, s); st.Version == 0 || st.Unclean != 0 {
		t.Errorf("after unmapping: version %d, %d unclean blocks", st.Version, st.Unclean)
	}
}

// A writable direct mapping is memory for the other transports too: what they
// write shows in it at once, what is stored to it shows to them when flushed.
func TestDirectAndShadowOfOneSpan(t *testing.T) {
	t.Parallel()
	d := start(t, settings{VRAM: true})
	near, far := d.dial(t, "unix"), d.dial(t, "tcp")
	for _, tier := range []memspan.Tier{memspan.Host, memspan.VRAM} {
		const size = 1<<20 + 50
		s := alloc(t, near, memspan.SpanConfig{Size: size, Tier: memspan.On(tier)})
		other := open(t, far, s)
		write(t, other, stamped(size, 0, 1), 0)
		m := mapped(t, s, 0, size, memspan.ReadWrite)
		if i := wrong(m.Bytes(), 0, 1); i >= 0 {
			t.Fatalf("%v: mapped byte %d is wrong", tier, i)
		}
		write(t, other, stamped(100, 5000, 2), 5000)
		if i := wrong(m.Bytes()[5000:5100], 5000, 2); i >= 0 {
			t.Errorf("%v: another client's write to byte %d does not show", tier, 5000+i)
		}
		shadow := mapped(t, other, 0, size, memspan.ReadWrite)
		stamp(m.Bytes()[200:300], 200, 3)
		done := flush(t, m)
		if !done.Holders.Has(memspan.Host) {
			t.Errorf("%v: flush of a direct mapping is held by %v", tier, done.Holders)
		}
		check(t, shadow.Invalidate(t.Context()))
		if i := wrong(shadow.Bytes()[200:300], 200, 3); i >= 0 {
			t.Errorf("%v: a flushed store to byte %d does not show", tier, 200+i)
		}
		unmap(t, shadow)
		unmap(t, m)
		holds(t, other, 5000, 100, 2)
		holds(t, other, 200, 100, 3)
		holds(t, other, 300, 4700, 1)
	}
}

// Attaching costs the same for a page and for half a gigabyte: the same
// frames, and but for the digits of numbers the same bytes.
func TestAttachDoesNotDependOnSize(t *testing.T) {
	t.Parallel()
	d := start(t, settings{})
	c := d.dial(t, "unix")
	cost := func(size int64) (f wire.Flow) {
		s := alloc(t, c, memspan.SpanConfig{Size: size})
		before := c.Traffic()
		m := mapped(t, s, 0, size, memspan.ReadOnly)
		if int64(len(m.Bytes())) != size || m.Bytes()[size-1] != 0 {
			t.Fatal("not the span")
		}
		unmap(t, m)
		after := c.Traffic()
		f.Bytes = after.Sent.Bytes + after.Received.Bytes - before.Sent.Bytes - before.Received.Bytes
		for k := range f.Frames {
			f.Frames[k] = after.Sent.Frames[k] + after.Received.Frames[k] - before.Sent.Frames[k] - before.Received.Frames[k]
		}
		return f
	}
	small, large := cost(4<<10), cost(512<<20)
	if small.Frames != large.Frames || large.Bytes > small.Bytes+64 {
		t.Errorf("a page: %d bytes in frames %v, half a gigabyte: %d bytes in frames %v", small.Bytes, small.Frames, large.Bytes, large.Frames)
	}
}

// holding is what the holder process has.
type holding struct {
	Address string
	Named   string // a span to scribble on
	Size    int64  // of a span of its own
}

// holderRole maps a named span and one of its own, stores to both, locks the
// named one, and holds all of it until it is killed.
func holderRole(ctx context.Context, c *console) error {
	var h holding
	client, err := c.begin(ctx, &h, &h.Address, memspan.Options{})
	if err != nil {
		return err
	}
	named, err := client.Open(ctx, h.Named)
	if err != nil {
		return err
	}
	own, err := client.Alloc(ctx, memspan.SpanConfig{Size: h.Size})
	if err != nil {
		return err
	}
	if _, err := named.Lock(ctx, 0, 100, memspan.Exclusive); err != nil {
		return err
	}
	for _, s := range []*memspan.Span{named, own} {
		m, err := s.Map(ctx, 0, s.Size(), memspan.ReadWrite)
		if err != nil {
			return err
		}
		stamp(m.Bytes(), 0, 7)
	}
	if err := c.say("holding"); err != nil {
		return err
	}
	return c.wait()
}

// A client that is killed with memory mapped and locked leaves nothing behind
// but what it stored, marked as it is.
func TestKilledClientLeavesNothing(t *testing.T) {
	t.Parallel()
	d := start(t, settings{Process: true})
	c := d.dial(t, "unix")
	const size = 3 << 20
	s := alloc(t, c, memspan.SpanConfig{Name: "survivor", Size: size})
	write(t, s, stamped(size, 0, 1), 0)
	h := holding{Address: d.Addresses["unix"], Named: s.Name(), Size: 32 << 20}

	killHolder := func() {
		p := child(t, "holder", h)
		var said string
		p.hear(&said)
		granted := make(chan *memspan.Lock)
		go func() {
			l, err := s.Lock(t.Context(), 50, 100, memspan.Exclusive)
			if err != nil {
				t.Error(err)
			}
			granted <- l
		}()
		p.kill()
		l := <-granted
		if l == nil {
			return
		}
		if !l.Abandoned() {
			t.Error("the lock of a killed client is passed on without a word")
		}
		check(t, l.Unlock(t.Context()))
		sessions(t, c, 1)
	}
	memory := func() (budget, anon, shared int64) {
		st, err := c.Stats(t.Context())
		check(t, err)
		anon, shared, err = resident(d.pid())
		check(t, err)
		return st.Budgets[memspan.Host.String()].Used, anon, shared
	}

	killHolder() // whatever a first client costs a server
	budget, anon, shared := memory()
	for range 5 {
		killHolder()
		if st := stat(t, s); st.Unclean != st.Blocks || st.Direct != 0 || st.Locks != 0 {
			t.Errorf("after the death: %d of %d blocks unclean, %d direct mappings, %d locks", st.Unclean, st.Blocks, st.Direct, st.Locks)
		}
		holds(t, s, 0, size, 7)
		write(t, s, stamped(size, 0, 1), 0)
		if st := stat(t, s); st.Unclean != 0 {
			t.Errorf("%d blocks unclean after they were written anew", st.Unclean)
		}
	}
	b, a, sh := memory()
	if b != budget {
		t.Errorf("the budget had %d bytes used and has %d", budget, b)
	}
	if more := a - anon; more > 24<<20 {
		t.Errorf("%d bytes more of the server's own memory", more)
	}
	if more := sh - shared; more > 4<<20 {
		t.Errorf("%d bytes more of shared memory", more)
	}
	for _, abandoned := range []bool{true, false} { // the bytes before 50, that nobody has locked since
		l, err := s.Lock(t.Context(), 0, size, memspan.Exclusive)
		check(t, err)
		if l.Abandoned() != abandoned {
			t.Errorf("the lock is abandoned: %v, want %v", l.Abandoned(), abandoned)
		}
		check(t, l.Unlock(t.Context()))
	}
}

// A client that has the memory may do with it what it wants: the server lives,
// and other clients' spans are what they were.
func TestHostileMapper(t *testing.T) {
	t.Parallel()
	d := start(t, settings{Process: true})
	c := d.dial(t, "unix")
	const size = 4 << 20
	mine := alloc(t, c, memspan.SpanConfig{Name: "mine", Size: size})
	write(t, mine, stamped(size, 0, 1), 0)
	target := alloc(t, c, memspan.SpanConfig{Name: "target", Size: size})
	shadow := mapped(t, open(t, d.dial(t, "tcp"), target), 0, size, memspan.ReadWrite)

	p := d.peer(t)
	m, f := p.mapFile(p.open("target"), size, control.ModeReadWrite)
	for _, n := range []int64{0, 4096, size - 1, size + 1, 1 << 40} {
		if err := f.Truncate(n); !errors.Is(err, syscall.EPERM) {
			t.Errorf("truncating the span's memory to %d: %v, want %v", n, err, syscall.EPERM)
		}
	}
	region, err := memfd.Open(f, size)
	check(t, err)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range region.Bytes() {
		region.Bytes()[i] = byte(r.Uint32())
	}
	check(t, region.Punch(0, size)) // all pages gone
	if got := read(t, target, 0, size); !bytes.Equal(got, make([]byte, size)) {
		t.Error("pages taken away do not read as zeros")
	}
	check(t, region.Punch(1<<20, 2<<20))
	write(t, target, stamped(size, 0, 2), 0)
	check(t, region.Punch(4096, 4096))
	p.control(control.OpFlush, control.Flush{Mapping: m.Mapping}, nil)
	check(t, region.Punch(0, size))
	p.control(control.OpUnmap, control.Mapping{Mapping: m.Mapping}, nil)
	check(t, shadow.Invalidate(t.Context()))
	unmap(t, shadow)
	// Once more, and gone in the middle of it.
	_, again := p.mapFile(p.open("target"), size, control.ModeReadWrite)
	second, err := memfd.Open(again, size)
	check(t, err)
	check(t, second.Punch(0, size))
	check(t, p.conn.Close())
	sessions(t, c, 2)
	check(t, region.Close())
	check(t, second.Close())

	holds(t, mine, 0, size, 1)
	write(t, target, stamped(size, 0, 3), 0)
	holds(t, target, 0, size, 3)
	check(t, target.Free(t.Context()))
	fresh := alloc(t, c, memspan.SpanConfig{Size: size})
	if !bytes.Equal(read(t, fresh, 0, size), make([]byte, size)) {
		t.Error("a new span has another's bytes")
	}
}

// A read-only mapping's descriptor cannot be mapped writable, and memory that
// was handed out is never another span's.
func TestHandedOutMemoryIsNotReused(t *testing.T) {
	t.Parallel()
	d := start(t, settings{})
	c := d.dial(t, "unix")
	const size = 1 << 20
	s := alloc(t, c, memspan.SpanConfig{Name: "old", Size: size})
	p := d.peer(t)
	_, ro := p.mapFile(p.open("old"), size, control.ModeRead)
	if _, err := memfd.MapRange(ro, 0, size, true); err == nil {
		t.Error("a read-only mapping can be mapped writable")
	}
	view, err := memfd.MapRange(ro, 0, size, false)
	check(t, err)
	check(t, s.Free(t.Context()))
	for range 8 {
		fresh := alloc(t, c, memspan.SpanConfig{Size: size})
		write(t, fresh, bytes.Repeat([]byte{0xee}, size), 0)
		if i := bytes.IndexByte(view, 0xee); i >= 0 {
			t.Fatalf("a freed span's mapping shows another span's byte %d", i)
		}
		check(t, fresh.Free(t.Context()))
	}
	check(t, memfd.Unmap(view))
}
