// SPDX-License-Identifier: Apache-2.0

//go:build linux

package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/memspan/memspan"
)

// acts is how many things each of a test's actors does.
func acts() int {
	if slow() {
		return 600
	}
	return 60
}

// play lets actors act at the same time, one over each transport in turn, for as
// long as meanwhile, if any, runs at least, and has the subjects read once more
// when all is over.
func play(t *testing.T, d *daemon, h *history, actors []*actor, meanwhile func()) {
	t.Helper()
	var work sync.WaitGroup
	over := make(chan struct{})
	goesOn := func() bool {
		select {
		case <-over:
			return false
		default:
			return true
		}
	}
	for i, a := range actors {
		if a.dial == nil {
			address := d.Addresses[transports[i%len(transports)]]
			a.dial = func(ctx context.Context) (*memspan.Client, error) {
				return memspan.Dial(ctx, address, &memspan.Options{Token: token})
			}
		}
		work.Go(func() {
			defer a.leave()
			for n := 0; n < acts() || goesOn(); n++ {
				if err := a.act(t.Context()); err != nil {
					t.Errorf("client %d, act %d: %v", a.id, n, err)
					return
				}
			}
		})
	}
	func() {
		defer close(over)
		if meanwhile != nil {
			meanwhile()
		}
	}()
	work.Wait()
	judge := newActor(h, len(actors), 0, actors[0].subjects)
	judge.dial = actors[0].dial
	defer judge.leave()
	check(t, judge.readAll(t.Context()))
	h.check(t)
	if h.count(writing, done) == 0 || h.count(reading, done) == 0 {
		t.Error("nothing was tested")
	}
}

// seed is of all actors.
func seed(t *testing.T) uint64 {
	t.Helper()
	text := os.Getenv("MEMSPAN_SEED")
	if text == "" {
		return 11
	}
	n, err := strconv.ParseUint(text, 10, 64)
	check(t, err)
	return n
}

// short is the length of spans whose last block is a short one.
const short = block + 5000

// died records, for a client of no number, that since begun something died that
// may have had the newest version of any block.
func died(h *history, client int, begun int64, subjects []subject) {
	for span, s := range subjects {
		for b := range s.blocks() {
			h.end(client, begun, action{register: register{span, b}, kind: dying}, answer{outcome: done})
		}
	}
}

// With nothing in their way, blocks are registers, in each tier.
func TestBlocksAreLinearizable(t *testing.T) {
	t.Parallel()
	d := start(t, settings{VRAM: true})
	c := d.dial(t, "unix")
	h := new(history)
	var subjects []subject
	for _, tier := range []memspan.Tier{memspan.Host, memspan.VRAM} {
		s := alloc(t, c, memspan.SpanConfig{Size: short, Tier: memspan.On(tier)})
		subjects = append(subjects, subject{key: s.ID(), size: short, safe: true, home: tier})
	}
	var actors []*actor
	for i := range 6 {
		a := newActor(h, i, seed(t), subjects)
		a.moves = true
		a.cuts = i > 3
		actors = append(actors, a)
	}
	play(t, d, h, actors, nil)
}

// Workers are killed with the newest version of some blocks. What home holds is
// never lost, what is lost is said to be, and all else are registers.
func TestBlocksAreLinearizableWhileWorkersDie(t *testing.T) {
	t.Parallel()
	d := start(t, settings{VRAM: true, Process: true})
	c := d.dial(t, "unix")
	h := new(history)
	onDevice := memspan.On(memspan.VRAM)
	var subjects []subject
	for _, cfg := range []memspan.SpanConfig{
		{Tier: onDevice},
		{Tier: onDevice, Home: memspan.On(memspan.Host), Policy: memspan.WriteThrough},
		{Tier: memspan.On(memspan.Host), Home: onDevice},
	} {
		cfg.Size = short
		s := alloc(t, c, cfg)
		safe := cfg.Policy == memspan.WriteThrough
		subjects = append(subjects, subject{key: s.ID(), size: short, safe: safe, home: s.Info().Home, saves: safe})
	}
	var actors []*actor
	for i := range 6 {
		a := newActor(h, i, seed(t), subjects)
		a.moves = true
		a.suffers = func(_ subject, err error) bool { return lossy(err) }
		actors = append(actors, a)
	}
	play(t, d, h, actors, func() {
		for range acts() / 12 {
			begun := h.begin()
			dead := d.killWorker(t)
			eventually(t, "another worker", func() bool { pid := d.worker(t); return pid != 0 && pid != dead })
			revived(t, c)
			died(h, len(actors), begun, subjects)
		}
	})
	t.Logf("%d reads were told of a loss, %d writes failed, %d were owed", h.count(reading, lost), h.count(writing, failed), h.count(writing, owed))
}

