// SPDX-License-Identifier: Apache-2.0

package host_test

import (
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/memspan/memspan/sharedbuf"
	"github.com/memspan/memspan/sharedbuf/host"
)

// BenchmarkScaling is 16 guests at once against one alone, each with buffers of
// its own that are processed again and again. Scaling is how many times as many
// bytes a second it is, median of pairs that take turns; the machine's processors
// bound it.
func BenchmarkScaling(b *testing.B) {
	const guests, rounds = 16, 4
	for _, size := range []int64{1 << 20, 16 << 20} {
		b.Run(fmt.Sprintf("%dMiB", size>>20), func(b *testing.B) {
			ln, dir := tcp(b), sharedDir(b)
			serve(b, ln, host.Config{Dir: dir})
			var buffers []*sharedbuf.Buffer
			for range guests {
				buf := alloc(b, dial(b, ln, dir), size)
				scribble(buf.Bytes())
				buffers = append(buffers, buf)
			}
			process := func(buf *sharedbuf.Buffer) error {
				for range rounds {
					if _, err := buf.Process(b.Context(), sharedbuf.Process()); err != nil {
						return err
					}
				}
				return nil
			}
			b.SetBytes(guests * rounds * size)
			var scaling []float64
			for b.Loop() {
				start := time.Now()
				var g errgroup.Group
				for _, buf := range buffers {
					g.Go(func() error { return process(buf) })
				}
				if err := g.Wait(); err != nil {
					b.Fatal(err)
				}
				together := time.Since(start)
				b.StopTimer()
				start = time.Now()
				for _, buf := range buffers { // as many bytes, by one at a time
					if err := process(buf); err != nil {
						b.Fatal(err)
					}
				}
				scaling = append(scaling, float64(time.Since(start))/float64(together))
				b.StartTimer()
			}
			slices.Sort(scaling)
			b.ReportMetric(scaling[len(scaling)/2], "scaling")
			b.ReportMetric(float64(runtime.GOMAXPROCS(0)), "processors")
		})
	}
}
