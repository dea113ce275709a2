// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"syscall"
	"testing"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/tier"
)

// Whatever fails, and whenever: a commit that returned an error has published
// nothing, one that did not is there, before and after a restart, unless the
// tier has failed for good: then what is there after a restart is one or the
// other, whole.
func TestEveryFailure(t *testing.T) {
	region, err := memfd.Create("fault", 2<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer region.Close()
	memory := tier.Memory{Region: region, Len: 1 << 20}
	stride := 20
	if os.Getenv("MEMSPAN_SLOW") != "" {
		stride = 1 << 30
	}
	faults := map[string]struct {
		err   error
		kinds []eventKind
		short bool
		once  bool
	}{
		"disk full":        {syscall.ENOSPC, []eventKind{evWrite, evTruncate, evCreate}, false, false},
		"disk full, short": {syscall.ENOSPC, []eventKind{evWrite}, true, false},
		"quota, once":      {syscall.EDQUOT, []eventKind{evWrite}, false, true},
		"write error":      {syscall.EIO, []eventKind{evWrite}, true, true},
		"fsync error":      {syscall.EIO, []eventKind{evSync, evSyncDir}, false, true},
		"all fails":        {syscall.EIO, []eventKind{evWrite, evSync, evSyncDir, evTruncate, evCreate, evRename, evRemove, evPunch}, false, false},
		"no punching":      {syscall.EOPNOTSUPP, []eventKind{evPunch}, false, false},
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			// The first events, and then some of those that follow.
			for at := 0; ; at += 1 + at/stride {
				if done := failAt(t, memory, at, func(e *event, n int) (int, error) {
					hit := false
					for _, k := range fault.kinds {
						hit = hit || e.kind == k
					}
					if !hit || n < at || fault.once && n > at {
						return 0, nil
					}
					if fault.short && len(e.data) > 1 {
						return len(e.data) / 2, fault.err
					}
					return 0, fault.err
				}, fault.err); done {
					break
				}
			}
		})
	}
}

// failAt runs a few commits on a fresh directory, in which fault fails events,
// and checks what is there afterwards. It reports whether the run ended before
// event number at of those that change something.
func failAt(t *testing.T, memory tier.Memory, at int, fault func(e *event, n int) (int, error), cause error) (done bool) {
	ctx := context.Background()
	d := newMemDisk()
	tr, err := openDirectory(ctx, d, Config{})
	if err != nil {
		t.Fatal(err)
	}
	w := &writer{n: 1, r: rand.New(rand.NewPCG(4, 4)), t: tr, d: d, memory: memory, spaces: make(map[ID]*Space), worlds: []world{{ack: 1}}}
	for range 3 {
		if err := w.step(); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	d.fault = func(e *event) (int, error) {
		if e.kind == evRead {
			return 0, nil
		}
		done, err := fault(e, n)
		n++
		return done, err
	}
	for i := range 12 {
		if i == 6 {
			if err := tr.checkpoint(ctx); err != nil {
				checkCause(t, tr, err, cause)
			}
		}
		err := w.step()
		if err != nil {
			checkCause(t, tr, err, cause)
			if w.now().ack == 0 && w.now().start > 0 && tr.Err() == nil {
				w.worlds = w.worlds[:len(w.worlds)-1] // nothing of it may be there
			}
		}
		if tr.Err() == nil {
			if err := w.equalSpaces(); err != nil {
				t.Fatalf("event %d: after step %d, which returned %v: %v", at, i, err, err)
			}
		} else {
			x := tr.Begin()
			x.Epoch(1)
			if err := x.Commit(ctx); !errors.Is(err, ErrFailed) {
				t.Fatalf("event %d: a change of a failed tier: %v", at, err)
			}
			break
		}
	}
	reached := n > at
	d.mu.Lock()
	d.fault = nil
	d.mu.Unlock()
	tr.abandon()
	for how, keep := range keepers(w.r) {
		k := d.moment()
		after, err := openDirectory(ctx, d.crash(k, keep), Config{})
		if err != nil {
			t.Fatalf("event %d, way %d: %v", at, how, err)
		}
		if _, err := w.verify(after, k); err != nil {
			t.Fatalf("event %d, way %d: %v", at, how, err)
		}
		after.abandon()
	}
	return !reached
}

// checkCause checks that an error says what happened: the disk is full, or the
// tier has failed.
func checkCause(t *testing.T, tr *Tier, err, cause error) {
	t.Helper()
	if !errors.Is(err, cause) {
		t.Fatalf("%v does not say why: %v", err, cause)
	}
	if tr.Err() != nil && !errors.Is(tr.Err(), cause) {
		t.Fatalf("%v does not say why: %v", tr.Err(), cause)
	}
	if (errors.Is(cause, syscall.ENOSPC) || errors.Is(cause, syscall.EDQUOT)) && !errors.Is(err, tier.ErrBudget) && tr.Err() == nil {
		t.Fatalf("a full disk: %v", err)
	}
}

// equalSpaces checks that what is published is the writer's latest state.
func (w *writer) equalSpaces() error {
	for id, i := range w.now().spans {
		sp := w.t.state.spans[id]
		got := make([]byte, len(i.bytes))
		if err := w.t.readBlock(context.Background(), sp, 0, 0, got); err != nil {
			return err
		}
		if string(got) != string(i.bytes) {
			return fmt.Errorf("span %q: other bytes", i.rec.Name)
		}
	}
	return nil
}
