// SPDX-License-Identifier: Apache-2.0

package codec

import (
	"runtime"
	"testing"

	"github.com/memspan/memspan/vulkan/registry"
)

// poison is an address that faults when it is read: no process has the lowest
// pages.
const poison = 0xbad0

// A garbled structure holds garbage where Vulkan ignores it.
type garbled struct {
	name    string
	ignored []string            // members that hold garbage
	pipe    pipeline            // that the structure is within
	set     func(p uintptr)     // what makes them ignored
	keep    func(x *Codec) *Env // what the codec asks; nil: nothing
}

// words32 returns memory that does not move, with the given content.
func words32(words ...uint32) uintptr {
	b := make([]byte, 4*len(words)+8)
	for i, w := range words {
		little.PutUint32(b[4*i:], w)
	}
	kept = append(kept, b)
	return address(b)
}

// kept holds what the tests' structures point to.
var kept [][]byte

// garbledStructures say, for every condition of the tables, when it does not
// hold.
func garbledStructures() []garbled {
	inside := pipeline{inside: true, subsets: allSubsets, renderPass: true, color: true, depth: true}
	dynamic := func(bits uint16) pipeline { p := inside; p.dynamic = bits; return p }
	var list []garbled
	images, buffers, texels := "VkWriteDescriptorSet.pImageInfo", "VkWriteDescriptorSet.pBufferInfo", "VkWriteDescriptorSet.pTexelBufferView"
	for kind, ignored := range map[uint32][]string{
		0: {buffers, texels}, 1: {buffers, texels}, 2: {buffers, texels}, 3: {buffers, texels}, 10: {buffers, texels},
		4: {images, buffers}, 5: {images, buffers},
		6: {images, texels}, 7: {images, texels}, 8: {images, texels}, 9: {images, texels},
		1000138000: {images, buffers, texels}, 1000150000: {images, buffers, texels}, 0x7fffffff: {images, buffers, texels},
	} {
		list = append(list, garbled{name: "VkWriteDescriptorSet", ignored: ignored, set: func(p uintptr) {
			w := (*writeDescriptorSet)(at(p))
			w.descriptorType, w.descriptorCount = kind, 3
		}})
	}
	for kind := range uint32(11) {
		if kind > 1 {
			list = append(list, garbled{name: "VkDescriptorSetLayoutBinding", ignored: []string{"VkDescriptorSetLayoutBinding.pImmutableSamplers"}, set: func(p uintptr) {
				b := (*descriptorSetLayoutBinding)(at(p))
				b.descriptorType, b.descriptorCount = kind, 2
			}})
		}
	}
	list = append(list,
		garbled{name: "VkBufferCreateInfo", ignored: []string{"VkBufferCreateInfo.pQueueFamilyIndices"}, set: func(p uintptr) {
			(*bufferCreateInfo)(at(p)).familyCount = 7
		}},
		garbled{name: "VkImageCreateInfo", ignored: []string{"VkImageCreateInfo.pQueueFamilyIndices"}, set: func(p uintptr) {
			(*imageCreateInfo)(at(p)).familyCount = 7
		}},
		garbled{name: "VkFramebufferCreateInfo", ignored: []string{"VkFramebufferCreateInfo.pAttachments"}, set: func(p uintptr) {
			f := (*framebufferCreateInfo)(at(p))
			f.flags, f.attachmentCount = 1, 4
		}},
		garbled{name: "VkImageCompressionControlEXT", ignored: []string{"VkImageCompressionControlEXT.pFixedRateFlags"}, set: func(p uintptr) {
			(*imageCompressionControl)(at(p)).planes = 2
		}},
		garbled{name: "VkCommandBufferInheritanceViewportScissorInfoNV", ignored: []string{"VkCommandBufferInheritanceViewportScissorInfoNV.pViewportDepths"}, set: func(p uintptr) {
			(*inheritanceViewportScissor)(at(p)).depthCount = 2
		}},
		garbled{name: "VkCommandBufferBeginInfo", ignored: []string{"VkCommandBufferBeginInfo.pInheritanceInfo"}},
		garbled{name: "VkCommandBufferBeginInfo", ignored: []string{"VkCommandBufferBeginInfo.pInheritanceInfo"}, keep: func(*Codec) *Env {
			return &Env{Secondary: func(uint64) bool { return false }}
		}},
		garbled{name: "VkPipelineRenderingCreateInfo", ignored: []string{"VkPipelineRenderingCreateInfo.pColorAttachmentFormats"}, pipe: inside, set: func(p uintptr) {
			(*pipelineRendering)(at(p)).colorCount = 3
		}},
		garbled{name: "VkAttachmentSampleCountInfoAMD", ignored: []string{"VkAttachmentSampleCountInfoAMD.pColorAttachmentSamples"}, pipe: pipeline{inside: true, subsets: subsetVertexInput}, set: func(p uintptr) {
			store(p+16, 4, 3)
		}},
		garbled{name: "VkPipelineViewportStateCreateInfo", ignored: []string{"VkPipelineViewportStateCreateInfo.pViewports", "VkPipelineViewportStateCreateInfo.pScissors"}, pipe: dynamic(dynamicViewports | dynamicScissors), set: func(p uintptr) {
			store(p+20, 4, 1)
			store(p+32, 4, 1)
		}},
		garbled{name: "VkPipelineDiscardRectangleStateCreateInfoEXT", ignored: []string{"VkPipelineDiscardRectangleStateCreateInfoEXT.pDiscardRectangles"}, pipe: dynamic(dynamicDiscardRectangles), set: func(p uintptr) {
			store(p+24, 4, 1)
		}},
		garbled{name: "VkPipelineViewportExclusiveScissorStateCreateInfoNV", ignored: []string{"VkPipelineViewportExclusiveScissorStateCreateInfoNV.pExclusiveScissors"}, pipe: dynamic(dynamicExclusiveScissors), set: func(p uintptr) {
			store(p+16, 4, 1)
		}},
		garbled{name: "VkPipelineViewportShadingRateImageStateCreateInfoNV", ignored: []string{"VkPipelineViewportShadingRateImageStateCreateInfoNV.pShadingRatePalettes"}, pipe: inside, set: func(p uintptr) {
			(*shadingRateImage)(at(p)).viewportCount = 1
		}},
		garbled{name: "VkPipelineViewportWScalingStateCreateInfoNV", ignored: []string{"VkPipelineViewportWScalingStateCreateInfoNV.pViewportWScalings"}, pipe: inside, set: func(p uintptr) {
			(*viewportScaling)(at(p)).viewportCount = 1
		}},
		garbled{name: "VkPipelineCoverageModulationStateCreateInfoNV", ignored: []string{"VkPipelineCoverageModulationStateCreateInfoNV.pCoverageModulationTable"}, pipe: inside, set: func(p uintptr) {
			(*coverageModulation)(at(p)).tableCount = 1
		}},
	)
	pipe := func(set func(*graphicsPipelineCreateInfo), ignored ...string) {
		for i := range ignored {
			ignored[i] = "VkGraphicsPipelineCreateInfo." + ignored[i]
		}
		list = append(list, garbled{name: "VkGraphicsPipelineCreateInfo", ignored: ignored, set: func(p uintptr) {
			info := (*graphicsPipelineCreateInfo)(at(p))
			info.renderPass = 0x100000001
			set(info)
		}})
	}
	stage := func(stages ...uint32) (uint32, uintptr) {
		p := words32(make([]uint32, 12*len(stages))...)
		for i, s := range stages {
			(*shaderStageCreateInfo)(at(p + 48*uintptr(i))).stage = s
		}
		return uint32(len(stages)), p
	}
	states := func(s ...uint32) uintptr {
		p := words32(make([]uint32, 8)...)
		d := (*dynamicState)(at(p))
		d.count, d.states = uint32(len(s)), words32(s...)
		return p
	}
	raster := func(discard uint32) uintptr {
		p := words32(make([]uint32, 16)...)
		(*rasterizationState)(at(p)).discard = discard
		return p
	}
	// A part that has none of the state, and one that links libraries.
	all := []string{"pStages", "pVertexInputState", "pInputAssemblyState", "pTessellationState", "pViewportState", "pRasterizationState", "pMultisampleState", "pDepthStencilState", "pColorBlendState"}
	pipe(func(i *graphicsPipelineCreateInfo) { i.flags, i.stageCount = createLibrary, 5 }, all...)
	pipe(func(i *graphicsPipelineCreateInfo) {
		p := words32(make([]uint32, 8)...)
		store(p, 4, typePipelineLibrary)
		l := (*pipelineLibrary)(at(p))
		l.count, l.libraries = 1, words32(1, 1)
		i.next = p
	}, append([]string{}, "pStages", "pVertexInputState", "pInputAssemblyState", "pTessellationState", "pViewportState", "pRasterizationState", "pMultisampleState", "pDepthStencilState", "pColorBlendState")...)
	// Vertices without tessellation, whose pixels are discarded.
	pipe(func(i *graphicsPipelineCreateInfo) {
		i.stageCount, i.stages = stage(1)
		i.rasterization = raster(1)
	}, "pTessellationState", "pViewportState", "pMultisampleState", "pDepthStencilState", "pColorBlendState")
	// Mesh shaders read no vertices.
	pipe(func(i *graphicsPipelineCreateInfo) {
		i.stageCount, i.stages = stage(0x40, 0x80, 0x10)
		i.rasterization = raster(0)
	}, "pVertexInputState", "pInputAssemblyState", "pTessellationState")
	// What is set while recording.
	pipe(func(i *graphicsPipelineCreateInfo) {
		i.stageCount, i.stages = stage(1, 0x10)
		i.rasterization = raster(0)
		i.dynamic = states(3, 1000352000)
	}, "pVertexInputState", "pTessellationState")
	// Rendering without attachments.
	pipe(func(i *graphicsPipelineCreateInfo) {
		i.renderPass = 0
		i.stageCount, i.stages = stage(1, 0x10)
		i.rasterization = raster(0)
	}, "pTessellationState", "pDepthStencilState", "pColorBlendState")
	return list
}

