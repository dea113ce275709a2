// SPDX-License-Identifier: Apache-2.0

//go:build linux

package e2e

import (
	"context"
	"os"
	"strconv"
	"sync"
	"testing"

	"github.com/memspan/memspan"
)

// acts is how many things each of a test's actors does.
func acts() int {
	if slow() {
		return 600
	}
	return 60
}

// play lets actors act at the same time, one over each transport in turn, while
// meanwhile, if any, runs, and has the subjects read once more when all is over.
func play(t *testing.T, d *daemon, h *history, actors []*actor, meanwhile func()) {
	t.Helper()
	var work sync.WaitGroup
	for i, a := range actors {
		if a.dial == nil {
			address := d.Addresses[transports[i%len(transports)]]
			a.dial = func(ctx context.Context) (*memspan.Client, error) {
				return memspan.Dial(ctx, address, &memspan.Options{Token: token})
			}
		}
		work.Go(func() {
			defer a.leave()
			for n := range acts() {
				if err := a.act(t.Context()); err != nil {
					t.Errorf("client %d, act %d: %v", a.id, n, err)
					return
				}
			}
		})
	}
	if meanwhile != nil {
		meanwhile()
	}
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

// With nothing in their way, blocks are registers, in each tier.
func TestBlocksAreLinearizable(t *testing.T) {
	t.Parallel()
	d := start(t, settings{VRAM: true})
	c := d.dial(t, "unix")
	h := new(history)
	var subjects []subject
	for _, tier := range []memspan.Tier{memspan.Host, memspan.VRAM} {
		s := alloc(t, c, memspan.SpanConfig{Size: short, Tier: memspan.On(tier)})
		subjects = append(subjects, subject{key: s.ID(), size: short, safe: true})
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
		subjects = append(subjects, subject{key: s.ID(), size: short, safe: cfg.Policy == memspan.WriteThrough})
	}
	var actors []*actor
	for i := range 6 {
		a := newActor(h, i, seed(t), subjects)
		a.moves = true
		a.suffers = lossy
		actors = append(actors, a)
	}
	play(t, d, h, actors, func() {
		for range acts() / 12 {
			begun := h.begin()
			dead := d.killWorker(t)
			eventually(t, "another worker", func() bool { pid := d.worker(t); return pid != 0 && pid != dead })
			revived(t, c)
			for span, s := range subjects {
				for b := range s.blocks() {
					h.end(len(actors), begun, action{register: register{span, b}, kind: dying}, answer{outcome: done})
				}
			}
		}
	})
	t.Logf("%d reads were told of a loss, %d writes failed, %d were owed", h.count(reading, lost), h.count(writing, failed), h.count(writing, owed))
}
