// SPDX-License-Identifier: Apache-2.0

package blocks_test

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"
	"pgregory.net/rapid"

	"github.com/memspan/memspan/internal/blocks"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Whoever else works, each number is had once, and all are had when Each returns.
func TestEach(t *testing.T) {
	help := blocks.NewHelpers()
	rapid.Check(t, func(t *rapid.T) {
		var all sync.WaitGroup
		for _, n := range rapid.SliceOfN(rapid.IntRange(0, 3000), 1, 4).Draw(t, "sizes") {
			all.Go(func() {
				had := make([]int, n) // without a lock: the race detector looks
				if err := help.Each(context.Background(), n, func(i int) error {
					had[i]++
					return nil
				}); err != nil {
					t.Error(err)
				}
				for i, times := range had {
					if times != 1 {
						t.Errorf("%d of %d was had %d times", i, n, times)
					}
				}
			})
		}
		all.Wait()
	})
}

// The first error ends it, and so does the context: nothing goes on behind the caller.
func TestEachEnds(t *testing.T) {
	const n = 1000
	help, failed := blocks.NewHelpers(), errors.New("failed")
	for name, end := range map[string]func(cancel context.CancelCauseFunc) error{
		"error":   func(context.CancelCauseFunc) error { return failed },
		"context": func(cancel context.CancelCauseFunc) error { cancel(failed); return nil },
	} {
		for _, at := range []int64{1, 10, n / 2} {
			ctx, cancel := context.WithCancelCause(t.Context())
			var begun, ended atomic.Int64
			err := help.Each(ctx, n, func(int) error {
				defer ended.Add(1)
				if begun.Add(1) == at {
					return end(cancel)
				}
				return nil
			})
			cancel(nil)
			if !errors.Is(err, failed) {
				t.Errorf("%s: %v", name, err)
			}
			if begun.Load() != ended.Load() {
				t.Errorf("%s: %d calls begun, %d ended", name, begun.Load(), ended.Load())
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := help.Each(ctx, n, func(int) error { t.Error("called"); return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("a context that has ended: %v", err)
	}
}

// However many work at once, the helpers of all are no more than the processors;
// and they are there again when they have helped.
func TestHelpersAreBounded(t *testing.T) {
	const callers, n = 8, 400
	processors := runtime.GOMAXPROCS(0)
	help := blocks.NewHelpers()
	for range 3 {
		var running, most atomic.Int64
		var g errgroup.Group
		for range callers {
			g.Go(func() error {
				return help.Each(t.Context(), n, func(int) error {
					now := running.Add(1)
					for old := most.Load(); now > old && !most.CompareAndSwap(old, now); old = most.Load() {
					}
					runtime.Gosched()
					running.Add(-1)
					return nil
				})
			})
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		if limit := int64(callers + processors - 1); most.Load() > limit {
			t.Errorf("%d at once, want at most %d", most.Load(), limit)
		}
		// All who can help are needed here: each waits until the others have come.
		var come sync.WaitGroup
		come.Add(processors)
		var first sync.Map
		if err := help.Each(t.Context(), n*processors, func(i int) error {
			if _, late := first.LoadOrStore(goroutine(), true); !late {
				come.Done()
				come.Wait()
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
}

// goroutine returns what tells goroutines apart.
func goroutine() string {
	b := make([]byte, 64)
	name, _, _ := strings.Cut(string(b[:runtime.Stack(b, false)]), "[")
	return name
}