// Garbage that Vulkan ignores is never read; the worker sees a null.
func TestGarbageIsNotRead(t *testing.T) {
	x := New()
	covered := make(map[string]bool)
	for _, g := range garbledStructures() {
		i := registry.StructByName(g.name)
		table, s := &registry.Structs[i], &x.structs[i]
		memory := make([]byte, s.size)
		p := address(memory)
		if s.sType != registry.NoSType {
			store(p, 4, uint64(s.sType))
		}
		if g.set != nil {
			g.set(p)
		}
		offsets := make(map[string]uint32)
		for _, m := range table.Members {
			offsets[m.Condition] = m.Offset
		}
		for _, condition := range g.ignored {
			offset, ok := offsets[condition]
			if !ok {
				t.Fatalf("%s: no such condition", condition)
			}
			store64(p+uintptr(offset), poison)
			covered[condition] = true
		}
		env := new(Env)
		if g.keep != nil {
			env = g.keep(x)
		}
		e := encoder{x: x, env: env, args: new(registry.Args), pipe: g.pipe}
		e.args[0] = uint64(words32(0, 0, 1, 1))
		if err := e.structure(s, p); err != nil {
			t.Errorf("%s: %v", g.name, err)
		}
		for _, condition := range g.ignored {
			if sent := little.Uint64(e.dst[offsets[condition]:]); sent != 0 {
				t.Errorf("%s is sent as %#x", condition, sent)
			}
		}
		runtime.KeepAlive(memory)
	}
	for i := range registry.Structs {
		for _, m := range registry.Structs[i].Members {
			if m.Kind == registry.Pointer && m.Condition != "" && !covered[m.Condition] {
				t.Errorf("%s has no test", m.Condition)
			}
		}
	}
}

