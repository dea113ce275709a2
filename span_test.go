// SPDX-License-Identifier: Apache-2.0

package memspan_test

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/memspan/memspan"
)

const mib = 1 << 20

func TestReadAtWriteAt(t *testing.T) {
	each(t, func(t *testing.T, c, other *memspan.Client) {
		const size = 10*mib + 12345
		s := alloc(t, c, size)
		want := make([]byte, size)
		got := make([]byte, size)
		check := func() {
			t.Helper()
			clear(got)
			if n, err := s.ReadAt(t.Context(), got, 0); n != size || err != nil {
				t.Fatalf("ReadAt = %d, %v", n, err)
			}
			if !bytes.Equal(got, want) {
				t.Fatal("what was read is not what was written")
			}
		}
		check()
		for _, r := range []struct{ off, n int }{
			{0, size}, {5, 1}, {mib - 1, 2}, {mib, mib}, {mib + 7, 3*mib + 3}, {size - 1, 1}, {3, 0},
		} {
			p := want[r.off : r.off+r.n]
			pattern(p, uint64(r.off*31+r.n))
			if n, err := s.WriteAt(t.Context(), p, int64(r.off)); n != r.n || err != nil {
				t.Fatalf("WriteAt(%d bytes at %d) = %d, %v", r.n, r.off, n, err)
			}
			check()
		}
		part := make([]byte, 3*mib)
		if n, err := s.ReadAt(t.Context(), part, 12345); n != len(part) || err != nil {
			t.Fatalf("ReadAt = %d, %v", n, err)
		}
		if !bytes.Equal(part, want[12345:12345+len(part)]) {
			t.Fatal("a part that is read is not what was written")
		}
	})
}