// Daemons are killed, or stopped, and started again, with too little RAM for all
// blocks. What is durable is never lost, what is written back later is there or
// said to be lost, and all else are registers.
func TestBlocksAreLinearizableWhileDaemonsDie(t *testing.T) {
	t.Parallel()
	onDisk := memspan.On(memspan.Disk)
	dieAndComeBack(t, settings{HostBudget: 6 * block}, []memspan.SpanConfig{
		{Home: onDisk, Policy: memspan.WriteThrough},
		{Home: onDisk},
		{Tier: onDisk, Home: onDisk, Policy: memspan.WriteThrough},
		{Home: onDisk, Policy: memspan.WriteAll},
	})
}

// The same with device memory too, whose workers are killed in between.
func TestBlocksAreLinearizableInThreeTiers(t *testing.T) {
	t.Parallel()
	onDevice, onDisk := memspan.On(memspan.VRAM), memspan.On(memspan.Disk)
	dieAndComeBack(t, settings{VRAM: true, VRAMBudget: 6 * block, HostBudget: 6 * block}, []memspan.SpanConfig{
		{Tier: onDevice, Home: onDisk, Policy: memspan.WriteThrough},
		{Tier: onDevice, Home: onDisk},
		{Tier: onDevice, Home: onDisk, Policy: memspan.WriteAll},
	})
}

func dieAndComeBack(t *testing.T, set settings, spans []memspan.SpanConfig) {
	const size = 2*block + short
	m := startMortal(t, set)
	c, err := m.dialer("unix")(t.Context())
	check(t, err)
	var subjects []subject
	for i, cfg := range spans {
		cfg.Name, cfg.Size = fmt.Sprint("mortal-", i), size
		_, err := c.Alloc(t.Context(), cfg)
		check(t, err)
		safe := cfg.Policy != memspan.WriteBack
		subjects = append(subjects, subject{key: cfg.Name, size: size, safe: safe, home: memspan.Disk, saves: true, one: safe})
	}
	check(t, c.Close())
	h := new(history)
	var actors []*actor
	for i := range 6 {
		a := newActor(h, i, seed(t), subjects)
		a.moves = true
		a.suffers = func(s subject, err error) bool {
			return gone(err) || set.VRAM && lossy(err) || !s.safe && errors.Is(err, memspan.ErrDataLoss)
		}
		a.dial, a.closing = m.dialer(transports[i%len(transports)]), m.closing
		actors = append(actors, a)
	}
	play(t, m.d, h, actors, func() {
		r := rand.New(rand.NewPCG(seed(t), 99))
		for n := range acts() / 12 {
			time.Sleep(upTo(r, 200*time.Millisecond))
			begun := h.begin()
			switch {
			case n%3 == 2:
				check(t, m.stop()) // which loses nothing
				h.death()
				m.restart(t, r)
			case n%3 == 1 && set.VRAM:
				dead := m.d.killWorker(t)
				eventually(t, "another worker", func() bool { pid := m.d.worker(t); return pid != 0 && pid != dead })
				died(h, len(actors), begun, subjects)
			default:
				m.kill()
				h.death()
				died(h, len(actors), begun, subjects)
				m.restart(t, r)
			}
		}
	})
	t.Logf("%d reads were told of a loss, %d writes failed, %d were owed", h.count(reading, lost), h.count(writing, failed), h.count(writing, owed))
}
