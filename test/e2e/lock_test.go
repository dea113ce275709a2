// SPDX-License-Identifier: Apache-2.0

//go:build linux

package e2e

import (
	"context"
	"encoding/binary"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/memspan/memspan"
)

// lockerArgs tell the locker process what to do.
type lockerArgs struct {
	Address, Span string
	Times         int
}

// lockerRole counts up a number in a span, locking it each time, then holds an
// exclusive lock until it is killed.
func lockerRole(ctx context.Context, c *console) error {
	var args lockerArgs
	client, err := c.begin(ctx, &args, &args.Address, memspan.Options{})
	if err != nil {
		return err
	}
	s, err := client.Open(ctx, args.Span)
	if err != nil {
		return err
	}
	if err := countUp(ctx, s, args.Times); err != nil {
		return err
	}
	if _, err := s.Lock(ctx, 0, 8, memspan.Exclusive); err != nil {
		return err
	}
	if err := c.say("holding"); err != nil {
		return err
	}
	return c.wait()
}

// countUp adds 1 to the number at the beginning of a span, under an exclusive
// lock, and looks at it under a shared one.
func countUp(ctx context.Context, s *memspan.Span, times int) error {
	var p [8]byte
	for range times {
		l, err := s.Lock(ctx, 0, 8, memspan.Exclusive)
		if err != nil {
			return err
		}
		if _, err := s.ReadAt(ctx, p[:], 0); err != nil {
			return err
		}
		n := binary.LittleEndian.Uint64(p[:])
		binary.LittleEndian.PutUint64(p[:], n+1)
		if _, err := s.WriteAt(ctx, p[:], 0); err != nil {
			return err
		}
		if err := l.Unlock(ctx); err != nil {
			return err
		}
		if l, err = s.Lock(ctx, 4, 10, memspan.Shared); err != nil {
			return err
		}
		if _, err := s.ReadAt(ctx, p[:], 0); err != nil {
			return err
		}
		if now := binary.LittleEndian.Uint64(p[:]); now <= n {
			return errors.New("the number went down")
		}
		if err := l.Unlock(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Exclusive locks exclude, across goroutines, processes and transports; the
// lock of a process that died is passed on, and said to be abandoned, once.
func TestLocksAcrossProcesses(t *testing.T) {
	t.Parallel()
	d := start(t, settings{Process: true})
	c := d.dial(t, "unix")
	s := alloc(t, c, memspan.SpanConfig{Name: "counter", Size: 4096})
	const times = 60
	first := child(t, "locker", lockerArgs{d.Addresses["unix"], "counter", times})
	second := child(t, "locker", lockerArgs{d.Addresses["tcp"], "counter", times})
	var work sync.WaitGroup
	for _, transport := range []string{"unix", "tls"} {
		o := open(t, d.dial(t, transport), s)
		work.Go(func() {
			if err := countUp(t.Context(), o, times); err != nil {
				t.Error(err)
			}
		})
	}
	// Each process holds on once it has counted, and is killed, so that the
	// others can go on.
	var dying sync.WaitGroup
	for _, p := range []*process{first, second} {
		dying.Go(func() {
			var said string
			if err := p.out.Decode(&said); err != nil {
				t.Error(err)
			}
			p.kill()
		})
	}
	work.Wait()
	dying.Wait()
	l, err := s.Lock(t.Context(), 0, 4096, memspan.Exclusive)
	check(t, err)
	if n := binary.LittleEndian.Uint64(read(t, s, 0, 8)); n != 4*times {
		t.Errorf("counted to %d, want %d", n, 4*times)
	}
	check(t, l.Unlock(t.Context()))
}

// Shared locks are held together; an exclusive one waits for all of them, and
// to give it up leaves nothing behind.
func TestSharedLocksAndCancellation(t *testing.T) {
	t.Parallel()
	d := start(t, settings{})
	a, b := d.dial(t, "unix"), d.dial(t, "tcp")
	sa := alloc(t, a, memspan.SpanConfig{Size: 4096})
	sb := open(t, b, sa)
	lock := func(s *memspan.Span, off, n int64, kind memspan.LockKind) *memspan.Lock {
		t.Helper()
		l, err := s.Lock(t.Context(), off, n, kind)
		check(t, err)
		return l
	}
	refused := func(s *memspan.Span, off, n int64, kind memspan.LockKind) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		l, err := s.Lock(ctx, off, n, kind)
		want(t, "a lock that cannot be had", err, memspan.ErrCanceled)
		want(t, "a lock that cannot be had", err, context.DeadlineExceeded)
		if l != nil {
			t.Error("a lock beside the error")
		}
	}
	la, lb := lock(sa, 0, 100, memspan.Shared), lock(sb, 50, 100, memspan.Shared)
	refused(sb, 0, 60, memspan.Exclusive)
	refused(sa, 99, 1, memspan.Exclusive)
	lock(sb, 150, 10, memspan.Exclusive) // touches neither
	refused(sa, 159, 1000, memspan.Shared)
	check(t, la.Unlock(t.Context()))
	want(t, "second unlock", la.Unlock(t.Context()), memspan.ErrNotHeld)
	refused(sa, 0, 60, memspan.Exclusive) // lb is still held
	check(t, lb.Unlock(t.Context()))
	lx := lock(sa, 0, 60, memspan.Exclusive)
	refused(sa, 0, 1, memspan.Exclusive) // a client's own locks exclude too
	check(t, lx.Unlock(t.Context()))
	if st := stat(t, sa); st.Locks != 1 {
		t.Errorf("%d locks are held, want 1", st.Locks)
	}
	for _, r := range [][2]int64{{-1, 2}, {4096, 1}, {0, 4097}, {1 << 62, 1 << 62}} {
		_, err := sa.Lock(t.Context(), r[0], r[1], memspan.Shared)
		want(t, "lock out of range", err, memspan.ErrOutOfRange)
	}
	_, err := sa.Lock(t.Context(), 0, 1, 7)
	want(t, "unknown kind", err, memspan.ErrInvalid)

	// A lock that waits when its span goes is not waited for in vain.
	waiting := make(chan error)
	go func() {
		_, err := sb.Lock(t.Context(), 150, 1, memspan.Shared)
		waiting <- err
	}()
	check(t, sa.Free(t.Context()))
	want(t, "waiting for a lock of a freed span", <-waiting, memspan.ErrFreed)
}

// First come, first served: a shared lock waits behind an exclusive one that
// waits, so that a stream of shared ones starves nobody.
func TestExclusiveLockIsNotStarved(t *testing.T) {
	t.Parallel()
	d := start(t, settings{})
	s := alloc(t, d.dial(t, "unix"), memspan.SpanConfig{Size: 8})
	first, err := s.Lock(t.Context(), 0, 8, memspan.Shared)
	check(t, err)
	granted := make(chan struct{})
	waiting := open(t, d.dial(t, "unix"), s)
	go func() {
		defer close(granted)
		l, err := waiting.Lock(t.Context(), 4, 8-4, memspan.Exclusive)
		if err == nil {
			err = l.Unlock(t.Context())
		}
		if err != nil {
			t.Error(err)
		}
	}()
	late := open(t, d.dial(t, "unix"), s)
	eventually(t, "a shared lock waits behind an exclusive one", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		l, err := late.Lock(ctx, 0, 8, memspan.Shared)
		if err == nil { // the exclusive one does not wait yet
			check(t, l.Unlock(t.Context()))
		}
		return errors.Is(err, memspan.ErrCanceled)
	})
	l, err := late.Lock(t.Context(), 0, 4, memspan.Shared) // other bytes
	check(t, err)
	check(t, l.Unlock(t.Context()))
	check(t, first.Unlock(t.Context()))
	<-granted
}
