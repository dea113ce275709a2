// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package driver

import (
	"fmt"
	"testing"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/vulkan/registry"
	"github.com/memspan/memspan/vulkan/render"
)

// BenchmarkShadow moves all bytes of a shadow in one direction: what the
// application stores until the device has it, what the device wrote until the
// application sees it.
func BenchmarkShadow(b *testing.B) {
	for _, n := range []int{1 << 20, 10 << 20, 100 << 20} {
		b.Run(fmt.Sprintf("up=%dMiB", n>>20), func(b *testing.B) {
			r := newRig(b, false, render.Config{})
			up, upMemory := r.buffer(n)
			device, _ := r.buffer(n)
			src := make([]byte, n)
			in := r.mapped(upMemory, n)
			cp := r.copy(up, device, 0, n)
			b.SetBytes(int64(n))
			for i := 0; b.Loop(); i++ {
				b.StopTimer()
				pattern(src, uint64(i))
				b.StartTimer()
				memfd.Copy(in, src)
				r.call(registry.VkUnmapMemory, r.device, upMemory)
				r.run(cp)
			}
		})
		b.Run(fmt.Sprintf("down=%dMiB", n>>20), func(b *testing.B) {
			r := newRig(b, false, render.Config{})
			device, _ := r.buffer(n)
			down, downMemory := r.buffer(n)
			up, upMemory := r.buffer(n)
			in, out := r.mapped(upMemory, n), r.mapped(downMemory, n)
			cp := r.copy(device, down, 0, n)
			dst := make([]byte, n)
			b.SetBytes(int64(n))
			for i := 0; b.Loop(); i++ {
				b.StopTimer()
				pattern(in, uint64(i))
				r.run(r.copy(up, device, 0, n))
				b.StartTimer()
				r.run(cp)
				memfd.Copy(dst, out)
			}
			r.same("read back", dst, in)
		})
	}
}
