// SPDX-License-Identifier: Apache-2.0

package host_test

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/memspan/memspan/internal/crc32c"
	"github.com/memspan/memspan/internal/sharedfile"
	"github.com/memspan/memspan/sharedbuf"
	"github.com/memspan/memspan/sharedbuf/host"
)

// BenchmarkScaling is 16 guests at once against one alone, each with buffers of
// its own that are processed again and again. Scaling is how many times as many
// bytes a second it is, median of pairs that take turns. Both go through all buffers
// before they come to one again, or who is alone would find his in the cache. What bounds it is measured
// in the same run, without a host: "memory" is the same of bare goroutines that pass
// over the same files, mapped before, and "mapping" of ones that map and unmap them
// for each pass. "ratio" is the time of all guests at once against that of the latter.
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
			// atOnce and inTurn do as many passes, of all buffers.
			atOnce := func(pass func(*sharedbuf.Buffer) error) time.Duration {
				start := time.Now()
				var g errgroup.Group
				for _, buf := range buffers {
					g.Go(func() error { return repeat(rounds, pass, buf) })
				}
				if err := g.Wait(); err != nil {
					b.Fatal(err)
				}
				return time.Since(start)
			}
			inTurn := func(pass func(*sharedbuf.Buffer) error) time.Duration {
				start := time.Now()
				for range rounds {
					for _, buf := range buffers {
						if err := pass(buf); err != nil {
							b.Fatal(err)
						}
					}
				}
				return time.Since(start)
			}
			hosted := func(buf *sharedbuf.Buffer) error {
				_, err := buf.Process(b.Context(), sharedbuf.Process())
				return err
			}
			mapped := func(buf *sharedbuf.Buffer) error {
				pass(buf.Bytes())
				return nil
			}
			b.SetBytes(guests * rounds * size)
			var scaling, memory, mapping, ratio []float64
			for b.Loop() {
				together := atOnce(hosted)
				b.StopTimer()
				bare := atOnce(mapPass)
				ratio = append(ratio, together.Seconds()/bare.Seconds())
				scaling = append(scaling, inTurn(hosted).Seconds()/together.Seconds())
				mapping = append(mapping, inTurn(mapPass).Seconds()/bare.Seconds())
				memory = append(memory, inTurn(mapped).Seconds()/atOnce(mapped).Seconds())
				b.StartTimer()
			}
			for name, values := range map[string][]float64{"scaling": scaling, "memory": memory, "mapping": mapping, "ratio": ratio} {
				slices.Sort(values)
				b.ReportMetric(values[len(values)/2], name)
			}
			b.ReportMetric(float64(runtime.GOMAXPROCS(0)), "processors")
		})
	}
}

func repeat(n int, pass func(*sharedbuf.Buffer) error, buf *sharedbuf.Buffer) error {
	for range n {
		if err := pass(buf); err != nil {
			return err
		}
		runtime.Gosched() // as who waits for an answer does: the others are next
	}
	return nil
}

// pass reads memory as the operation process does.
func pass(mem []byte) {
	for piece := range slices.Chunk(mem, 256<<10) {
		crc32c.Update(0, piece)
	}
}

// mapPass maps a buffer's file for one pass over it.
func mapPass(buf *sharedbuf.Buffer) error {
	f, err := os.Open(buf.Path())
	if err != nil {
		return err
	}
	defer f.Close()
	mem, err := sharedfile.Map(f, buf.Size(), false)
	if err != nil {
		return err
	}
	pass(mem)
	return sharedfile.Unmap(mem)
}
