// SPDX-License-Identifier: Apache-2.0

package codec

import (
	"testing"

	"github.com/memspan/memspan/vulkan/registry"
)

// uncarried are the commands whose arguments mean nothing elsewhere.
var uncarried = map[string]string{
	"vkGetInstanceProcAddr": "returns a procedure",
	"vkGetDeviceProcAddr":   "returns a procedure",
}

func TestEveryCommandIsCarried(t *testing.T) {
	x := New()
	for i := range registry.Commands {
		c := &registry.Commands[i]
		err := x.Supported(c)
		if _, expected := uncarried[c.Name]; (err != nil) != expected {
			t.Errorf("%v", err)
		}
	}
	for i := range x.structs {
		if err := x.structs[i].err; err != nil {
			t.Errorf("%v", err)
		}
	}
}

func BenchmarkNew(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		New()
	}
}
