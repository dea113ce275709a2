// SPDX-License-Identifier: Apache-2.0

//go:build linux

package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/internal/memfd"
)

const block = 1 << 20

// grown is by how much a process's resident memory grew at most, in bytes.
type grown struct {
	Anon   int64 // its own
	Shared int64 // of memfds: bytes of spans, and what is on its way to them
}

// peakOf samples a process's memory until stop is called, which returns how
// much it grew.
func peakOf(pid int) (stop func() (grown, error)) {
	anon, shared, err := resident(pid)
	first, peak := grown{anon, shared}, grown{anon, shared}
	done := make(chan struct{})
	var work sync.WaitGroup
	work.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for err == nil {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			anon, shared, err = resident(pid)
			peak = grown{max(peak.Anon, anon), max(peak.Shared, shared)}
		}
	})
	return func() (grown, error) {
		close(done)
		work.Wait()
		return grown{peak.Anon - first.Anon, peak.Shared - first.Shared}, err
	}
}

// bulkArgs tell the bulk process what to do.
type bulkArgs struct {
	Address string
	Size    int64
}

// bulkRole writes a span in one call, and reads it in another. It says that it
// is ready, and after each call by how much its memory has grown.
func bulkRole(ctx context.Context, c *console) error {
	var args bulkArgs
	client, err := c.begin(ctx, &args, &args.Address, memspan.Options{NoCompression: true})
	if err != nil {
		return err
	}
	s, err := client.Alloc(ctx, memspan.SpanConfig{Size: args.Size})
	if err != nil {
		return err
	}
	region, err := memfd.Create("bulk", args.Size)
	if err != nil {
		return err
	}
	base := stamped(block, 0, 1)
	for off := int64(0); off < args.Size; off += block {
		number(base, off/block)
		memfd.Copy(region.Bytes()[off:off+block], base)
	}
	if _, err := s.WriteAt(ctx, region.Bytes()[:8*block], 0); err != nil { // what every client costs
		return err
	}
	if err := c.say("ready"); err != nil {
		return err
	}
	measured := func(call func(context.Context, []byte, int64) (int, error)) error {
		stop := peakOf(os.Getpid())
		n, err := call(ctx, region.Bytes()[:args.Size], 0)
		g, sampleErr := stop()
		if err := errors.Join(err, sampleErr); err != nil || int64(n) != args.Size {
			return fmt.Errorf("%d of %d bytes: %w", n, args.Size, err)
		}
		return c.say(g)
	}
	if err := measured(s.WriteAt); err != nil {
		return err
	}
	if err := region.Punch(0, args.Size); err != nil {
		return err
	}
	if err := measured(s.ReadAt); err != nil {
		return err
	}
	for off := int64(0); off < args.Size; off += block {
		number(base, off/block)
		if !bytes.Equal(region.Bytes()[off:off+block], base) {
			return fmt.Errorf("block %d came back wrong", off/block)
		}
	}
	return c.wait()
}

// number makes a block one of its own, at both ends and in the middle.
func number(p []byte, n int64) {
	for _, at := range []int{0, len(p) / 2, len(p) - 8} {
		binary.LittleEndian.PutUint64(p[at:], uint64(n)*0x9e3779b97f4a7c15)
	}
}

// Memory used per transfer is a few chunks, whatever its size, on both sides.
func TestBulkTransferTakesLittleMemory(t *testing.T) {
	t.Parallel()
	const size, bound = 2 << 30, 64 << 20
	d := start(t, settings{Process: true, HostBudget: size + 64<<20})
	p := child(t, "bulk", bulkArgs{d.Addresses["tcp"], size})
	var said string
	p.hear(&said)
	stop := peakOf(d.pid())
	within := func(who string, g grown, held int64) {
		t.Helper()
		t.Logf("%s grew by %d KiB of its own and %d KiB of shared memory, %d KiB of them asked for", who, g.Anon>>10, g.Shared>>10, held>>10)
		if g.Anon > bound || g.Shared > held+bound {
			t.Errorf("%s took %+v bytes of memory, want %d at most beside the %d asked for", who, g, bound, held)
		}
	}
	// The client's own 2 GiB are there when it writes, and made when it reads.
	var g grown
	p.hear(&g)
	within("the client, writing 2 GiB,", g, 0)
	p.hear(&g)
	within("the client, reading 2 GiB,", g, size)
	p.end()
	g, err := stop()
	check(t, err)
	within("the server", g, size) // the span; staging memory is shared memory too
	if g.Shared < size/2 {
		t.Errorf("the server's shared memory grew by %d bytes: what is measured is not the span", g.Shared)
	}
}

