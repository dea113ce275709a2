// SPDX-License-Identifier: Apache-2.0

package blocks

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
)

// Helpers are what goroutines share who look at many blocks: how many more of
// them may be running to help. All together they are as many as there are
// processors, less one, so that many who work at once do not get in each other's
// way, nor take memory for each processor each. The methods may be called
// concurrently.
type Helpers struct{ busy chan struct{} }

// NewHelpers returns helpers for all processors.
func NewHelpers() *Helpers {
	return &Helpers{busy: make(chan struct{}, runtime.GOMAXPROCS(0)-1)}
}

// How many blocks are taken at a time: enough that helping pays, and at most as
// many as a large page has, which two who touched it first would both fill with
// zeros.
const (
	leastStep = 4
	mostStep  = 32
	steps     = 32 // that some work is divided into at least, if that is not too little
)

// Each calls f for the numbers from 0 to n-1, each once, in no order, in this
// goroutine and in others as far as there are helpers free and enough to do. It
// ends early when ctx ends or f fails, with that error. When it returns nobody
// runs f any more.
func (h *Helpers) Each(ctx context.Context, n int, f func(i int) error) error {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	step := min(max(n/steps, leastStep), mostStep)
	var next atomic.Int64
	work := func() {
		for {
			end := int(next.Add(int64(step)))
			for i := end - step; i < min(end, n); i++ {
				if ctx.Err() != nil {
					return
				}
				if err := f(i); err != nil {
					fail(err)
					return
				}
			}
			if end >= n {
				return
			}
		}
	}
	var helping sync.WaitGroup
	for range (n - 1) / step {
		if !h.take() {
			break
		}
		helping.Go(func() {
			defer h.give()
			work()
		})
	}
	work()
	helping.Wait()
	return context.Cause(ctx)
}

func (h *Helpers) take() bool {
	select {
	case h.busy <- struct{}{}:
		return true
	default:
		return false
	}
}

func (h *Helpers) give() { <-h.busy }
