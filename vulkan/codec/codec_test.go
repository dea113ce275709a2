// SPDX-License-Identifier: Apache-2.0

package codec

import (
	"runtime"
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

// The count stands before an array that is empty, too.
func TestRoomForNothing(t *testing.T) {
	arena := NewArena()
	for range 3 {
		b, err := arena.room(0, 7)
		if err != nil || len(b) != 0 {
			t.Fatalf("%d bytes, %v", len(b), err)
		}
		if n := capacity(address(b)); n != 7 {
			t.Errorf("room for %d, want 7", n)
		}
	}
	runtime.KeepAlive(arena)
}

// No structure is left out of chains: none in the tables holds what means
// something in one process only.
func TestEveryStructureIsChained(t *testing.T) {
	x := New()
	for i := range x.structs {
		s := &x.structs[i]
		if s.sType != registry.NoSType && s.next && x.bySType[s.sType] == nil {
			t.Errorf("%s is left out", s.name)
		}
	}
}
