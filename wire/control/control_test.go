// SPDX-License-Identifier: Apache-2.0

package control_test

import (
	"encoding/json"
	"testing"

	"github.com/memspan/memspan/wire/control"
)

// messages makes one of each message.
var messages = []func() any{
	func() any { return new(control.Request) },
	func() any { return new(control.Hello) },
	func() any { return new(control.Welcome) },
	func() any { return new(control.Alloc) },
	func() any { return new(control.Open) },
	func() any { return new(control.Opened) },
	func() any { return new(control.Handle) },
	func() any { return new(control.Map) },
	func() any { return new(control.Mapped) },
	func() any { return new(control.Mapping) },
	func() any { return new(control.Versions) },
	func() any { return new(control.Flush) },
	func() any { return new(control.Committed) },
	func() any { return new(control.Copy) },
	func() any { return new(control.Fill) },
	func() any { return new(control.Transfer) },
	func() any { return new(control.Sync) },
	func() any { return new(control.Synced) },
	func() any { return new(control.Lock) },
	func() any { return new(control.Locked) },
	func() any { return new(control.Unlock) },
	func() any { return new(control.Cancel) },
	func() any { return new(control.SpanStat) },
	func() any { return new(control.List) },
	func() any { return new(control.Listed) },
	func() any { return new(control.Stats) },
	func() any { return new(control.Event) },
	func() any { return new(control.Publish) },
	func() any { return new(control.Vulkan) },
	func() any { return new(control.VulkanStarted) },
	func() any { return new(control.Expose) },
	func() any { return new(control.Exposed) },
	func() any { return new(control.SurfaceOpen) },
	func() any { return new(control.SurfacePull) },
	func() any { return new(control.SurfaceOpened) },
	func() any { return new(control.SurfaceWait) },
	func() any { return new(control.SurfaceDigests) },
	func() any { return new(control.Digests) },
	func() any { return new(control.Surfaces) },
	func() any { return new(control.SurfaceID) },
}

// Whatever JSON a peer sends, reading it does not panic, and what was read is
// the same after it was written and read again.
func FuzzMessages(f *testing.F) {
	for _, seed := range []string{
		`{}`, `null`, `[]`, `{"handle":"18446744073709551615"}`, `{"handle":1}`, `{"handle":"-1"}`,
		`{"op":"alloc","args":{"name":"x","size":1,"tier":"vram","home":"host","policy":"write-all"}}`,
		`{"name":"x","size":9223372036854775807,"tier":"disk","home":"host","policy":"write-through","placement":"device-local"}`,
		`{"protocol":1,"session":"7","block_size":1048576,"tiers":"vram,host","direct":true,"max_span":1,"max_map":1}`,
		`{"mapping":"3","direct":false,"versions":[{"n":3,"v":0},{"n":-1,"v":18446744073709551615}]}`,
		`{"handle":"1","offset":-1,"length":0,"mode":"sideways"}`, `{"tier":"ram"}`, `{"tiers":"vram,vram"}`,
		`{"version":1,"holders":"none","device":true}`, `{"event":"freed","mapping":"1"}`,
	} {
		for kind := range messages {
			f.Add(uint8(kind), []byte(seed))
		}
	}
	f.Fuzz(func(t *testing.T, kind uint8, data []byte) {
		message := messages[int(kind)%len(messages)]
		first := message()
		if json.Unmarshal(data, first) != nil {
			return
		}
		text, err := json.Marshal(first)
		if err != nil {
			t.Fatalf("%T read from %q cannot be written: %v", first, data, err)
		}
		second := message()
		if err := json.Unmarshal(text, second); err != nil {
			t.Fatalf("%T written as %q cannot be read: %v", first, text, err)
		}
		again, err := json.Marshal(second)
		if err != nil || string(again) != string(text) {
			t.Fatalf("%T is %s, then %s (%v)", first, text, again, err)
		}
	})
}