// noise returns bytes that do not compress.
func noise(n int, seed uint64) []byte {
	p := make([]byte, n)
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	rand.NewChaCha8(key).Read(p)
	return p
}

// The issue "transfer times out for large data": what takes longer than the
// timeout completes as long as it moves, a single frame too, in both directions
// at once.
func TestSlowLinkCompletes(t *testing.T) {
	t.Parallel()
	for _, f := range []struct {
		size    int
		rate    float64 // bytes per second
		timeout time.Duration
		slow    bool
	}{
		// The timeouts are a good deal less than the transfers take, and a good
		// deal more than a busy machine lets a process wait for its turn.
		{64 << 20, 10e6, 3 * time.Second, false},
		{3 << 20, 0.5e6, 1500 * time.Millisecond, false}, // slower than a frame, which takes 2 s
		{1 << 30, 10e6, 3 * time.Second, true},
	} {
		if f.slow && !slow() {
			continue
		}
		t.Run(fmt.Sprintf("%d-MiB-at-%v-MB/s", f.size>>20, f.rate/1e6), func(t *testing.T) {
			t.Parallel()
			slowLink(t, f.size, f.rate, f.timeout)
		})
	}
}

func slowLink(t *testing.T, size int, rate float64, timeout time.Duration) {
	d := start(t, settings{IOTimeout: timeout})
	opts := memspan.Options{IOTimeout: timeout, NoCompression: true}
	c := dial(t, proxy(t, d.Addresses["tcp"], throttled(rate), throttled(rate)), opts)
	s := alloc(t, c, memspan.SpanConfig{Size: int64(size)})
	other := alloc(t, c, memspan.SpanConfig{Size: int64(size)})
	p, q := noise(size, 1), noise(size, 2)
	write(t, open(t, d.dial(t, "unix"), other), q, 0)

	began := time.Now()
	var both sync.WaitGroup
	both.Go(func() {
		if n, err := s.WriteAt(t.Context(), p, 0); err != nil {
			t.Errorf("after %d of %d bytes: %v", n, size, err)
		}
	})
	got := make([]byte, size)
	both.Go(func() {
		if n, err := other.ReadAt(t.Context(), got, 0); err != nil {
			t.Errorf("after %d of %d bytes: %v", n, size, err)
		}
	})
	both.Wait()
	if took := time.Since(began); took < timeout {
		t.Fatalf("the link was not slow: %v", took)
	}
	if !bytes.Equal(got, q) {
		t.Error("read something else")
	}
	if !bytes.Equal(read(t, open(t, d.dial(t, "unix"), s), 0, size), p) {
		t.Error("wrote something else")
	}
}

// A link that stops in the middle of a frame, in either direction, ends what
// waits for it, whichever side loses patience, and for the server the session.
// The memory that was mapped stays memory.
func TestStalledLinkEnds(t *testing.T) {
	t.Parallel()
	// short is more than a busy machine lets a process wait for its turn.
	const short, long, size = 2 * time.Second, time.Hour, 8 << 20
	for name, f := range map[string]struct {
		server, client time.Duration
		up, down       relay
		want           memspan.Code
	}{
		"client, sending":   {long, short, stalled(3<<20 + 77), straight(), memspan.ErrStalled},
		"client, receiving": {long, short, straight(), stalled(3<<20 + 77), memspan.ErrStalled},
		"server, receiving": {short, long, stalled(3<<20 + 77), straight(), memspan.ErrPeerLost},
		"server, sending":   {short, long, straight(), stalled(3<<20 + 77), memspan.ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := start(t, settings{IOTimeout: f.server})
			judge := d.dial(t, "unix")
			s := alloc(t, judge, memspan.SpanConfig{Size: size})
			write(t, s, noise(size, 1), 0)
			address, end := endingProxy(t, d.Addresses["tcp"], f.up, f.down)
			c, err := memspan.Dial(t.Context(), address, &memspan.Options{Token: token, IOTimeout: f.client, NoCompression: true})
			check(t, err)
			defer c.Close()
			o, err := c.Open(t.Context(), s.ID())
			check(t, err)
			m := mapped(t, o, 0, 4096, memspan.ReadWrite)
			stamp(m.Bytes(), 0, 1)
			// Several calls, so that more waits than the sockets on the way hold.
			var calls sync.WaitGroup
			for range 4 {
				calls.Go(func() {
					var err error
					if name == "client, sending" || name == "server, receiving" {
						_, err = o.WriteAt(t.Context(), noise(size, 2), 0)
					} else {
						_, err = o.ReadAt(t.Context(), make([]byte, size), 0)
					}
					want(t, "over a link that stands still", err, f.want)
				})
			}
			lost := memspan.ErrPeerLost
			if name == "server, sending" { // what it says goes the way that is blocked
				sessions(t, judge, 1)
				check(t, c.Close())
				lost = memspan.ErrClosed
			}
			calls.Wait()
			over(t, m)
			want(t, "the client", c.Err(), lost)
			want(t, "the mapping", m.Err(), lost)
			if i := wrong(m.Bytes(), 0, 1); i >= 0 {
				t.Errorf("mapped byte %d changed when the link ended", i)
			}
			_, err = m.Flush(t.Context())
			want(t, "flush", err, lost)
			want(t, "unmap", m.Unmap(t.Context()), lost)
			check(t, m.Discard(t.Context()))
			end()
			sessions(t, judge, 1)
		})
	}
}