func TestVersionCountsWrites(t *testing.T) {
	each(t, func(t *testing.T, c, _ *memspan.Client) {
		s := alloc(t, c, 4*mib)
		for i := range 3 {
			if _, err := s.WriteAt(t.Context(), make([]byte, 3*mib), 100); err != nil {
				t.Fatal(err)
			}
			st, err := s.Stat(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if st.Version != uint64(i+1) {
				t.Fatalf("after %d writes of several blocks the version is %d", i+1, st.Version)
			}
		}
	})
}

func TestRange(t *testing.T) {
	each(t, func(t *testing.T, c, _ *memspan.Client) {
		s := alloc(t, c, 100)
		frames := c.Traffic().Sent.Frames
		for _, r := range []struct{ off, n int64 }{{-1, 1}, {0, 101}, {100, 1}, {101, 0}, {1<<63 - 1, 1}, {50, 51}} {
			p := make([]byte, r.n)
			if n, err := s.ReadAt(t.Context(), p, r.off); n != 0 || !errors.Is(err, memspan.ErrOutOfRange) {
				t.Errorf("ReadAt(%d bytes at %d) = %d, %v", r.n, r.off, n, err)
			}
			if n, err := s.WriteAt(t.Context(), p, r.off); n != 0 || !errors.Is(err, memspan.ErrOutOfRange) {
				t.Errorf("WriteAt(%d bytes at %d) = %d, %v", r.n, r.off, n, err)
			}
			if _, err := s.Fill(t.Context(), r.off, r.n, 0); !errors.Is(err, memspan.ErrOutOfRange) {
				t.Errorf("Fill(%d, %d) = %v", r.off, r.n, err)
			}
			if _, err := s.Lock(t.Context(), r.off, r.n, memspan.Shared); !errors.Is(err, memspan.ErrOutOfRange) {
				t.Errorf("Lock(%d, %d) = %v", r.off, r.n, err)
			}
			if _, err := s.Map(t.Context(), r.off, max(r.n, 1), memspan.ReadOnly); !errors.Is(err, memspan.ErrOutOfRange) {
				t.Errorf("Map(%d, %d) = %v", r.off, r.n, err)
			}
		}
		if now := c.Traffic().Sent.Frames; now != frames {
			t.Errorf("frames were sent for ranges outside the span: %v, before %v", now, frames)
		}
		var e *memspan.Error
		_, err := s.ReadAt(t.Context(), make([]byte, 7), 95)
		if !errors.As(err, &e) || e.Op != "read" || e.Span != s.ID() || e.Offset != 95 || e.Length != 7 {
			t.Errorf("the error does not say what was asked: %+v", e)
		}
	})
}

func TestAllocOpenFree(t *testing.T) {
	each(t, func(t *testing.T, c, other *memspan.Client) {
		ctx := t.Context()
		for _, size := range []int64{0, -1, 1 << 62} {
			if _, err := c.Alloc(ctx, memspan.SpanConfig{Size: size}); err == nil {
				t.Errorf("a span of %d bytes was made", size)
			}
		}
		if _, err := c.Alloc(ctx, memspan.SpanConfig{Size: 1, Tier: memspan.On(memspan.VRAM)}); !errors.Is(err, memspan.ErrTierAbsent) {
			t.Errorf("a span in absent VRAM: %v", err)
		}
		if _, err := c.Open(ctx, "nobody"); !errors.Is(err, memspan.ErrNotFound) {
			t.Errorf("an unknown span was opened: %v", err)
		}
		name := t.Name()
		s, err := c.Alloc(ctx, memspan.SpanConfig{Name: name, Size: 4096, Policy: memspan.WriteThrough})
		if err != nil {
			t.Fatal(err)
		}
		if info := s.Info(); info.Tier != memspan.Host || info.Home != memspan.Host || info.Policy != memspan.WriteThrough || s.Name() != name || s.Size() != 4096 {
			t.Errorf("the span is %+v", info)
		}
		if _, err := c.Alloc(ctx, memspan.SpanConfig{Name: name, Size: 1}); !errors.Is(err, memspan.ErrExists) {
			t.Errorf("a name was given twice: %v", err)
		}
		if _, err := s.WriteAt(ctx, []byte("hello"), 4); err != nil {
			t.Fatal(err)
		}
		byID, err := other.Open(ctx, s.ID())
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("the second Close: %v", err)
		}
		if _, err := s.ReadAt(ctx, make([]byte, 1), 0); !errors.Is(err, memspan.ErrClosed) {
			t.Errorf("ReadAt after Close: %v", err)
		}
		byName, err := c.Open(ctx, name) // it has a name: it is still there
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 5)
		if _, err := byID.ReadAt(ctx, got, 4); err != nil || string(got) != "hello" {
			t.Errorf("the other client reads %q, %v", got, err)
		}
		if list, err := c.List(ctx); err != nil || len(list) != 1 || list[0].Name != name {
			t.Errorf("List = %+v, %v", list, err)
		}
		if err := byName.Free(ctx); err != nil {
			t.Fatal(err)
		}
		if err := byName.Free(ctx); !errors.Is(err, memspan.ErrFreed) {
			t.Errorf("the second Free: %v", err)
		}
		if err := byName.Close(); err != nil {
			t.Errorf("Close after Free: %v", err)
		}
		if _, err := byName.Stat(ctx); !errors.Is(err, memspan.ErrFreed) {
			t.Errorf("Stat after Free: %v", err)
		}
		if _, err := byID.ReadAt(ctx, got, 0); !errors.Is(err, memspan.ErrFreed) {
			t.Errorf("the other client's ReadAt after Free: %v", err)
		}
		if list, err := c.List(ctx); err != nil || len(list) != 0 {
			t.Errorf("List = %+v, %v", list, err)
		}
	})
}

func TestCopyFillStats(t *testing.T) {
	each(t, func(t *testing.T, c, other *memspan.Client) {
		ctx := t.Context()
		a, b := alloc(t, c, 3*mib+5), alloc(t, c, 2*mib)
		if commit, err := a.Fill(ctx, 3, 2*mib, 0x44332211); err != nil || commit.Version != 1 || !commit.Holders.Has(memspan.Host) {
			t.Fatalf("Fill = %+v, %v", commit, err)
		}
		if commit, err := b.Copy(ctx, 7, a, 3, mib); err != nil || commit.Version != 1 {
			t.Fatalf("Copy = %+v, %v", commit, err)
		}
		want := make([]byte, 2*mib)
		copy(want[7:], bytes.Repeat([]byte{0x11, 0x22, 0x33, 0x44}, mib/4))
		got := make([]byte, len(want))
		if _, err := b.ReadAt(ctx, got, 0); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("the copy is not what was filled; %v", err)
		}
		if _, err := b.Copy(ctx, 0, alloc(t, other, 8), 0, 8); !errors.Is(err, memspan.ErrInvalid) {
			t.Errorf("a copy between clients: %v", err)
		}
		if st, err := a.State(ctx); err != nil || st != memspan.HostOnly {
			t.Errorf("State = %v, %v", st, err)
		}
		if _, err := a.Upload(ctx); !errors.Is(err, memspan.ErrTierAbsent) {
			t.Errorf("Upload without a GPU: %v", err)
		}
		first, err := c.Sync(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if second, err := a.Sync(ctx); err != nil || second <= first {
			t.Errorf("epochs %d, then %d; %v", first, second, err)
		}
		if err := a.Release(ctx); !errors.Is(err, memspan.ErrTierAbsent) {
			t.Errorf("Release without a GPU: %v", err)
		}
		st, err := c.Stats(ctx)
		if err != nil || st.Coherency.Total < 2 || st.Sessions < 2 {
			t.Errorf("Stats = %+v, %v", st, err)
		}
	})
}