// What the loader puts in chains, and what no table knows, is skipped, without
// a look at what is in it.
func TestUnknownStructuresAreSkipped(t *testing.T) {
	x := New()
	device := &registry.Commands[registry.VkCreateDevice]
	var chain uint64
	for _, sType := range []uint32{1000496000, 48, 47, 48, 0x7fffffff} {
		p := words32(sType, 0, uint32(chain), uint32(chain>>32), poison, 0, poison, 0)
		chain = uint64(p)
		if sType == 47 { // one that is known between them
			q := words32(1000059000, 0, uint32(chain), uint32(chain>>32))
			kept = append(kept, make([]byte, 0))
			b := append(append([]byte{}, view(q, 16)...), make([]byte, 240-16)...)
			kept = append(kept, b)
			chain = uint64(address(b))
		}
	}
	info := make([]byte, 72)
	store(address(info), 4, 3)
	store64(address(info)+8, chain)
	args := registry.Args{uint64(words32(0, 0, 5, 1)), uint64(address(info)), poison, uint64(words32(0, 0))}
	store64(uintptr(args[3]), uint64(words32(0, 0, 6, 1)))
	env := &Env{Real: func(registry.Index, uint64) (uint64, bool) { return 9, true }}
	call, err := x.AppendCall(nil, device, &args, env)
	if err != nil {
		t.Fatal(err)
	}
	var got registry.Args
	arena := NewArena()
	if _, err := x.ReadCall(call, device, &got, arena, env); err != nil {
		t.Fatal(err)
	}
	next := loadPtr(uintptr(got[1]) + 8)
	if next == 0 || load32(next) != 1000059000 || loadPtr(next+8) != 0 {
		t.Error("the chain is not the one structure that is known")
	}
	if got[2] != 0 {
		t.Error("the allocator was sent")
	}
	runtime.KeepAlive(arena)
	runtime.KeepAlive(info)
}
