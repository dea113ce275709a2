// SPDX-License-Identifier: Apache-2.0

//go:build linux

package e2e

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/memspan/memspan"
)

// busyArgs tell the busy process what to do.
type busyArgs struct{ Address, Span string }

// busyRole uses a span in every way there is, until it is killed.
func busyRole(ctx context.Context, c *console) error {
	var args busyArgs
	client, err := c.begin(ctx, &args, &args.Address, memspan.Options{})
	if err != nil {
		return err
	}
	s, err := client.Open(ctx, args.Span)
	if err != nil {
		return err
	}
	if _, err := s.Lock(ctx, 0, 10, memspan.Exclusive); err != nil {
		return err
	}
	m, err := s.Map(ctx, 0, s.Size(), memspan.ReadWrite)
	if err != nil {
		return err
	}
	if err := c.say("busy"); err != nil {
		return err
	}
	p := make([]byte, s.Size())
	for round := uint64(0); ; round++ {
		stamp(m.Bytes()[:s.Size()/2], 0, round)
		if _, err := m.Flush(ctx); err != nil {
			return err
		}
		if _, err := s.WriteAt(ctx, p[:s.Size()/2], s.Size()/2); err != nil {
			return err
		}
		if _, err := s.ReadAt(ctx, p, 0); err != nil {
			return err
		}
	}
}

// A client that dies in the middle of its work does not disturb another.
func TestDeathDoesNotDisturb(t *testing.T) {
	t.Parallel()
	d := start(t, settings{Process: true})
	judge := d.dial(t, "unix")
	target := alloc(t, judge, memspan.SpanConfig{Name: "target", Size: 3<<20 + 1})
	for _, transport := range transports {
		var rounds atomic.Int64
		stop := make(chan struct{})
		var work sync.WaitGroup
		for _, own := range transports {
			s := alloc(t, d.dial(t, own), memspan.SpanConfig{Size: 1<<20 + 77})
			work.Go(func() {
				for round := uint64(0); ; round++ {
					select {
					case <-stop:
						return
					default:
					}
					p := stamped(int(s.Size()), 0, round)
					if _, err := s.WriteAt(t.Context(), p, 0); err != nil {
						t.Errorf("%s: %v", own, err)
						return
					}
					if _, err := s.ReadAt(t.Context(), p, 0); err != nil || wrong(p, 0, round) >= 0 {
						t.Errorf("%s: byte %d is wrong, %v", own, wrong(p, 0, round), err)
						return
					}
					rounds.Add(1)
				}
			})
		}
		for range 3 {
			p := child(t, "busy", busyArgs{d.Addresses[transport], "target"})
			var said string
			p.hear(&said)
			since := rounds.Load()
			eventually(t, "traffic beside the busy client", func() bool { return rounds.Load() > since+3 || t.Failed() })
			p.kill()
			since = rounds.Load()
			eventually(t, "traffic after the death", func() bool { return rounds.Load() > since+3 || t.Failed() })
		}
		close(stop)
		work.Wait()
	}
	sessions(t, judge, 1+len(transports)*len(transports))
	if st := stat(t, target); st.Direct != 0 || st.Shadow != 0 || st.Locks != 0 {
		t.Errorf("the dead left %d direct and %d shadow mappings and %d locks", st.Direct, st.Shadow, st.Locks)
	}
	read(t, target, 0, 3<<20+1)
}

// A server that stops says so to those that have memory mapped, lets them flush
// and work in flight end, and ends well.
func TestShutdownLetsWorkEnd(t *testing.T) {
	t.Parallel()
	for _, process := range []bool{false, true} {
		t.Run(fmt.Sprintf("process-%v", process), func(t *testing.T) {
			d := start(t, settings{Process: process})
			var mappings []*memspan.Mapping
			for _, transport := range transports {
				c := d.dial(t, transport)
				s := alloc(t, c, memspan.SpanConfig{Name: transport, Size: 2 << 20})
				mappings = append(mappings, mapped(t, s, 0, 2<<20, memspan.ReadWrite))
			}
			writer := d.dial(t, "tcp")
			s := alloc(t, writer, memspan.SpanConfig{Size: 32 << 20})
			written := make(chan error, 1)
			go func() {
				_, err := s.WriteAt(t.Context(), make([]byte, 32<<20), 0)
				written <- err
			}()
			stopped := make(chan error, 1)
			go func() { stopped <- d.shutdown() }()
			for _, m := range mappings {
				over(t, m)
				want(t, "the mapping", m.Err(), memspan.ErrClosed)
			}
			for _, m := range mappings {
				stamp(m.Bytes(), 0, 9)
				flush(t, m)
				unmap(t, m)
			}
			if err := <-written; err != nil && !errors.Is(err, memspan.ErrPeerLost) && !errors.Is(err, memspan.ErrClosed) {
				t.Errorf("a write when the server stopped: %v", err)
			}
			check(t, <-stopped)
			<-writer.Done()
			want(t, "a client of a stopped server", writer.Err(), memspan.ErrPeerLost)
			_, err := memspan.Dial(t.Context(), d.Addresses["unix"], nil)
			want(t, "dialing a stopped server", err, memspan.ErrPeerLost)
		})
	}
}

