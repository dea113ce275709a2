// SPDX-License-Identifier: Apache-2.0

package codec

import (
	"bytes"
	"runtime"
	"testing"

	"github.com/memspan/memspan/vulkan/registry"
)

// FuzzReadCall gives a worker any bytes as any call, some of whose handles
// exist: it ends with arguments or an error, within the arena's limit, and the
// reply to a call that was read can be made.
func FuzzReadCall(f *testing.F) {
	x, memory := New(), make([]byte, worldSize)
	for _, i := range []registry.Index{
		registry.VkCreateGraphicsPipelines, registry.VkUpdateDescriptorSets, registry.VkQueueSubmit2, registry.VkCreateDevice,
		registry.VkGetPhysicalDeviceProperties2, registry.VkEnumeratePhysicalDevices, registry.VkCmdDrawMultiEXT,
		registry.VkGetQueryPoolResults, registry.VkUpdateDescriptorSetWithTemplate, registry.VkCreateRenderPass2,
	} {
		for seed := range uint64(2) {
			w := newWorld(seed, memory)
			w.call(&registry.Commands[i])
			call, err := x.AppendCall(nil, &registry.Commands[i], &w.args, &w.env)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(uint16(i), call)
		}
	}
	layout := &Template{entries: []templateEntry{{count: 2, descriptorType: 1, stride: 24}, {count: 1, descriptorType: 6, offset: 64}}}
	f.Fuzz(func(t *testing.T, command uint16, body []byte) {
		if int(command) >= len(registry.Commands) {
			return
		}
		c := &registry.Commands[command]
		env := Env{
			Real:     func(kind registry.Index, id uint64) (uint64, bool) { return realOf(kind, id), id&7 != 0 },
			ID:       realOf,
			Template: func(id uint64) *Template { return layout },
		}
		arena := NewArena()
		var args registry.Args
		_, err := x.ReadCall(body, c, &args, arena, &env)
		if arena.total > ArenaLimit+alignment {
			t.Errorf("%d bytes of the arena", arena.total)
		}
		if err == nil {
			if _, err := x.AppendReply(nil, c, &args, 0, &env); err != nil {
				t.Error(err)
			}
			arena.Created()
		}
		runtime.KeepAlive(arena)
	})
}

// FuzzReadReply gives an application any bytes as the reply to any call: what
// is not output stays as it was.
func FuzzReadReply(f *testing.F) {
	x, memory := New(), make([]byte, worldSize)
	for _, i := range []registry.Index{
		registry.VkGetPhysicalDeviceProperties2, registry.VkCreateGraphicsPipelines, registry.VkEnumeratePhysicalDeviceGroups,
		registry.VkGetPipelineCacheData, registry.VkGetPhysicalDeviceToolProperties, registry.VkGetPipelineExecutableInternalRepresentationsKHR,
	} {
		for seed := range uint64(2) {
			w := newWorld(seed, memory)
			c := &registry.Commands[i]
			w.call(c)
			call, err := x.AppendCall(nil, c, &w.args, &w.env)
			if err != nil {
				f.Fatal(err)
			}
			var args registry.Args
			arena := NewArena()
			if _, err := x.ReadCall(call, c, &args, arena, &w.env); err != nil {
				f.Fatal(err)
			}
			d := driver{w, c, &args}
			d.run()
			reply, err := x.AppendReply(nil, c, &args, 0, &w.env)
			if err != nil {
				f.Fatal(err)
			}
			runtime.KeepAlive(arena)
			f.Add(uint16(i), seed, reply)
		}
	}
	zeros := make([]byte, worldSize)
	f.Fuzz(func(t *testing.T, command uint16, seed uint64, reply []byte) {
		if int(command) >= len(registry.Commands) {
			return
		}
		c := &registry.Commands[command]
		w := newWorld(seed, memory)
		w.call(c)
		w.env.Object = func(registry.Index, uint64) uint64 { return 0x7777 }
		used := w.used
		clear(memory[used:])
		inputs := func() []byte {
			var all []byte
			for i := range c.Params {
				if p := &c.Params[i]; p.Kind == registry.Pointer && !p.Out && p.Elem == registry.Bytes && w.args[i] != 0 && p.Len.Kind != registry.Strided {
					all = append(all, view(uintptr(w.args[i]), argumentCount(c, i, &w.args)*int(p.ElemSize))...)
				}
			}
			return all
		}
		before := inputs()
		x.ReadReply(reply, c, &w.args, &w.env) // the error is not what matters
		if !bytes.Equal(before, inputs()) {
			t.Error("an input changed")
		}
		if !bytes.Equal(memory[used:], zeros[used:]) {
			t.Error("memory that is not the call's changed")
		}
	})
}
