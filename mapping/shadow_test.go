// SPDX-License-Identifier: Apache-2.0

package mapping_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/memspan/memspan/mapping"
)

func TestRangeExactNeighboursUnchanged(t *testing.T) {
	bothTrackings(t, func(t *testing.T, tracking mapping.Tracking) {
		p := newPool(t)
		const size = 5 * blockSize
		for _, r := range [][2]int64{{0, 1}, {1, 1}, {0, size}, {4095, 2}, {4097, 8191}, {blockSize - 3, 7}, {blockSize, blockSize}, {3, size - 4}, {size - 1, 1}, {70001, 100003}} {
			t.Run(fmt.Sprint(r), func(t *testing.T) {
				srv := newServer(size)
				want := slices.Clone(srv)
				sh := srv.open(t, p, r[0], r[1], tracking)
				mem := sh.Bytes()
				if int64(len(mem)) != r[1] || cap(mem) != len(mem) {
					t.Fatalf("len %d, cap %d, want %d", len(mem), cap(mem), r[1])
				}
				wantEqual(t, "filled", mem, srv[r[0]:r[0]+r[1]])
				for i := range mem {
					mem[i] ^= 0xa5
					want[r[0]+int64(i)] ^= 0xa5
				}
				srv.flush(t, sh, r[0], r[1])
				wantEqual(t, "server", srv, want)
				if c := collect(t, sh, r[0], r[1]); len(c) != 0 {
					t.Errorf("flushed twice: %v", spans(c))
				}
			})
		}
	})
}

// A Collect of part of a page leaves the rest of the page to the next.
func TestCollectOfPartOfAPage(t *testing.T) {
	bothTrackings(t, func(t *testing.T, tracking mapping.Tracking) {
		srv := newServer(4 * blockSize)
		const off, n = 100, 3 * blockSize
		sh := srv.open(t, newPool(t), off, n, tracking)
		mem := sh.Bytes()
		for _, at := range []int64{5000, 5001, 8191, 8192, 70000} {
			mem[at-off]++
		}
		for _, step := range []struct {
			off, n int64
			want   [][2]int64
		}{
			{5001, 3190, [][2]int64{{5001, 5002}}},
			{5001, 0, nil},
			{8192, 1, [][2]int64{{8192, 8193}}},
			{off, n, [][2]int64{{5000, 5001}, {8191, 8192}, {70000, 70001}}},
			{off, n, nil},
		} {
			changes := collect(t, sh, step.off, step.n)
			if got := spans(changes); !slices.Equal(got, step.want) {
				t.Fatalf("Collect(%d, %d) = %v, want %v", step.off, step.n, got, step.want)
			}
			for _, c := range changes {
				sh.Ack(c)
			}
		}
	})
}

func TestBothSidesOfAPageSurvive(t *testing.T) {
	bothTrackings(t, func(t *testing.T, tracking mapping.Tracking) {
		p := newPool(t)
		srv := newServer(2 * blockSize)
		want := slices.Clone(srv)
		a := srv.open(t, p, 0, 2*blockSize, tracking)
		b := srv.open(t, p, 0, 2*blockSize, tracking)
		for i := range 4096 {
			side := a
			if i%3 == 0 {
				side = b
			}
			side.Bytes()[8192+i] = ^srv[8192+i]
			want[8192+i] = ^srv[8192+i]
		}
		srv.flush(t, a, 0, 2*blockSize)
		srv.flush(t, b, 0, 2*blockSize)
		wantEqual(t, "server", srv, want)
		for _, sh := range []*mapping.Shadow{a, b} {
			if err := sh.Merge(0, srv); err != nil {
				t.Fatal(err)
			}
			wantEqual(t, "mapping after merge", sh.Bytes(), want)
			if c := collect(t, sh, 0, 2*blockSize); len(c) != 0 {
				t.Errorf("others' bytes look like own: %v", spans(c))
			}
		}
	})
}