// A faultySpan is written over and over, over links with a fault. Its blocks
// are each what one visit made of them.
type faultySpan struct {
	span *memspan.Span // by a good link
	n    int
	seed []uint64 // of each block's bytes
}

func newFaultySpan(t testing.TB, c *memspan.Client, n int) *faultySpan {
	b := &faultySpan{span: alloc(t, c, memspan.SpanConfig{Size: int64(n) * block}), n: n, seed: make([]uint64, n)}
	write(t, b.span, stamped(n*block, 0, 0), 0)
	return b
}

// settle checks every block after a visit that wrote with seed.
func (b *faultySpan) settle(t testing.TB, seed uint64) {
	t.Helper()
	p := read(t, b.span, 0, b.n*block)
	for i := range b.n {
		q, off := p[i*block:(i+1)*block], int64(i)*block
		old, now := wrong(q, off, b.seed[i]), wrong(q, off, seed)
		switch {
		case now < 0:
			b.seed[i] = seed
		case old >= 0:
			t.Fatalf("block %d is neither as it was (but for byte %d) nor as it was to be (but for byte %d)", i, old, now)
		}
	}
}

// visit writes all blocks, by WriteAt or through a mapping, over what may be a
// faulty link, and reads them back. It reports what went wrong; bytes that came
// without an error must be right.
func (b *faultySpan) visit(t testing.TB, address string, seed uint64) error {
	ctx := t.Context()
	c, err := memspan.Dial(ctx, address, &memspan.Options{Token: token, IOTimeout: 2 * time.Second, NoCompression: true})
	if err != nil {
		return err
	}
	defer c.Close()
	s, err := c.Open(ctx, b.span.ID())
	if err != nil {
		return err
	}
	size := int64(b.n) * block
	if seed%2 == 0 {
		if _, err := s.WriteAt(ctx, stamped(int(size), 0, seed), 0); err != nil {
			return err
		}
	} else {
		m, err := s.Map(ctx, 0, size, memspan.ReadWrite)
		if err != nil {
			return err
		}
		for i, old := range b.seed {
			if at := wrong(m.Bytes()[i*block:(i+1)*block], int64(i)*block, old); at >= 0 {
				t.Errorf("visit %d: byte %d of block %d was mapped wrong", seed, at, i)
			}
		}
		stamp(m.Bytes(), 0, seed)
		if err := m.Unmap(ctx); err != nil {
			m.Discard(ctx)
			return err
		}
	}
	p := make([]byte, size)
	if _, err := s.ReadAt(ctx, p, 0); err != nil {
		return err
	}
	if i := wrong(p, 0, seed); i >= 0 {
		t.Errorf("visit %d read byte %d wrong", seed, i)
	}
	return nil
}

// measure returns how many bytes each direction carries at least, for odd and
// even visits.
func (b *faultySpan) measure(t testing.TB, d *daemon) (up, down [2]int64) {
	t.Helper()
	for seed := range uint64(2) {
		var u, v atomic.Int64
		check(t, b.visit(t, proxy(t, d.Addresses["tcp"], counting(&u), counting(&v)), seed+4))
		b.settle(t, seed+4)
		const variation = 500 // of the lengths of numbers in messages
		up[seed], down[seed] = u.Load()-variation, v.Load()-variation
	}
	return up, down
}

// A link cut anywhere leaves every block whole: as it was, or as it was to be.
func TestCutLinkLeavesBlocksWhole(t *testing.T) {
	t.Parallel()
	d := start(t, settings{})
	judge := d.dial(t, "unix")
	b := newFaultySpan(t, judge, 2)
	up, down := b.measure(t, d)
	r := rand.New(rand.NewPCG(5, 6))
	for seed := uint64(6); seed < 30; seed++ {
		way := [2]relay{cut(r.Int64N(up[seed%2])), straight()}
		if seed%4 >= 2 {
			way = [2]relay{straight(), cut(r.Int64N(down[seed%2]))}
		}
		if err := b.visit(t, proxy(t, d.Addresses["tcp"], way[0], way[1]), seed); !errors.Is(err, memspan.ErrPeerLost) {
			t.Errorf("visit %d over a link that is cut: %v, want %v", seed, err, memspan.ErrPeerLost)
		}
		sessions(t, judge, 1) // no more is to come
		b.settle(t, seed)
	}
}

