// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package vram

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/tier"
)

// benchBlocks is 64 MiB.
const benchBlocks = 64

// BenchmarkMemcpy is what the others are held against: the same bytes, copied
// between two regions in this process.
func BenchmarkMemcpy(b *testing.B) {
	var regions [2]*memfd.Region
	for i := range regions {
		r, err := memfd.Create("bench", benchBlocks*tier.BlockSize)
		if err != nil {
			b.Fatal(err)
		}
		defer r.Close()
		memfd.Copy(r.Bytes(), make([]byte, r.Size())) // first touch
		regions[i] = r
	}
	b.SetBytes(benchBlocks * tier.BlockSize)
	for b.Loop() {
		memfd.Copy(regions[0].Bytes(), regions[1].Bytes())
	}
}

// BenchmarkTransfer moves 64 MiB, block by block, by several callers at once.
func BenchmarkTransfer(b *testing.B) {
	for _, mode := range modes[:2] {
		tr := startTest(b, mode.cfg)
		s := testSpace(b, tr, benchBlocks)
		m := testMemory(b, tr, benchBlocks*tier.BlockSize)
		other := testSpace(b, tr, benchBlocks)
		for _, op := range []struct {
			name string
			run  func(ctx context.Context, block int, m tier.Memory) error
		}{
			{"Write", func(ctx context.Context, block int, m tier.Memory) error { return s.Write(ctx, block, 0, m) }},
			{"Read", func(ctx context.Context, block int, m tier.Memory) error { return s.Read(ctx, block, 0, m) }},
			{"Copy", func(ctx context.Context, block int, m tier.Memory) error {
				return other.Copy(ctx, block, 0, s, block, 0, tier.BlockSize)
			}},
			{"Fill", func(ctx context.Context, block int, m tier.Memory) error {
				return other.Fill(ctx, block, 0, tier.BlockSize, 0x12345678)
			}},
		} {
			for _, callers := range []int{1, 4} {
				b.Run(fmt.Sprintf("%s/%s/%d", mode.name, op.name, callers), func(b *testing.B) {
					b.SetBytes(benchBlocks * tier.BlockSize)
					before := tr.Stats().Submits
					for b.Loop() {
						var wg sync.WaitGroup
						for c := range callers {
							wg.Go(func() {
								for block := c; block < benchBlocks; block += callers {
									if err := op.run(context.Background(), block, m.Slice(int64(block)*tier.BlockSize, tier.BlockSize)); err != nil {
										b.Error(err)
										return
									}
								}
							})
						}
						wg.Wait()
					}
					b.ReportMetric(float64(tr.Stats().Submits-before)/float64(b.N), "submits/op")
				})
			}
		}
	}
}

// BenchmarkRoundTrip writes 8 bytes.
func BenchmarkRoundTrip(b *testing.B) {
	for _, mode := range modes[:2] {
		b.Run(mode.name, func(b *testing.B) {
			tr := startTest(b, mode.cfg)
			s := testSpace(b, tr, 1)
			m := testMemory(b, tr, 8)
			b.ReportAllocs()
			for b.Loop() {
				if err := s.Write(b.Context(), 0, 0, m); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