func TestUnchangedStoresSendNothing(t *testing.T) {
	bothTrackings(t, func(t *testing.T, tracking mapping.Tracking) {
		srv := newServer(2 * blockSize)
		sh := srv.open(t, newPool(t), 0, 2*blockSize, tracking)
		mem := sh.Bytes()
		copy(mem, srv)
		mem[10]++
		mem[10]--
		if c := collect(t, sh, 0, 2*blockSize); len(c) != 0 {
			t.Errorf("collected %v", spans(c))
		}
		copy(mem, srv)
		mem[77] ^= 1
		if got := spans(collect(t, sh, 0, 2*blockSize)); !slices.Equal(got, [][2]int64{{77, 78}}) {
			t.Errorf("collected %v", got)
		}
	})
}

// One thread stores to the even words and checks that its stores stay; others
// change the odd words on the server, and now and then the even ones too.
func TestConcurrentWriterLosesNothing(t *testing.T) {
	bothTrackings(t, func(t *testing.T, tracking mapping.Tracking) {
		const off, n = 4096 + 8, 3 * 4096
		const words = n / 8
		srv := newServer(blockSize)
		clear(srv)
		sh := srv.open(t, newPool(t), off, n, tracking)
		mem := sh.Bytes()
		var stop atomic.Bool
		var stores atomic.Int64
		var writer sync.WaitGroup
		last := make([]uint64, words)
		writer.Go(func() {
			for v := uint64(1); !stop.Load(); v++ {
				w := int(v*7919) % (words / 2) * 2
				if got := binary.NativeEndian.Uint64(mem[w*8:]); last[w] != 0 && got != last[w] {
					t.Errorf("word %d is %#x, %#x was stored", w, got, last[w])
					return
				}
				last[w] = v<<8 | 0x5a
				binary.NativeEndian.PutUint64(mem[w*8:], last[w])
				stores.Add(1)
			}
		})
		for round := range 200 {
			for before := stores.Load(); stores.Load() < before+20 && !t.Failed(); { // writes in every round
				runtime.Gosched()
			}
			srv.flush(t, sh, off, n)
			for w := 1; w < words; w += 2 {
				binary.NativeEndian.PutUint64(srv[off+w*8:], uint64(round*words+w))
			}
			if err := sh.Merge(off, srv[off:off+n]); err != nil {
				t.Fatal(err)
			}
		}
		stop.Store(true)
		writer.Wait()
		srv.flush(t, sh, off, n)
		wantEqual(t, "server and mapping", srv[off:off+n], mem)
		for w := range words {
			want := last[w]
			if w%2 == 1 {
				want = uint64(199*words + w)
			}
			if got := binary.NativeEndian.Uint64(mem[w*8:]); got != want {
				t.Fatalf("word %d is %#x, want %#x", w, got, want)
			}
		}
	})
}

// The user's value stays when the user and another client write the same byte,
// even if the user's store falls into the Merge: the writer goes through a few
// words, slowly, while they are merged over and over.
func TestMergeNeverUndoesAStoreOfTheSameByte(t *testing.T) {
	bothTrackings(t, func(t *testing.T, tracking mapping.Tracking) {
		const n = 64
		srv := make(server, blockSize)
		sh := srv.open(t, newPool(t), 0, n, tracking)
		mem := sh.Bytes()
		var epochs, written atomic.Int64
		var writer sync.WaitGroup
		defer writer.Wait()
		const last = 2000
		// Neither what the server has before nor what comes from it.
		value := func(epoch int64) byte { return byte(1 + epoch%2) }
		stop := make(chan struct{})
		defer close(stop)
		writer.Go(func() {
			for epoch := int64(1); epoch <= last; epoch++ {
				for epochs.Load() < epoch {
					select {
					case <-stop:
						return
					default:
						runtime.Gosched()
					}
				}
				for i := range mem {
					for range i*7%16 + 10 {
						written.Load() // some time
					}
					mem[i] = value(epoch)
				}
				written.Store(epoch)
			}
		})
		for epoch := int64(1); epoch <= last; epoch++ {
			epochs.Store(epoch)
			for round := byte(0); written.Load() < epoch; round++ {
				for i := range srv[:n] {
					srv[i] = 0x80 | round
				}
				if err := sh.Merge(0, srv[:n]); err != nil {
					t.Fatal(err)
				}
				runtime.Gosched() // or the writer, with one processor, waits for a slice's end
			}
			for i, b := range mem {
				if b != value(epoch) {
					t.Fatalf("epoch %d: byte %d is %#x, the user's store was undone", epoch, i, b)
				}
			}
			srv.flush(t, sh, 0, n)
		}
	})
}