func TestLock(t *testing.T) {
	each(t, func(t *testing.T, c, other *memspan.Client) {
		ctx := t.Context()
		s, err := c.Alloc(ctx, memspan.SpanConfig{Name: t.Name(), Size: 100})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Free(ctx)
		theirs, err := other.Open(ctx, s.Name())
		if err != nil {
			t.Fatal(err)
		}
		a, err := s.Lock(ctx, 0, 50, memspan.Exclusive)
		if err != nil || a.Abandoned() {
			t.Fatal(a, err)
		}
		b, err := theirs.Lock(ctx, 50, 50, memspan.Exclusive)
		if err != nil {
			t.Fatal(err)
		}
		// A wait that is given up holds nothing.
		waiting, cancel := context.WithCancel(ctx)
		gaveUp := make(chan error)
		go func() {
			_, err := theirs.Lock(waiting, 40, 20, memspan.Shared)
			gaveUp <- err
		}()
		cancel()
		if err := <-gaveUp; !errors.Is(err, context.Canceled) || !errors.Is(err, memspan.ErrCanceled) {
			t.Fatalf("the lock that was given up: %v", err)
		}
		if err := b.Unlock(ctx); err != nil {
			t.Fatal(err)
		}
		if err := b.Unlock(ctx); !errors.Is(err, memspan.ErrNotHeld) {
			t.Errorf("the second Unlock: %v", err)
		}
		granted := make(chan *memspan.Lock)
		go func() {
			l, err := theirs.Lock(ctx, 40, 20, memspan.Shared)
			if err != nil {
				t.Error(err)
			}
			granted <- l
		}()
		if err := c.Close(); err != nil { // with the lock held
			t.Fatal(err)
		}
		l := <-granted
		if l == nil || !l.Abandoned() {
			t.Fatal("the next holder does not learn that the lock was abandoned")
		}
		if err := l.Unlock(ctx); err != nil {
			t.Fatal(err)
		}
		if err := theirs.Free(ctx); err != nil {
			t.Fatal(err)
		}
	})
}

func TestClosedClient(t *testing.T) {
	each(t, func(t *testing.T, c, _ *memspan.Client) {
		s := alloc(t, c, 100)
		if c.Err() != nil {
			t.Fatal(c.Err())
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if err := c.Close(); err != nil {
			t.Errorf("the second Close: %v", err)
		}
		<-c.Done()
		if !errors.Is(c.Err(), memspan.ErrClosed) {
			t.Errorf("Err = %v", c.Err())
		}
		if _, err := s.ReadAt(t.Context(), make([]byte, 1), 0); !errors.Is(err, memspan.ErrClosed) {
			t.Errorf("ReadAt = %v", err)
		}
		if _, err := c.List(t.Context()); !errors.Is(err, memspan.ErrClosed) {
			t.Errorf("List = %v", err)
		}
	})
}

func TestCanceledContext(t *testing.T) {
	each(t, func(t *testing.T, c, _ *memspan.Client) {
		s := alloc(t, c, 100)
		ctx, cancel := context.WithDeadline(t.Context(), time.Unix(0, 0))
		defer cancel()
		for name, err := range map[string]error{
			"read":  second(s.ReadAt(ctx, make([]byte, 1), 0)),
			"write": second(s.WriteAt(ctx, make([]byte, 1), 0)),
			"stat":  second(s.Stat(ctx)),
			"map":   second(s.Map(ctx, 0, 1, memspan.ReadOnly)),
		} {
			if !errors.Is(err, memspan.ErrCanceled) || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

func second[T any](_ T, err error) error { return err }
