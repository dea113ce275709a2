// SPDX-License-Identifier: Apache-2.0

package span_test

import (
	"context"
	"errors"
	"testing"

	"github.com/memspan/memspan/coherency"
	"github.com/memspan/memspan/span"
)

func TestLocks(t *testing.T) {
	st := newStore(t)
	s := alloc(t, st, span.Info{Size: 1000, Tier: coherency.Host, Home: coherency.Host})
	ctx := t.Context()
	lock := func(owner span.Owner, off, n int64, exclusive bool) span.LockID {
		t.Helper()
		id, _, err := s.Lock(ctx, owner, off, n, exclusive)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	blocked := func(owner span.Owner, off, n int64, exclusive bool) bool {
		t.Helper()
		ended, cancel := context.WithCancel(ctx)
		cancel()
		id, _, err := s.Lock(ended, owner, off, n, exclusive)
		if err == nil {
			s.Unlock(owner, id)
		}
		return errors.Is(err, context.Canceled)
	}
	a := lock(1, 0, 100, false)
	b := lock(2, 50, 100, false)
	if !blocked(3, 99, 1, true) {
		t.Fatal("exclusive over shared")
	}
	if err := s.Unlock(2, a); !errors.Is(err, span.ErrNotHeld) {
		t.Fatalf("unlock of another's lock: %v", err)
	}
	got := make(chan bool)
	go func() {
		_, abandoned, err := s.Lock(ctx, 3, 0, 150, true)
		got <- abandoned || err != nil
	}()
	s.Unlock(1, a)
	s.Unlock(2, b)
	if <-got {
		t.Fatal("exclusive lock failed, or says it was abandoned")
	}
	go func() {
		_, abandoned, err := s.Lock(ctx, 4, 100, 10, false)
		got <- abandoned && err == nil
	}()
	s.UnlockAll(3, true)
	if !<-got {
		t.Fatal("the next holder is not told of the dead one")
	}
	if _, abandoned, _ := s.Lock(ctx, 4, 0, 10, true); !abandoned {
		t.Fatal("the holder of the rest is not told of the dead one")
	}
	s.UnlockAll(4, false)
	if _, abandoned, _ := s.Lock(ctx, 5, 0, 1000, true); !abandoned { // [10,100) and [110,150) are left
		t.Fatal("what nobody locked since is forgotten")
	}
	go func() {
		_, _, err := s.Lock(ctx, 6, 0, 1000, true)
		got <- errors.Is(err, span.ErrFreed)
	}()
	s.Free()
	if !<-got {
		t.Fatal("waiting for a lock outlives the span")
	}
}