// A bit that turns around on a plain link, in either direction, is found: it
// ends the connection, and nothing wrong is stored or read.
func TestFlippedBitIsFound(t *testing.T) {
	t.Parallel()
	d := start(t, settings{IOTimeout: 2 * time.Second})
	judge := d.dial(t, "unix")
	b := newFaultySpan(t, judge, 2)
	up, down := b.measure(t, d)
	r := rand.New(rand.NewPCG(7, 8))
	for seed := uint64(6); seed < 30; seed++ {
		var at int64
		pick := func(total int64) int64 {
			if at = r.Int64N(total); seed%5 == 0 {
				at = r.Int64N(600) // the handshake, and first headers
			}
			return at
		}
		way := [2]relay{flipped(pick(up[seed%2]), r.UintN(8)), straight()}
		if seed%4 >= 2 {
			way = [2]relay{straight(), flipped(pick(down[seed%2]), r.UintN(8))}
		}
		err := b.visit(t, proxy(t, d.Addresses["tcp"], way[0], way[1]), seed)
		if err == nil {
			t.Errorf("visit %d: a flipped bit of byte %d went unnoticed", seed, at)
		} else if seed%4 >= 2 && !errors.Is(err, memspan.ErrCorrupt) && at > 600 {
			t.Errorf("visit %d: a flipped bit of byte %d of what was received: %v, want %v", seed, at, err, memspan.ErrCorrupt)
		}
		sessions(t, judge, 1)
		b.settle(t, seed)
	}
}

// A sparse flush is applied to each block whole or not at all, too.
func TestCutSparseFlush(t *testing.T) {
	t.Parallel()
	d := start(t, settings{})
	judge := d.dial(t, "unix")
	s := alloc(t, judge, memspan.SpanConfig{Size: 2 * block})
	model := stamped(2*block, 0, 0)
	write(t, s, model, 0)
	change := func(p []byte, seed uint64) { // 150 runs in each block
		r := rand.New(rand.NewPCG(seed, 1))
		for range 300 {
			off := r.IntN(2*block - 500)
			stamp(p[off:off+1+r.IntN(500)], int64(off), seed)
		}
	}
	visit := func(address string, seed uint64) error {
		c, err := memspan.Dial(t.Context(), address, &memspan.Options{Token: token, NoCompression: true})
		if err != nil {
			return err
		}
		defer c.Close()
		o, err := c.Open(t.Context(), s.ID())
		if err != nil {
			return err
		}
		m, err := o.Map(t.Context(), 0, 2*block, memspan.ReadWrite)
		if err != nil {
			return err
		}
		change(m.Bytes(), seed)
		defer m.Discard(context.WithoutCancel(t.Context()))
		_, err = m.Flush(t.Context())
		return err
	}
	var up, down atomic.Int64
	check(t, visit(proxy(t, d.Addresses["tcp"], counting(&up), counting(&down)), 1))
	change(model, 1)
	if i := differ(read(t, s, 0, 2*block), model); i >= 0 {
		t.Fatalf("byte %d is wrong after a flush", i)
	}
	r := rand.New(rand.NewPCG(9, 10))
	whole := 0
	for seed := uint64(2); seed < 22; seed++ {
		way := [2]relay{cut(r.Int64N(up.Load())), straight()}
		if seed%2 == 0 {
			way = [2]relay{straight(), cut(down.Load() - 1 - r.Int64N(400))} // the answers
		}
		visit(proxy(t, d.Addresses["tcp"], way[0], way[1]), seed) // fails, mostly
		sessions(t, judge, 1)
		next := bytes.Clone(model)
		change(next, seed)
		got := read(t, s, 0, 2*block)
		for lo := 0; lo < 2*block; lo += block {
			hi := lo + block
			switch {
			case bytes.Equal(got[lo:hi], next[lo:hi]):
				copy(model[lo:hi], next[lo:hi])
				whole++
			case !bytes.Equal(got[lo:hi], model[lo:hi]):
				t.Fatalf("visit %d: the block at %d is torn", seed, lo)
			}
		}
	}
	t.Logf("%d blocks of 40 were stored", whole)
	if whole == 0 || whole == 40 {
		t.Error("the cuts were all in one place")
	}
}
