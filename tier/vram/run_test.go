// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package vram

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/memspan/memspan/tier"
)

// code returns a compiled kernel: glslangValidator --quiet -V -o NAME.spv NAME.comp.
func code(tb testing.TB, name string) []byte {
	tb.Helper()
	b, err := os.ReadFile("testdata/" + name + ".spv")
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// affinePush are the push constants of affine.comp.
func affinePush(first, n int64, factor, term uint32) []byte {
	le := binary.LittleEndian
	b := le.AppendUint64(nil, uint64(first))
	b = le.AppendUint64(b, uint64(n))
	b = le.AppendUint32(b, factor)
	return le.AppendUint32(b, term)
}

// affine does what affine.comp does.
func affine(p []byte, first int64, factor, term uint32) {
	le := binary.LittleEndian
	for i := 0; i+4 <= len(p); i += 4 {
		le.PutUint32(p[i:], le.Uint32(p[i:])*factor+term+uint32(first/4)+uint32(i/4))
	}
}

// What a kernel makes of a block is what Go makes of it, in every kind of memory
// and for every length, many at a time.
func TestKernel(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			cfg := mode.cfg
			cfg.Budget = 40 << 20
			dev := startTest(t, cfg)
			k, err := dev.NewKernel(t.Context(), code(t, "affine"))
			if err != nil {
				t.Fatal(err)
			}
			defer k.Close()
			const size = 7<<20 + 4*1234
			s, mem := testSpace(t, dev, 8), testMemory(t, dev, size)
			rng := rand.New(rand.NewPCG(1, 2))
			p := mem.Bytes()
			for i := range p {
				p[i] = byte(rng.Uint32())
			}
			want := bytes.Clone(p)
			var g errgroup.Group
			for b := range 8 {
				off := int64(b) << 20
				n := min(size-off, tier.BlockSize)
				if b == 3 {
					n = 4 // the rest of the block stays
				}
				whole := mem.Slice(off, min(size-off, tier.BlockSize))
				factor, term := rng.Uint32(), rng.Uint32()
				affine(want[off:off+n], off, factor, term)
				g.Go(func() error {
					return errors.Join(
						s.Write(t.Context(), b, 0, whole),
						k.Run(t.Context(), s, b, n, affinePush(off, n, factor, term)),
						s.Read(t.Context(), b, 0, whole))
				})
			}
			if err := g.Wait(); err != nil {
				t.Fatal(err)
			}
			for i := range want {
				if p[i] != want[i] {
					t.Fatalf("byte %d of block %d is %#x, want %#x", i%tier.BlockSize, i/tier.BlockSize, p[i], want[i])
				}
			}
		})
	}
}