func TestReadSystemCallIsTracked(t *testing.T) {
	bothTrackings(t, func(t *testing.T, tracking mapping.Tracking) {
		srv := newServer(2 * blockSize)
		sh := srv.open(t, newPool(t), 0, 2*blockSize, tracking)
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		defer w.Close()
		text := []byte("from the kernel")
		if _, err := w.Write(text); err != nil {
			t.Fatal(err)
		}
		const at = blockSize - 5
		if _, err := io.ReadFull(r, sh.Bytes()[at:at+len(text)]); err != nil {
			t.Fatal(err)
		}
		srv.flush(t, sh, 0, 2*blockSize)
		if got := srv[at : at+len(text)]; !bytes.Equal(got, text) {
			t.Errorf("server has %q", got)
		}
	})
}

func TestSettling(t *testing.T) {
	bothTrackings(t, func(t *testing.T, tracking mapping.Tracking) {
		srv := newServer(4 * blockSize)
		sh := srv.open(t, newPool(t), 0, 4*blockSize, tracking)
		mem := sh.Bytes()
		want := [][2]int64{{5, 6}, {blockSize + 9, blockSize + 11}}
		mem[5]++
		mem[blockSize+9]++
		mem[blockSize+10]++
		expect := func(what string, want [][2]int64) []*mapping.Change {
			t.Helper()
			c := collect(t, sh, 0, 4*blockSize)
			if got := spans(c); !slices.Equal(got, want) {
				t.Fatalf("%s: collected %v, want %v", what, got, want)
			}
			return c
		}

		c := expect("first", want)
		sh.Nack(c[0])
		sh.Nack(c[1])
		if c[0].Runs != nil || c[0].Data != nil {
			t.Error("Nack left the change its memory")
		}
		old := expect("after nack", want)
		again := expect("not settled", want)
		sh.Ack(old[0]) // too late
		expect("after a late ack", want)

		// What failed on its way is found again, what was before it is not.
		errSend := errors.New("link cut")
		var failed *mapping.Change
		err := sh.Collect(context.Background(), 0, 4*blockSize, func(c *mapping.Change) error {
			if c.Block == 1 {
				failed = c
				return errSend
			}
			sh.Ack(c)
			return nil
		})
		if !errors.Is(err, errSend) {
			t.Fatalf("Collect: %v", err)
		}
		sh.Ack(failed) // it is settled
		expect("after a failed yield", want[1:])
		sh.Ack(again[1]) // much too late

		ctx, cancel := context.WithCancel(context.Background())
		mem[3*blockSize] ^= 1
		err = sh.Collect(ctx, 0, 4*blockSize, func(c *mapping.Change) error {
			sh.Ack(c)
			cancel()
			return nil
		})
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("Collect with its context cancelled: %v", err)
		}
		c = expect("after cancel", [][2]int64{{3 * blockSize, 3*blockSize + 1}})
		mem[3*blockSize] ^= 3 // written between collect and ack
		sh.Ack(c[0])
		sh.Ack(c[0])
		sh.Nack(c[0])
		c = expect("written before the ack", [][2]int64{{3 * blockSize, 3*blockSize + 1}})
		sh.Ack(c[0])
		expect("all acked", nil)
	})
}

// Acks and nacks come from another goroutine while Collect goes on.
func TestPipelinedSettling(t *testing.T) {
	bothTrackings(t, func(t *testing.T, tracking mapping.Tracking) {
		const n = 32 * blockSize
		srv := newServer(n)
		sh := srv.open(t, newPool(t), 0, n, tracking)
		mem := sh.Bytes()
		for round := range 20 {
			for i := round; i < n; i += 1000 {
				mem[i] += byte(i + round + 1)
			}
			sent := make(chan *mapping.Change, 4)
			var receiver sync.WaitGroup
			receiver.Go(func() {
				for c := range sent {
					if (int(c.Block)+round)%3 == 0 {
						sh.Nack(c)
						continue
					}
					srv.apply(c)
					sh.Ack(c)
				}
			})
			err := sh.Collect(context.Background(), 0, n, func(c *mapping.Change) error {
				sent <- c
				return nil
			})
			close(sent)
			receiver.Wait()
			if err != nil {
				t.Fatal(err)
			}
		}
		srv.flush(t, sh, 0, n)
		wantEqual(t, "server and mapping", srv, mem)
	})
}

