// SPDX-License-Identifier: Apache-2.0

//go:build linux

package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/memspan/memspan"
)

// An image is what a span holds, cell by cell.
type image [][ncells]uint64

func (m image) equal(other image) bool { return slices.Equal(m, other) }

// A keeper changes one span, alone, and knows what it must hold after a crash.
type keeper struct {
	subject
	rand    *rand.Rand
	dial    func(context.Context) (*memspan.Client, error)
	held    image  // acknowledged
	tried   image  // asked for last, if that was not answered; else nil
	version uint64 // of the last commit that was answered with one
	acks    int
}

func newKeeper(key string, size int, r *rand.Rand) *keeper {
	k := &keeper{subject: subject{key: key, size: size}, rand: r}
	k.held = make(image, k.blocks())
	return k
}

// live changes the span until the daemon dies.
func (k *keeper) live(ctx context.Context) error {
	c, err := k.dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close() // its link may be gone
	s, err := c.Open(ctx, k.key)
	if err != nil {
		return err
	}
	m, err := s.Map(ctx, 0, int64(k.size), memspan.ReadWrite|memspan.Shadow)
	if err != nil {
		return err
	}
	defer func() { m.Discard(context.Background()) }() // so may be the mapping
	buf := make([]byte, k.size)
	for {
		if k.rand.IntN(2) == 0 {
			err = k.write(ctx, s, buf)
			if err == nil {
				err = m.Invalidate(ctx)
			}
		} else {
			err = k.flush(ctx, m)
		}
		if err != nil {
			return err
		}
	}
}

// write changes neighbouring cells, of several blocks at times, by one WriteAt.
func (k *keeper) write(ctx context.Context, s *memspan.Span, buf []byte) error {
	from := k.rand.IntN(len(k.held) * ncells)
	to := from + 1 + k.rand.IntN(len(k.held)*ncells-from)
	next, value := slices.Clone(k.held), k.rand.Uint64()
	for i := from; i < to; i++ {
		k.put(buf, next, i/ncells, i%ncells, value)
	}
	begin, _ := k.place(from/ncells, from%ncells)
	_, end := k.place((to-1)/ncells, (to-1)%ncells)
	k.tried = next
	if _, err := s.WriteAt(ctx, buf[begin:end], begin); err != nil {
		return err
	}
	k.settled(next)
	return nil
}

// flush changes cells here and there, in all blocks at times, by one Flush.
func (k *keeper) flush(ctx context.Context, m *memspan.Mapping) error {
	next, value := slices.Clone(k.held), k.rand.Uint64()
	large := k.rand.IntN(4) == 0
	for b := range next {
		for cell := range ncells {
			if k.rand.IntN(2) == 0 && (large || cell < 2) {
				k.put(m.Bytes(), next, b, cell, value)
			}
		}
	}
	k.tried = next
	done, err := m.Flush(ctx)
	if err != nil {
		return err
	}
	k.settled(next)
	k.version = done.Version
	return nil
}

func (k *keeper) settled(next image) {
	k.held, k.tried = next, nil
	k.acks++
}

// place returns where a cell begins and ends.
func (k *keeper) place(b, cell int) (begin, end int64) {
	off, n := k.extent(b)
	edges := cells(n)
	return off + int64(edges[cell]), off + int64(edges[cell+1])
}

func (k *keeper) put(p []byte, m image, b, cell int, value uint64) {
	begin, end := k.place(b, cell)
	mark(p[begin:end], begin, value)
	m[b][cell] = value
}

// verify checks what the span holds after a restart: what was acknowledged, or
// all of the change that got no answer.
func (k *keeper) verify(ctx context.Context) error {
	c, err := k.dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	s, err := c.Open(ctx, k.key)
	if err != nil {
		return err
	}
	p := make([]byte, k.size)
	if _, err := s.ReadAt(ctx, p, 0); err != nil {
		return err
	}
	got := make(image, len(k.held))
	for b := range got {
		off, n := k.extent(b)
		if err := values(p[off:], off, cells(n), 0, ncells, &got[b]); err != nil {
			return fmt.Errorf("block %d is torn: %w", b, err)
		}
	}
	st, err := s.Stat(ctx)
	if err != nil {
		return err
	}
	switch {
	case st.Version < k.version:
		return fmt.Errorf("version %d after the restart, %d was acknowledged", st.Version, k.version)
	case k.tried != nil && got.equal(k.tried):
		k.held = k.tried
	case !got.equal(k.held):
		return fmt.Errorf("holds %x, acknowledged %x, tried %x", got, k.held, k.tried)
	}
	k.tried = nil
	return nil
}

// A daemon is killed at hundreds of moments, while clients write and flush
// several blocks at once. After each restart every acknowledged change is there,
// whole, and of the others all or nothing.
func TestCrashesLeaveWholeFlushes(t *testing.T) {
	t.Parallel()
	kills := 200
	if raced {
		kills = 40
	}
	if slow() {
		kills *= 10
	}
	m := startMortal(t, settings{HostBudget: 8 * block})
	r := rand.New(rand.NewPCG(seed(t), 1))
	c, err := m.dialer("unix")(t.Context())
	check(t, err)
	onDisk := memspan.On(memspan.Disk)
	var keepers []*keeper
	for i, cfg := range []memspan.SpanConfig{
		{Home: onDisk, Policy: memspan.WriteThrough},
		{Tier: onDisk, Home: onDisk},
		{Home: onDisk, Policy: memspan.WriteThrough},
		{Home: onDisk, Policy: memspan.WriteAll},
	} {
		cfg.Name, cfg.Size = fmt.Sprint("kept-", i), block+short
		_, err := c.Alloc(t.Context(), cfg)
		check(t, err)
		k := newKeeper(cfg.Name, block+short, rand.New(rand.NewPCG(seed(t), uint64(2+i))))
		k.dial = m.dialer(transports[i%len(transports)])
		keepers = append(keepers, k)
	}
	check(t, c.Close())
	inFlight, kept := 0, 0
	for n := range kills {
		var work sync.WaitGroup
		for _, k := range keepers {
			work.Go(func() {
				if err := k.live(t.Context()); !gone(err) {
					t.Errorf("%s, life %d: %v", k.key, n, err)
				}
			})
		}
		time.Sleep(upTo(r, 150*time.Millisecond))
		m.kill()
		work.Wait()
		m.restart(t, r)
		for _, k := range keepers {
			tried := k.tried
			if err := k.verify(t.Context()); err != nil {
				t.Fatalf("%s, after kill %d: %v", k.key, n+1, err)
			}
			if tried != nil {
				inFlight++
				if k.held.equal(tried) {
					kept++
				}
			}
		}
		if t.Failed() {
			return
		}
	}
	acks := 0
	for _, k := range keepers {
		acks += k.acks
	}
	t.Logf("%d kills: %d changes were acknowledged, %d were under way, of which %d had been stored", kills, acks, inFlight, kept)
	if acks == 0 || inFlight == 0 {
		t.Error("nothing was tested")
	}
}
