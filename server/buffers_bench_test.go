// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"slices"
	"testing"
	"time"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/server"
	"github.com/memspan/memspan/sharedbuf"
)

// BenchmarkBufferOperations is what guests have done with 64 MiB in RAM, against
// one copy of as many bytes between two mappings of this process, in turns: ratio
// is the median of the times over the copy's.
func BenchmarkBufferOperations(b *testing.B) {
	const size = 64 << 20
	run := func(name string, cfg func() server.Config, step func(i int) sharedbuf.Step) {
		b.Run(name, func(b *testing.B) {
			g := hostBuffers(b, cfg())
			var regions [2]*memfd.Region
			for i := range regions {
				var err error
				if regions[i], err = memfd.Create("bench", size); err != nil {
					b.Fatal(err)
				}
				defer regions[i].Close()
				memfd.Copy(regions[i].Bytes(), make([]byte, size)) // its pages
			}
			c, err := sharedbuf.Dial(b.Context(), g.addr, sharedbuf.Options{})
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			buf, err := c.Alloc(b.Context(), size)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := buf.Process(b.Context(), sharedbuf.Ingest(sharedbuf.IngestArguments{Name: "s"})); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(size)
			var ratios []float64
			i := 0
			for b.Loop() {
				i++
				start := time.Now()
				if _, err := buf.Process(b.Context(), step(i)); err != nil {
					b.Fatal(err)
				}
				took := time.Since(start)
				b.StopTimer()
				start = time.Now()
				memfd.Copy(regions[0].Bytes(), regions[1].Bytes())
				ratios = append(ratios, float64(took)/float64(time.Since(start)))
				b.StartTimer()
			}
			slices.Sort(ratios)
			b.ReportMetric(ratios[len(ratios)/2], "ratio")
		})
	}
	ram := func() server.Config { return server.Config{HostBudget: 1 << 30} }
	run("ingest", ram, func(int) sharedbuf.Step {
		return sharedbuf.Ingest(sharedbuf.IngestArguments{Name: "s", Replace: true})
	})
	run("move", ram, func(int) sharedbuf.Step {
		return sharedbuf.Ingest(sharedbuf.IngestArguments{Name: "s", Replace: true, Move: true})
	})
	run("export", ram, func(int) sharedbuf.Step { return sharedbuf.Export("s") })
	gpu := func() server.Config {
		cfg := withVRAM(b)
		cfg.HostBudget = 1 << 30
		return cfg
	}
	run("transform", gpu, func(i int) sharedbuf.Step {
		return transform(compiled(b, "affine"), 3, sharedbuf.U32(i))
	})
}

// BenchmarkSmallTransform is a kernel on 4 KiB, against reading them: what a
// transform costs beside its bytes, when the kernel was run before.
func BenchmarkSmallTransform(b *testing.B) {
	g := hostBuffers(b, withVRAM(b))
	buf := g.alloc(4096)
	for name, step := range map[string]sharedbuf.Step{"process": sharedbuf.Process(), "transform": transform(compiled(b, "affine"), 1, 1)} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				g.do(buf, step)
			}
		})
	}
}
