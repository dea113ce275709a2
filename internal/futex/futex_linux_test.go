// SPDX-License-Identifier: Apache-2.0

package futex

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// shared returns a word in two mappings, one of which is read-only.
func shared(t testing.TB) (writable, readOnly *atomic.Uint32) {
	t.Helper()
	fd, err := unix.MemfdCreate("futex", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, 4096); err != nil {
		t.Fatal(err)
	}
	var words [2]*atomic.Uint32
	for i, prot := range []int{unix.PROT_READ | unix.PROT_WRITE, unix.PROT_READ} {
		mem, err := unix.Mmap(fd, 0, 4096, prot, unix.MAP_SHARED)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Munmap(mem) })
		words[i] = Word(mem, 64)
	}
	return words[0], words[1]
}

// absent is a kernel without futex_waitv.
func absent(_, _ *atomic.Uint32, _ uint32) error { return unix.ENOSYS }

var ways = map[string]func(_, _ *atomic.Uint32, _ uint32) error{"waitv": waitEither, "without": absent}

// Each change is seen by a waiter that reads only: none gets lost.
func TestNoWakeIsLost(t *testing.T) {
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			w, r := shared(t)
			const rounds = 2000
			acks, done := make(chan uint32), make(chan error, 1)
			go func() {
				seen := uint32(0)
				for seen < rounds {
					if err := wait(t.Context(), r, seen, way); err != nil {
						done <- err
						return
					}
					if now := r.Load(); now != seen {
						seen = now
						acks <- now
					}
				}
				done <- nil
			}()
			for i := uint32(1); i <= rounds; i++ {
				w.Store(i)
				Wake(w)
				if got := <-acks; got != i {
					t.Fatalf("saw %d, want %d", got, i)
				}
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		})
	}
}

// A context that ends, before or at any time while it is waited, ends the wait.
func TestWaitEndsWithItsContext(t *testing.T) {
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			_, r := shared(t)
			why := errors.New("enough")
			for range 200 {
				ctx, cancel := context.WithCancelCause(t.Context())
				done := make(chan error, 1)
				go func() {
					for {
						if err := wait(ctx, r, 0, way); err != nil {
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
		})
	}
}

func TestWaitReturnsAtOnceIfItChanged(t *testing.T) {
	_, r := shared(t)
	if err := Wait(t.Context(), r, 1); err != nil {
		t.Fatal(err)
	}
	if err := Wait(context.Background(), r, 1); err != nil {
		t.Fatal(err)
	}
}

func TestWordsAreWithinMemory(t *testing.T) {
	mem := make([]byte, 64)
	for name, f := range map[string]func(){
		"behind the end": func() { Word(mem, 62) },
		"not aligned":    func() { Words(mem, 4, 1); Words(mem, 8, 1); Word(mem, 2) },
		"too many":       func() { Words(mem, 0, 9) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f()
		}()
	}
}

// BenchmarkWake is a round trip between two who wait for each other.
func BenchmarkWake(b *testing.B) {
	w1, r1 := shared(b)
	w2, r2 := shared(b)
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for seen := uint32(0); ; {
			if wait(ctx, r1, seen, waitEither) != nil {
				return
			}
			if now := r1.Load(); now != seen {
				seen = now
				w2.Store(now)
				Wake(w2)
			}
		}
	}()
	n := uint32(0)
	for b.Loop() {
		n++
		w1.Store(n)
		Wake(w1)
		for r2.Load() != n {
			if err := Wait(ctx, r2, n-1); err != nil {
				b.Fatal(err)
			}
		}
	}
	cancel()
	<-done
}