// Many clients over all transports do all there is to do at once, each in a
// region of its own whose pages and blocks it shares with its neighbours. Each
// region is what its owner's model says.
func TestManyClients(t *testing.T) {
	t.Parallel()
	d := start(t, settings{VRAM: true})
	const clients, region = 50, 100_003
	ops := 40
	if slow() {
		ops = 1000
	}
	boss := d.dial(t, "unix")
	var shared []*memspan.Span
	for _, cfg := range []memspan.SpanConfig{
		{Size: clients * region},
		{Size: clients * region, Tier: memspan.On(memspan.VRAM)},
		{Size: clients * region, Tier: memspan.On(memspan.VRAM), Home: memspan.On(memspan.Host), Policy: memspan.WriteThrough},
	} {
		shared = append(shared, alloc(t, boss, cfg))
	}
	regions := make([][]*userRegion, clients)
	var work sync.WaitGroup
	for i := range clients {
		tracking := memspan.TrackPages
		if i%2 == 0 {
			tracking = memspan.TrackCompare
		}
		c := d.dial(t, transports[i%3], memspan.Options{Tracking: tracking, Name: fmt.Sprint("client ", i)})
		for _, s := range shared {
			regions[i] = append(regions[i], &userRegion{open(t, c, s), int64(i) * region, make([]byte, region)})
		}
		work.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 12))
			for n := range ops {
				if err := regions[i][r.IntN(len(shared))].act(t.Context(), r); err != nil {
					t.Errorf("client %d over %s, operation %d: %v", i, transports[i%3], n, err)
					return
				}
			}
		})
	}
	work.Wait()
	for k, s := range shared {
		got := read(t, s, 0, clients*region)
		for i := range clients {
			u := regions[i][k]
			if at := differ(got[u.off:u.off+region], u.model); at >= 0 {
				t.Errorf("span %d: byte %d of client %d (%d of the span) is wrong", k, at, i, u.off+int64(at))
			}
		}
	}
}

// A userRegion is bytes of a span that one client alone writes, and what they
// should be.
type userRegion struct {
	span  *memspan.Span
	off   int64
	model []byte
}

// part picks some of the region.
func (u *userRegion) part(r *rand.Rand) (at, n int64) {
	n = 1 + r.Int64N(int64(len(u.model)))
	if r.IntN(2) == 0 {
		n = min(n, 1+r.Int64N(500))
	}
	return r.Int64N(int64(len(u.model)) - n + 1), n
}

// act does one thing to the region, and to its model.
func (u *userRegion) act(ctx context.Context, r *rand.Rand) error {
	at, n := u.part(r)
	seed := r.Uint64()
	switch r.IntN(6) {
	case 0:
		stamp(u.model[at:at+n], at, seed)
		_, err := u.span.WriteAt(ctx, u.model[at:at+n], u.off+at)
		return err
	case 1:
		p := make([]byte, n)
		if _, err := u.span.ReadAt(ctx, p, u.off+at); err != nil {
			return err
		}
		if i := differ(p, u.model[at:at+n]); i >= 0 {
			return fmt.Errorf("read byte %d of the region wrong", at+int64(i))
		}
		return nil
	case 2:
		return u.mapAndStore(ctx, r, at, n, seed)
	case 3:
		for i := range n {
			u.model[at+i] = byte(uint32(seed) >> (i % 4 * 8))
		}
		_, err := u.span.Fill(ctx, u.off+at, n, uint32(seed))
		return err
	case 4: // to another place in the region
		to := r.Int64N(int64(len(u.model)) - n + 1)
		if at < to+n && to < at+n {
			return nil
		}
		copy(u.model[to:to+n], u.model[at:at+n])
		_, err := u.span.Copy(ctx, u.off+to, u.span, u.off+at, n)
		return err
	}
	return u.lockAndAdd(ctx, at)
}

