// SPDX-License-Identifier: Apache-2.0

package sharedbuf_test

import (
	"errors"
	"os"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/memspan/memspan/sharedbuf"
)

// silent is a host that never answers.
func silent(*sharedbuf.Request) []byte { return nil }

// files returns how many files are in a directory.
func files(t testing.TB, dir string) int {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// Whatever is done with a pool, it keeps no more than it may, and nobody gets a
// buffer of another size or one that somebody else has.
func TestPoolBounds(t *testing.T) {
	const maxBytes, maxBuffers = 10_000, 4
	dir := t.TempDir()
	c := client(t, stub(t, silent), dir)
	rapid.Check(t, func(t *rapid.T) {
		pool := c.Pool(sharedbuf.PoolOptions{MaxBytes: maxBytes, MaxBuffers: maxBuffers})
		var used []*sharedbuf.Buffer
		t.Repeat(map[string]func(*rapid.T){
			"get": func(rt *rapid.T) {
				size := rapid.SampledFrom([]int64{1, 3000, 4096, 9000, 20_000}).Draw(rt, "size")
				b, err := pool.Get(t.Context(), size)
				if err != nil {
					rt.Fatal(err)
				}
				if b.Size() != size || int64(len(b.Bytes())) != size {
					rt.Fatalf("%d bytes, want %d", b.Size(), size)
				}
				for _, other := range used {
					if b == other {
						rt.Fatal("somebody has it already")
					}
				}
				b.Bytes()[size-1] = 1 // it is mapped
				used = append(used, b)
			},
			"put": func(rt *rapid.T) {
				if len(used) == 0 {
					rt.Skip()
				}
				i := rapid.IntRange(0, len(used)-1).Draw(rt, "which")
				if err := pool.Put(used[i]); err != nil {
					rt.Fatal(err)
				}
				used = append(used[:i], used[i+1:]...)
			},
			"": func(rt *rapid.T) {
				entries, err := os.ReadDir(dir)
				if err != nil {
					rt.Fatal(err)
				}
				const perBuffer = 2 // and its lease
				if kept := len(entries)/perBuffer - len(used); kept < 0 || kept > maxBuffers {
					rt.Errorf("%d are kept", kept)
				}
				bytes := int64(0)
				for _, e := range entries {
					if info, err := e.Info(); err == nil && len(e.Name()) > 6 && e.Name()[len(e.Name())-6:] != ".lease" {
						bytes += info.Size()
					}
				}
				for _, b := range used {
					bytes -= b.Size()
				}
				if bytes > maxBytes {
					rt.Errorf("%d bytes are kept", bytes)
				}
			},
		})
		for _, b := range used {
			if err := b.Free(); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(pool.Close(), pool.Close()); err != nil {
			t.Fatal(err)
		}
	})
	if n := files(t, dir); n != 0 {
		t.Errorf("%d files are left", n)
	}
}

func TestPoolReuses(t *testing.T) {
	dir := t.TempDir()
	c := client(t, stub(t, silent), dir)
	pool := c.Pool(sharedbuf.PoolOptions{})
	b, err := pool.Get(t.Context(), 5000)
	if err != nil {
		t.Fatal(err)
	}
	b.Bytes()[7] = 9
	if err := pool.Put(b); err != nil {
		t.Fatal(err)
	}
	if err := pool.Put(b); !errors.Is(err, sharedbuf.ErrInvalid) {
		t.Errorf("put twice: %v", err)
	}
	if _, err := b.Process(t.Context(), sharedbuf.Process()); !errors.Is(err, sharedbuf.ErrInvalid) {
		t.Errorf("processed while in the pool: %v", err)
	}
	again, err := pool.Get(t.Context(), 5000)
	if err != nil || again != b || again.Bytes()[7] != 9 {
		t.Fatalf("another buffer, or another's bytes: %v", err)
	}
	if err := errors.Join(pool.Put(again), again.Free()); err != nil {
		t.Fatal(err)
	}
	again, err = pool.Get(t.Context(), 5000)
	if err != nil || again == b {
		t.Fatalf("a buffer that was freed in the pool: %v", err)
	}
	other, err := c.Alloc(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := pool.Put(other); !errors.Is(err, sharedbuf.ErrInvalid) {
		t.Errorf("not of this pool: %v", err)
	}
	if err := again.Free(); err != nil {
		t.Fatal(err)
	}
	if err := pool.Put(again); !errors.Is(err, sharedbuf.ErrFreed) {
		t.Errorf("freed: %v", err)
	}
	if b, err = pool.Get(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if err := pool.Close(); err != nil {
		t.Fatal(err)
	}
	if err := pool.Put(b); err != nil {
		t.Fatal(err)
	}
	if err := other.Free(); err != nil {
		t.Fatal(err)
	}
	if n := files(t, dir); n != 0 {
		t.Errorf("%d files are left after the pool was closed", n)
	}
	if _, err := pool.Get(t.Context(), 1); !errors.Is(err, sharedbuf.ErrClosed) {
		t.Errorf("a closed pool: %v", err)
	}
}

func TestPoolConcurrently(t *testing.T) {
	dir := t.TempDir()
	c := client(t, stub(t, silent), dir)
	pool := c.Pool(sharedbuf.PoolOptions{MaxBuffers: 3})
	var work sync.WaitGroup
	for i := range 8 {
		work.Go(func() {
			for range 50 {
				b, err := pool.Get(t.Context(), 4096)
				if err != nil {
					t.Error(err)
					return
				}
				b.Bytes()[0] = byte(i)
				if err := pool.Put(b); err != nil {
					t.Error(err)
				}
			}
		})
	}
	work.Wait()
	if n := files(t, dir); n > 2*3 {
		t.Errorf("%d files are kept", n)
	}
}
