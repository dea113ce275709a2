// SPDX-License-Identifier: Apache-2.0

//go:build linux || windows

package bell_test

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/memspan/memspan/internal/bell"
)

func hang(t testing.TB) (*bell.Bell, *atomic.Uint32, []byte) {
	t.Helper()
	word, id := new(atomic.Uint32), make([]byte, bell.IDSize)
	b, err := bell.Hang(word, id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(b.Close(), b.Close()); err != nil {
			t.Error(err)
		}
	})
	return b, word, id
}

// Every change is seen by all who wait, whenever they come.
func TestNobodyMissesAChange(t *testing.T) {
	const waiters, rings = 4, 300
	b, word, id := hang(t)
	var work sync.WaitGroup
	seen := make(chan uint32, waiters)
	for range waiters {
		work.Go(func() {
			for last := uint32(0); last < rings; {
				if err := bell.Wait(t.Context(), word, id, last); err != nil {
					t.Error(err)
					return
				}
				if now := word.Load(); now != last {
					last = now
					seen <- now
				}
			}
		})
	}
	for i := uint32(1); i <= rings; i++ {
		b.Ring()
		if i%3 == 0 {
			continue // two in a row
		}
		for n := 0; n < waiters; {
			if <-seen == i {
				n++
			}
		}
	}
	done := make(chan struct{})
	go func() {
		work.Wait()
		close(done)
	}()
	for {
		select {
		case <-seen:
		case <-done:
			return
		}
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	_, word, id := hang(t)
	why := errors.New("enough")
	for range 200 {
		ctx, cancel := context.WithCancelCause(t.Context())
		done := make(chan error, 1)
		go func() {
			for {
				if err := bell.Wait(ctx, word, id, 0); err != nil {
					done <- err
					return
				}
			}
		}()
		cancel(why)
		if err := <-done; !errors.Is(err, why) {
			t.Fatalf("error %v, want the cause", err)
		}
	}
	if err := bell.Wait(t.Context(), word, id, 1); err != nil {
		t.Errorf("it has changed before: %v", err)
	}
}

// The number wraps round.
func TestManyRings(t *testing.T) {
	word, id := new(atomic.Uint32), make([]byte, bell.IDSize)
	word.Store(^uint32(0))
	b, err := bell.Hang(word, id)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	done := make(chan error, 1)
	go func() { done <- bell.Wait(t.Context(), word, id, ^uint32(0)) }()
	b.Ring()
	if err := <-done; err != nil || word.Load() != 0 {
		t.Errorf("%v, %d", err, word.Load())
	}
}

func TestClosedBell(t *testing.T) {
	if runtime.GOOS != "windows" {
		t.Skip("a futex is there as long as its memory")
	}
	b, word, id := hang(t)
	done := make(chan error, 3)
	for range cap(done) {
		go func() { done <- bell.Wait(t.Context(), word, id, 0) }()
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	for range cap(done) {
		if err := <-done; !errors.Is(err, bell.ErrGone) {
			t.Errorf("error %v", err)
		}
	}
	b.Ring()
	if err := bell.Wait(t.Context(), word, id, 1); !errors.Is(err, bell.ErrGone) {
		t.Errorf("afterwards: %v", err)
	}
}

// BenchmarkWake is a round trip between two who wait for each other.
func BenchmarkWake(b *testing.B) {
	ping, pinged, pingID := hang(b)
	pong, ponged, pongID := hang(b)
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for seen := uint32(0); bell.Wait(ctx, pinged, pingID, seen) == nil; {
			if now := pinged.Load(); now != seen {
				seen = now
				pong.Ring()
			}
		}
	}()
	for b.Loop() {
		seen := ponged.Load()
		ping.Ring()
		for ponged.Load() == seen {
			if err := bell.Wait(ctx, ponged, pongID, seen); err != nil {
				b.Fatal(err)
			}
		}
	}
	cancel()
	<-done
}