// A kernel that writes outside of its block changes no other.
func TestKernelStaysInItsBlock(t *testing.T) {
	dev := startTest(t, Config{Budget: 40 << 20})
	k, err := dev.NewKernel(t.Context(), code(t, "beyond"))
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	const size = 8 << 20
	s, mem := testSpace(t, dev, 8), testMemory(t, dev, size)
	for i := range mem.Bytes() {
		mem.Bytes()[i] = 0x55
	}
	want := bytes.Clone(mem.Bytes())
	for b := range 8 {
		if err := s.Write(t.Context(), b, 0, mem.Slice(int64(b)<<20, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	for b := range 8 {
		if err := k.Run(t.Context(), s, b, tier.BlockSize, nil); err != nil {
			t.Fatal(err)
		}
	}
	for b := range 8 {
		if err := s.Read(t.Context(), b, 0, mem.Slice(int64(b)<<20, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(mem.Bytes(), want) {
		t.Error("other blocks have changed")
	}
}

// What is asked of a kernel must be possible.
func TestKernelRefuses(t *testing.T) {
	dev := startTest(t, Config{Budget: 40 << 20})
	k, err := dev.NewKernel(t.Context(), code(t, "affine"))
	if err != nil {
		t.Fatal(err)
	}
	s := testSpace(t, dev, 1)
	foreign := testSpace(t, startTest(t, Config{Budget: 40 << 20}), 1)
	for what, err := range map[string]error{
		"no such block":     k.Run(t.Context(), s, 1, 4, nil),
		"too long":          k.Run(t.Context(), s, 0, tier.BlockSize+1, nil),
		"negative":          k.Run(t.Context(), s, 0, -1, nil),
		"too many bytes":    k.Run(t.Context(), s, 0, 4, make([]byte, MaxPush+4)),
		"half a word":       k.Run(t.Context(), s, 0, 4, make([]byte, 2)),
		"of another device": k.Run(t.Context(), foreign, 0, 4, nil),
	} {
		if err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	if err := k.Run(t.Context(), s, 0, 0, nil); err != nil {
		t.Errorf("on nothing: %v", err)
	}
	if _, err := dev.NewKernel(t.Context(), []byte("no kernel")); !errors.Is(err, ErrKernel) {
		t.Errorf("not SPIR-V: %v", err)
	}
	k.Close()
	if err := k.Run(t.Context(), s, 0, 4, nil); err == nil {
		t.Error("a kernel that was closed: no error")
	}
	if pid := dev.WorkerPID(); pid == 0 {
		t.Error("the worker has ended")
	}
}

// A kernel that does not end, and one that is not what it says, end their worker
// and are told so; the next worker works.
func TestKernelEndsItsWorker(t *testing.T) {
	dev := startImpatient(t)
	last := dev.WorkerPID()
	again := func() {
		t.Helper()
		eventually(t, "a new worker", func() bool { return dev.WorkerPID() != 0 && dev.WorkerPID() != last })
		last = dev.WorkerPID()
	}
	s := testSpace(t, dev, 1)
	k, err := dev.NewKernel(t.Context(), code(t, "spin"))
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Run(t.Context(), s, 0, tier.BlockSize, nil); !errors.Is(err, tier.ErrLost) {
		t.Fatalf("a kernel that does not end: %v", err)
	}
	again()
	if err := s.Reserve(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if err := k.Run(t.Context(), s, 0, 4096, nil); !errors.Is(err, tier.ErrLost) {
		t.Errorf("a kernel of the last worker: %v", err)
	}

	bad := code(t, "affine")
	for at := 20; at < len(bad); at += 4 { // keep the instructions' lengths, and the entry
		n := int(binary.LittleEndian.Uint32(bad[at:]) >> 16)
		if op := binary.LittleEndian.Uint32(bad[at:]) & 0xffff; op > opDecorate {
			for i := 4; i < 4*n; i++ {
				bad[at+i] = 0xff
			}
		}
		at += 4 * (n - 1)
	}
	if k, err := dev.NewKernel(t.Context(), bad); err == nil {
		k.Close()
		t.Log("the driver bears it")
	} else if errors.Is(err, tier.ErrLost) {
		again()
	}
	good, err := dev.NewKernel(t.Context(), code(t, "affine"))
	if err != nil {
		t.Fatal(err)
	}
	defer good.Close()
	if err := s.Reserve(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if err := good.Run(t.Context(), s, 0, 4096, affinePush(0, 4096, 1, 1)); err != nil {
		t.Errorf("after that: %v", err)
	}
}

// BenchmarkKernel is a block through a kernel, against the same without one.
func BenchmarkKernel(b *testing.B) {
	dev := startTest(b, Config{Budget: 40 << 20})
	k, err := dev.NewKernel(b.Context(), code(b, "affine"))
	if err != nil {
		b.Fatal(err)
	}
	defer k.Close()
	s, mem := testSpace(b, dev, 1), testMemory(b, dev, tier.BlockSize)
	push := affinePush(0, tier.BlockSize, 3, 7)
	for _, with := range []bool{false, true} {
		b.Run(fmt.Sprintf("kernel=%t", with), func(b *testing.B) {
			b.SetBytes(tier.BlockSize)
			for b.Loop() {
				err := s.Write(b.Context(), 0, 0, mem)
				if err == nil && with {
					err = k.Run(b.Context(), s, 0, tier.BlockSize, push)
				}
				if err == nil {
					err = s.Read(b.Context(), 0, 0, mem)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
