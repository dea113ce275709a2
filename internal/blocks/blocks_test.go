// SPDX-License-Identifier: Apache-2.0

package blocks_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"github.com/memspan/memspan/internal/blocks"
)

func noise(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

// send writes the blocks of mem that changed.
func send(w io.Writer, mem []byte, sums *blocks.Sums) (sent int, err error) {
	records := blocks.NewWriter(w)
	for i := range blocks.Count(int64(len(mem))) {
		if block := blocks.Of(mem, i); sums.Update(i, block) {
			sent++
			records.Add(i, block)
			if err := records.Flush(); err != nil {
				return sent, err
			}
		}
	}
	return sent, records.End(false)
}

func receive(r io.Reader, mem []byte) error {
	records := blocks.NewReader(r, int64(len(mem)))
	for {
		i, block, err := records.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		copy(blocks.Of(mem, i), block)
	}
}

// Example sends what changed in one copy of some memory to the other.
func Example() {
	here, there := make([]byte, 1<<20), make([]byte, 1<<20)
	sums := blocks.NewSums(1 << 20)
	var link bytes.Buffer
	here[500_000] = 7
	sent, err := send(&link, here, sums)
	fmt.Println(sent, "block,", link.Len() < 5000, err)
	fmt.Println(receive(&link, there), there[500_000])
	// Output:
	// 1 block, true <nil>
	// <nil> 7
}

// However memory is changed, the copy is the same after each exchange, and only
// blocks that changed are sent.
func TestCopiesStayInStep(t *testing.T) {
	random := noise(300_000)
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.SampledFrom([]int{1, 100, blocks.Size - 1, blocks.Size, blocks.Size + 1, 250_000}).Draw(t, "size")
		here, there, was := make([]byte, size), make([]byte, size), make([]byte, size)
		sums := blocks.NewSums(int64(size))
		for range rapid.IntRange(1, 4).Draw(t, "exchanges") {
			for range rapid.IntRange(0, 3).Draw(t, "stores") {
				at := rapid.IntRange(0, size-1).Draw(t, "at")
				n := rapid.IntRange(1, size-at).Draw(t, "n")
				if rapid.Bool().Draw(t, "random") {
					copy(here[at:at+n], random)
				} else {
					clear(here[at : at+n])
				}
			}
			want := 0
			for i := range blocks.Count(int64(size)) {
				if !bytes.Equal(blocks.Of(here, i), blocks.Of(was, i)) {
					want++
				}
			}
			var link bytes.Buffer
			sent, err := send(&link, here, sums)
			if err != nil || sent != want {
				t.Fatalf("%d blocks sent, %v, want %d", sent, err, want)
			}
			if err := receive(&link, there); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(here, there) || link.Len() != 0 {
				t.Fatalf("the copies differ, or %d bytes are left", link.Len())
			}
			copy(was, here)
		}
		sums.Zero()
		for i := range blocks.Count(int64(size)) {
			if zero := !bytes.ContainsFunc(blocks.Of(here, i), func(r rune) bool { return r != 0 }); sums.Update(i, blocks.Of(here, i)) == zero {
				t.Fatalf("block %d: zeros: %v", i, zero)
			}
		}
	})
}

// A stream that is damaged, cut or given up is never taken for a whole one, and
// what bytes come of it are those that were sent.
func TestDamagedStreams(t *testing.T) {
	const size = 3*blocks.Size + 5
	mem := noise(size)
	clear(mem[:blocks.Size]) // one is compressed
	mem[9] = 1
	var link bytes.Buffer
	if _, err := send(&link, mem, blocks.NewSums(size)); err != nil {
		t.Fatal(err)
	}
	stream := bytes.Clone(link.Bytes())
	rapid.Check(t, func(t *rapid.T) {
		damaged := bytes.Clone(stream)
		at := rapid.IntRange(0, len(damaged)-1).Draw(t, "at")
		if rapid.Bool().Draw(t, "cut") {
			damaged = damaged[:at]
		} else {
			damaged[at] ^= byte(rapid.IntRange(1, 255).Draw(t, "flip"))
		}
		got := make([]byte, size)
		err := receive(bytes.NewReader(damaged), got)
		if !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, blocks.ErrCorrupt) && !errors.Is(err, blocks.ErrFormat) {
			t.Fatalf("received: %v", err)
		}
		for i := range blocks.Count(size) {
			block := blocks.Of(got, i)
			if !bytes.Equal(block, blocks.Of(mem, i)) && bytes.ContainsFunc(block, func(r rune) bool { return r != 0 }) {
				t.Fatalf("block %d is neither what it was nor what was sent", i)
			}
		}
	})
	link.Reset()
	w := blocks.NewWriter(&link)
	w.Add(0, mem[:blocks.Size])
	if err := w.End(true); err != nil {
		t.Fatal(err)
	}
	if err := receive(&link, make([]byte, size)); !errors.Is(err, blocks.ErrGivenUp) {
		t.Errorf("given up: %v", err)
	}
	// Passed over, whatever it is.
	r := blocks.NewReader(bytes.NewReader(stream), -1)
	for err := error(nil); err != io.EOF; {
		var block []byte
		if _, block, err = r.Next(); block != nil || err != nil && err != io.EOF {
			t.Fatalf("passed over: %d bytes, %v", len(block), err)
		}
	}
}

func FuzzReader(f *testing.F) {
	const size = blocks.Size + 9
	var link bytes.Buffer
	mem := make([]byte, size)
	mem[0], mem[size-1] = 1, 1
	if _, err := send(&link, mem, blocks.NewSums(size)); err != nil {
		f.Fatal(err)
	}
	f.Add(link.Bytes())
	f.Add([]byte("\xff\xff\xff\xff\x00\x00\x00\x02\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		r := blocks.NewReader(bytes.NewReader(stream), size)
		for {
			i, block, err := r.Next()
			if err != nil {
				return
			}
			if len(block) != len(blocks.Of(mem, i)) {
				t.Fatalf("block %d of %d bytes", i, len(block))
			}
		}
	})
}

// BenchmarkSums finds that nothing changed in 64 MiB, against the same by an
// image of them.
func BenchmarkSums(b *testing.B) {
	const size = 64 << 20
	mem := noise(size)
	sums, image := blocks.NewSums(size), bytes.Clone(mem)
	pass := func() (changed int) {
		for i := range blocks.Count(size) {
			if sums.Update(i, blocks.Of(mem, i)) {
				changed++
			}
		}
		return changed
	}
	pass()
	b.Run("sums", func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			if pass() != 0 {
				b.Fatal("something changed")
			}
		}
	})
	b.Run("image", func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			for i := range blocks.Count(size) {
				if !bytes.Equal(blocks.Of(mem, i), blocks.Of(image, i)) {
					b.Fatal("something changed")
				}
			}
		}
	})
}