func (u *userRegion) mapAndStore(ctx context.Context, r *rand.Rand, at, n int64, seed uint64) error {
	mode := memspan.ReadWrite
	if r.IntN(2) == 0 {
		mode |= memspan.Shadow
	}
	m, err := u.span.Map(ctx, u.off+at, n, mode)
	if err != nil {
		return err
	}
	if i := differ(m.Bytes(), u.model[at:at+n]); i >= 0 {
		return fmt.Errorf("mapped byte %d of the region wrong (direct: %v)", at+int64(i), m.Direct())
	}
	for range 1 + r.IntN(3) {
		k := r.Int64N(n)
		end := k + 1 + r.Int64N(n-k)
		stamp(m.Bytes()[k:end], k, seed)
		stamp(u.model[at+k:at+end], k, seed)
		// A neighbour's direct mapping, when released, counts as a change of
		// the whole block.
		if err := settle(ctx, m); err != nil {
			return err
		}
	}
	return m.Unmap(ctx)
}

// lockAndAdd changes a number of the region under a lock.
func (u *userRegion) lockAndAdd(ctx context.Context, at int64) error {
	at = min(at, int64(len(u.model))-8)
	l, err := u.span.Lock(ctx, u.off+at, 8, memspan.Exclusive)
	if err != nil {
		return err
	}
	p := u.model[at : at+8]
	binary.LittleEndian.PutUint64(p, binary.LittleEndian.Uint64(p)+1)
	if _, err := u.span.WriteAt(ctx, p, u.off+at); err != nil {
		return err
	}
	return l.Unlock(ctx)
}

// mapperArgs tell the mapper process what to do.
type mapperArgs struct {
	Address string
	Times   int
}

// mapperRole maps, stores to and unmaps one span after the other, and says how
// much its memory grew over them, its own and shared, and how many descriptors
// more it has.
func mapperRole(ctx context.Context, c *console) error {
	var args mapperArgs
	client, err := c.begin(ctx, &args, &args.Address, memspan.Options{ShadowPool: 4 << 20})
	if err != nil {
		return err
	}
	r := rand.New(rand.NewPCG(13, 14))
	once := func(i int) error {
		s, err := client.Alloc(ctx, memspan.SpanConfig{Size: 1 + r.Int64N(512<<10)})
		if err != nil {
			return err
		}
		m, err := s.Map(ctx, 0, s.Size(), memspan.ReadWrite)
		if err != nil {
			return err
		}
		for at := 0; at < len(m.Bytes()); at += 4096 { // take its pages
			m.Bytes()[at] = byte(i) | 1
		}
		if i%2 == 0 {
			err = m.Unmap(ctx)
		} else {
			err = m.Discard(ctx)
		}
		return errors.Join(err, s.Close())
	}
	var first [3]int64
	for i := range args.Times + 100 {
		if i == 100 { // the pool is full
			if first, err = footprint(); err != nil {
				return err
			}
		}
		if err := once(i); err != nil {
			return err
		}
	}
	last, err := footprint()
	if err != nil {
		return err
	}
	for i := range last {
		last[i] -= first[i]
	}
	if err := c.say(last); err != nil {
		return err
	}
	return c.wait()
}

func footprint() (f [3]int64, err error) {
	anon, shared, err := resident(os.Getpid())
	if err != nil {
		return f, err
	}
	fds, err := os.ReadDir("/proc/self/fd")
	return [3]int64{anon, shared, int64(len(fds))}, err
}

// After 1,000 mappings of different spans a client's memory is back where it
// was, and the server's budget. Over the unix socket they are direct.
func TestThousandMappings(t *testing.T) {
	t.Parallel()
	d := start(t, settings{Process: true})
	c := d.dial(t, "unix")
	var mappers []*process
	for _, transport := range transports {
		mappers = append(mappers, child(t, "mapper", mapperArgs{d.Addresses[transport], 1000}))
	}
	for i, p := range mappers {
		var grown [3]int64
		p.hear(&grown)
		t.Logf("%s: %d KiB own, %d KiB shared, %d descriptors more", transports[i], grown[0]>>10, grown[1]>>10, grown[2])
		if grown[0] > 24<<20 || grown[1] > 8<<20 || grown[2] > 16 {
			t.Errorf("%s: 1,000 mappings left %d bytes, %d shared bytes and %d descriptors", transports[i], grown[0], grown[1], grown[2])
		}
	}
	st, err := c.Stats(t.Context())
	check(t, err)
	if st.Mappings != 0 || st.Coherency.Total != 0 {
		t.Errorf("the server has %d mappings and %d spans", st.Mappings, st.Coherency.Total)
	}
}