// What the last user of the memory left is seen neither in the bytes nor, as a
// missing or an extra change, in the image.
func TestReusedMemoryIsClean(t *testing.T) {
	bothTrackings(t, func(t *testing.T, tracking mapping.Tracking) {
		p := newPool(t)
		const n = 2*blockSize - 100
		for _, writable := range []bool{true, false} {
			secret := bytes.Repeat([]byte{0xee}, n)
			sh := newShadow(t, p, 0, n, true, tracking)
			if err := sh.Fill(0, n, func(dst []byte) error { copy(dst, secret); return nil }); err != nil {
				t.Fatal(err)
			}
			if err := sh.Arm(); err != nil {
				t.Fatal(err)
			}
			copy(sh.Bytes(), bytes.Repeat([]byte{0xdd}, 5000)) // dirty, never collected
			if err := sh.Close(); err != nil {
				t.Fatal(err)
			}
			if p.Idle() == 0 {
				t.Fatal("nothing was pooled")
			}

			sh = newShadow(t, p, 50, n, writable, tracking)
			want := make([]byte, n)
			for i := 1000; i < 9000; i++ {
				want[i] = 0x11
			}
			fill := func(off, n int64) error {
				return sh.Fill(50+off, n, func(dst []byte) error { copy(dst, want[off:]); return nil })
			}
			if err := errors.Join(fill(5000, 4000), fill(1000, 2500), fill(3000, 3000)); err != nil {
				t.Fatal(err)
			}
			errRead := errors.New("link cut")
			if err := sh.Fill(20000, 9, func(dst []byte) error { dst[0] = 9; return errRead }); !errors.Is(err, errRead) {
				t.Errorf("Fill: %v", err)
			}
			if err := sh.Arm(); err != nil {
				t.Fatal(err)
			}
			wantEqual(t, "fresh mapping", sh.Bytes(), want)
			if writable {
				if c := collect(t, sh, 50, n); len(c) != 0 {
					t.Errorf("a fresh mapping has changes: %v", spans(c))
				}
				copy(sh.Bytes()[12000:], secret[:100])
				if got := spans(collect(t, sh, 50, n)); !slices.Equal(got, [][2]int64{{12050, 12150}}) {
					t.Errorf("collected %v", got)
				}
			}
			if err := sh.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestReadOnly(t *testing.T) {
	srv := newServer(3 * blockSize)
	sh := newShadow(t, newPool(t), 10, blockSize, false, mapping.Auto)
	if err := sh.Fill(10, blockSize, func(dst []byte) error { copy(dst, srv[10:]); return nil }); err != nil {
		t.Fatal(err)
	}
	if err := sh.Arm(); err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "filled", sh.Bytes(), srv[10:10+blockSize])
	for i := range srv {
		srv[i]++
	}
	if err := sh.Merge(4000, srv[4000:9000]); err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "merged", sh.Bytes()[3990:8990], srv[4000:9000])
	if sh.Bytes()[3989] != srv[3999]-1 || sh.Bytes()[8990] != srv[9000]-1 {
		t.Error("Merge touched bytes beyond its range")
	}
	if err := sh.Collect(t.Context(), 10, 1, nil); err == nil {
		t.Error("Collect of a read-only mapping: no error")
	}
}

func TestCollectNamed(t *testing.T) {
	for _, tracking := range []mapping.Tracking{mapping.Named, mapping.Pages, mapping.Compare} {
		t.Run(tracking.String(), func(t *testing.T) {
			needs(t, tracking)
			srv := newServer(4 * blockSize)
			want := slices.Clone(srv)
			const off, n = 100, 3 * blockSize
			sh := newShadow(t, newPool(t), off, n, true, tracking)
			if err := sh.Arm(); err != nil {
				t.Fatal(err)
			}
			if sh.Tracking() != tracking {
				t.Errorf("Tracking() = %v", sh.Tracking())
			}
			const at, size = blockSize - 1000, blockSize + 1007
			copy(sh.Bytes()[at-off:], bytes.Repeat([]byte{0, 0, 3}, size/3))
			copy(want[at:], sh.Bytes()[at-off:][:size])
			for name, collectAll := range map[string]func(context.Context, int64, int64, func(*mapping.Change) error) error{
				"named": sh.CollectNamed, "last": sh.CollectLast,
			} {
				var got [][2]int64
				clear(srv[at:][:size])
				if err := collectAll(t.Context(), at, size, func(c *mapping.Change) error {
					got = append(got, spans([]*mapping.Change{c})...)
					srv.apply(c)
					sh.Ack(c)
					return nil
				}); err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(got, [][2]int64{{at, blockSize}, {blockSize, 2 * blockSize}, {2 * blockSize, 2*blockSize + 7}}) {
					t.Errorf("%s: collected %v", name, got)
				}
				wantEqual(t, "server", srv, want)
			}
			if tracking != mapping.Named {
				if c := collect(t, sh, off, n); len(c) != 0 {
					t.Errorf("named ranges are collected again: %v", spans(c))
				}
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	p := newPool(t)
	for _, a := range []struct{ off, n, block int64 }{
		{-1, 1, blockSize}, {0, 0, blockSize}, {0, -1, blockSize}, {1<<63 - 1, 1, blockSize}, {1 << 62, 1 << 62, blockSize},
		{0, 1 << 60, blockSize}, {0, 1, 0}, {0, 1, -4096}, {0, 1, 100}, {0, 1, 1 << 32},
	} {
		if _, err := mapping.NewShadow(p, a.off, a.n, a.block, true, mapping.Compare); err == nil {
			t.Errorf("NewShadow(%d, %d, %d): no error", a.off, a.n, a.block)
		}
	}
	if _, err := mapping.NewShadow(p, 0, 1, blockSize, true, 77); err == nil {
		t.Error("unknown tracking: no error")
	}
	nop := func([]byte) error { return nil }
	yield := func(*mapping.Change) error { return nil }
	sh := newShadow(t, p, 100, 1000, true, mapping.Compare)
	if err := sh.Collect(t.Context(), 100, 1, yield); err == nil {
		t.Error("Collect before Arm: no error")
	}
	if err := sh.Merge(100, []byte{1}); err == nil {
		t.Error("Merge before Arm: no error")
	}
	if err := sh.Arm(); err != nil {
		t.Fatal(err)
	}
	if err := sh.Arm(); err == nil {
		t.Error("second Arm: no error")
	}
	if err := sh.Fill(100, 1, nop); err == nil {
		t.Error("Fill after Arm: no error")
	}
	for _, r := range [][2]int64{{99, 1}, {100, 1001}, {1100, 1}, {100, -1}, {101, 1<<63 - 1}, {-1 << 63, 1}} {
		if err := sh.Collect(t.Context(), r[0], r[1], yield); err == nil {
			t.Errorf("Collect(%v): no error", r)
		}
		if err := sh.CollectNamed(t.Context(), r[0], r[1], yield); err == nil {
			t.Errorf("CollectNamed(%v): no error", r)
		}
		if err := sh.Fill(r[0], r[1], nop); err == nil {
			t.Errorf("Fill(%v): no error", r)
		}
	}
	if err := sh.Merge(1099, []byte{1, 2}); err == nil {
		t.Error("Merge beyond the end: no error")
	}
	sh.Bytes()[0] = 1
	c := collect(t, sh, 100, 1000)
	if err := sh.Close(); err != nil {
		t.Fatal(err)
	}
	sh.Ack(c[0])
	if len(c[0].Data) != 1 {
		t.Error("a change does not outlive its shadow")
	}
	for _, err := range []error{
		sh.Collect(t.Context(), 100, 1, yield), sh.CollectNamed(t.Context(), 100, 1, yield),
		sh.Fill(100, 1, nop), sh.Arm(), sh.Merge(100, []byte{1}),
	} {
		if !errors.Is(err, mapping.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	}
	if err := sh.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}
