// SPDX-License-Identifier: Apache-2.0

package codec

import (
	"unsafe"

	"github.com/memspan/memspan/vulkan/registry"
)

// A rule says when a pointer means anything: where Vulkan ignores a pointer,
// applications leave garbage in it. Only the client asks; a worker sees
// whether something came.
type rule uint8

const (
	always rule = iota
	imageDescriptors
	bufferDescriptors
	texelDescriptors
	immutableSamplers
	concurrentBuffer
	concurrentImage
	framebufferWithImages
	secondaryCommandBuffer
	explicitRates
	inheritedViewports

	// Rules about what is inside a VkGraphicsPipelineCreateInfo. Outside of one
	// they hold.
	stages
	vertexInput
	inputAssembly
	tessellation
	viewport
	rasterization
	multisample
	depthStencil
	colorBlend
	attachmentFormats
	viewports
	scissors
	discardRectangles
	exclusiveScissors
	shadingRatePalettes
	viewportScalings
	coverageTable
)

// ruleOf finds the rule of a condition of the tables.
func ruleOf(condition string) (rule, bool) {
	r, ok := map[string]rule{
		"VkWriteDescriptorSet.pImageInfo":                                          imageDescriptors,
		"VkWriteDescriptorSet.pBufferInfo":                                         bufferDescriptors,
		"VkWriteDescriptorSet.pTexelBufferView":                                    texelDescriptors,
		"VkDescriptorSetLayoutBinding.pImmutableSamplers":                          immutableSamplers,
		"VkBufferCreateInfo.pQueueFamilyIndices":                                   concurrentBuffer,
		"VkImageCreateInfo.pQueueFamilyIndices":                                    concurrentImage,
		"VkFramebufferCreateInfo.pAttachments":                                     framebufferWithImages,
		"VkCommandBufferBeginInfo.pInheritanceInfo":                                secondaryCommandBuffer,
		"VkImageCompressionControlEXT.pFixedRateFlags":                             explicitRates,
		"VkCommandBufferInheritanceViewportScissorInfoNV.pViewportDepths":          inheritedViewports,
		"VkGraphicsPipelineCreateInfo.pStages":                                     stages,
		"VkGraphicsPipelineCreateInfo.pVertexInputState":                           vertexInput,
		"VkGraphicsPipelineCreateInfo.pInputAssemblyState":                         inputAssembly,
		"VkGraphicsPipelineCreateInfo.pTessellationState":                          tessellation,
		"VkGraphicsPipelineCreateInfo.pViewportState":                              viewport,
		"VkGraphicsPipelineCreateInfo.pRasterizationState":                         rasterization,
		"VkGraphicsPipelineCreateInfo.pMultisampleState":                           multisample,
		"VkGraphicsPipelineCreateInfo.pDepthStencilState":                          depthStencil,
		"VkGraphicsPipelineCreateInfo.pColorBlendState":                            colorBlend,
		"VkPipelineRenderingCreateInfo.pColorAttachmentFormats":                    attachmentFormats,
		"VkAttachmentSampleCountInfoAMD.pColorAttachmentSamples":                   attachmentFormats,
		"VkPipelineViewportStateCreateInfo.pViewports":                             viewports,
		"VkPipelineViewportStateCreateInfo.pScissors":                              scissors,
		"VkPipelineDiscardRectangleStateCreateInfoEXT.pDiscardRectangles":          discardRectangles,
		"VkPipelineViewportExclusiveScissorStateCreateInfoNV.pExclusiveScissors":   exclusiveScissors,
		"VkPipelineViewportShadingRateImageStateCreateInfoNV.pShadingRatePalettes": shadingRatePalettes,
		"VkPipelineViewportWScalingStateCreateInfoNV.pViewportWScalings":           viewportScalings,
		"VkPipelineCoverageModulationStateCreateInfoNV.pCoverageModulationTable":   coverageTable,
	}[condition]
	return r, ok
}

// What the rules look at, as C lays it out. A test compares the sizes with the
// tables'.
type (
	base struct {
		sType uint32
		next  uintptr
	}
	writeDescriptorSet struct {
		base
		dstSet                  uint64
		dstBinding, element     uint32
		descriptorCount         uint32
		descriptorType          uint32
		images, buffers, texels uintptr
	}
	descriptorSetLayoutBinding struct {
		binding, descriptorType, descriptorCount, stageFlags uint32
		immutableSamplers                                    uintptr
	}
	bufferCreateInfo struct {
		base
		flags                           uint32
		size                            uint64
		usage, sharingMode, familyCount uint32
		families                        uintptr
	}
	imageCreateInfo struct {
		base
		flags, imageType, format                uint32
		extent                                  [3]uint32
		mipLevels, arrayLayers, samples         uint32
		tiling, usage, sharingMode, familyCount uint32
		families                                uintptr
		initialLayout                           uint32
	}
	framebufferCreateInfo struct {
		base
		flags                 uint32
		renderPass            uint64
		attachmentCount       uint32
		attachments           uintptr
		width, height, layers uint32
	}
	imageCompressionControl struct {
		base
		flags, planes uint32
		rates         uintptr
	}
	inheritanceViewportScissor struct {
		base
		viewportScissor2D, depthCount uint32
		depths                        uintptr
	}
	viewportScaling struct {
		base
		enable, viewportCount uint32
		scalings              uintptr
	}
	shadingRateImage struct {
		base
		enable, viewportCount uint32
		palettes              uintptr
	}
	coverageModulation struct {
		base
		flags, mode, enable, tableCount uint32
		table                           uintptr
	}
	graphicsPipelineCreateInfo struct {
		base
		flags, stageCount  uint32
		stages             uintptr
		vertexInput        uintptr
		inputAssembly      uintptr
		tessellation       uintptr
		viewport           uintptr
		rasterization      uintptr
		multisample        uintptr
		depthStencil       uintptr
		colorBlend         uintptr
		dynamic            uintptr
		layout, renderPass uint64
		subpass            uint32
		basePipeline       uint64
		basePipelineIndex  int32
	}
	shaderStageCreateInfo struct {
		base
		flags, stage   uint32
		module         uint64
		name           uintptr
		specialization uintptr
	}
	rasterizationState struct {
		base
		flags, depthClamp, discard    uint32
		polygonMode, cullMode, front  uint32
		depthBias                     uint32
		constant, clamp, slope, width float32
	}
	dynamicState struct {
		base
		flags, count uint32
		states       uintptr
	}
	pipelineRendering struct {
		base
		viewMask, colorCount uint32
		formats              uintptr
		depth, stencil       uint32
	}
	pipelineLibrary struct {
		base
		count     uint32
		libraries uintptr
	}
	graphicsPipelineLibrary struct {
		base
		flags uint32
	}
)

const (
	typePipelineRendering       = 1000044002
	typePipelineLibrary         = 1000290000
	typeGraphicsPipelineLibrary = 1000320002

	createLibrary = 0x800 // VK_PIPELINE_CREATE_LIBRARY_BIT_KHR

	stageTessellation = 0x2 | 0x4
	stageMesh         = 0x40 | 0x80
)

// The subsets of a graphics pipeline's state.
const (
	subsetVertexInput = 1 << iota
	subsetPreRasterization
	subsetFragmentShader
	subsetFragmentOutput
	allSubsets = 1<<iota - 1
)

// The dynamic states that make pointers meaningless, as bits.
const (
	dynamicViewports = 1 << iota
	dynamicScissors
	dynamicDiscardRectangles
	dynamicExclusiveScissors
	dynamicShadingRatePalettes
	dynamicViewportScalings
	dynamicViewportScalingEnable
	dynamicCoverageTable
	dynamicCoverageEnable
	dynamicVertexInput
	dynamicDiscard
)

func dynamicBit(state uint32) uint16 {
	switch state {
	case 0, 1000267003: // VIEWPORT, VIEWPORT_WITH_COUNT
		return dynamicViewports
	case 1, 1000267004: // SCISSOR, SCISSOR_WITH_COUNT
		return dynamicScissors
	case 1000099000: // DISCARD_RECTANGLE_EXT
		return dynamicDiscardRectangles
	case 1000205001: // EXCLUSIVE_SCISSOR_NV
		return dynamicExclusiveScissors
	case 1000164004: // VIEWPORT_SHADING_RATE_PALETTE_NV
		return dynamicShadingRatePalettes
	case 1000087000: // VIEWPORT_W_SCALING_NV
		return dynamicViewportScalings
	case 1000455023: // VIEWPORT_W_SCALING_ENABLE_NV
		return dynamicViewportScalingEnable
	case 1000455029: // COVERAGE_MODULATION_TABLE_NV
		return dynamicCoverageTable
	case 1000455028: // COVERAGE_MODULATION_TABLE_ENABLE_NV
		return dynamicCoverageEnable
	case 1000352000: // VERTEX_INPUT_EXT
		return dynamicVertexInput
	case 1000377001: // RASTERIZER_DISCARD_ENABLE
		return dynamicDiscard
	}
	return 0
}

// A pipeline is what rules must know of the VkGraphicsPipelineCreateInfo that
// they are asked within. The zero pipeline is none.
type pipeline struct {
	inside     bool
	discard    bool // nothing is rasterized
	color      bool // there are color attachments
	depth      bool // there are depth or stencil attachments
	renderPass bool
	subsets    uint8
	dynamic    uint16
	stages     uint32
}

// pipelineAt reads a VkGraphicsPipelineCreateInfo of the application.
func pipelineAt(p uintptr, env *Env) pipeline {
	info := (*graphicsPipelineCreateInfo)(at(p))
	s := pipeline{inside: true, renderPass: info.renderPass != 0}
	s.subsets = allSubsets
	var rendering *pipelineRendering
	links := info.flags&createLibrary != 0
	for next := info.next; next != 0; next = loadPtr(next + 8) {
		switch load32(next) {
		case typePipelineRendering:
			rendering = (*pipelineRendering)(at(next))
		case typePipelineLibrary:
			links = links || (*pipelineLibrary)(at(next)).count > 0
		}
	}
	if links {
		s.subsets = 0
	}
	for next := info.next; next != 0; next = loadPtr(next + 8) {
		if load32(next) == typeGraphicsPipelineLibrary {
			s.subsets = uint8((*graphicsPipelineLibrary)(at(next)).flags & allSubsets)
		}
	}
	if info.dynamic != 0 {
		d := (*dynamicState)(at(info.dynamic))
		for i := uintptr(0); d.states != 0 && i < uintptr(d.count); i++ {
			s.dynamic |= dynamicBit(load32(d.states + 4*i))
		}
	}
	if s.subsets&(subsetPreRasterization|subsetFragmentShader) != 0 && info.stages != 0 {
		size := unsafe.Sizeof(shaderStageCreateInfo{})
		for i := range uintptr(info.stageCount) {
			s.stages |= (*shaderStageCreateInfo)(at(info.stages + i*size)).stage
		}
	}
	if s.subsets&subsetPreRasterization != 0 && s.dynamic&dynamicDiscard == 0 && info.rasterization != 0 {
		s.discard = (*rasterizationState)(at(info.rasterization)).discard != 0
	}
	switch {
	case info.renderPass != 0 && env.Attachments != nil && s.subsets&(subsetFragmentShader|subsetFragmentOutput) != 0:
		s.color, s.depth = env.Attachments(info.renderPass, info.subpass)
	case info.renderPass != 0:
		s.color, s.depth = true, true
	case s.subsets&subsetFragmentOutput == 0:
		s.depth = true // the part that says the formats is another
	case rendering != nil:
		s.color = rendering.colorCount != 0
		s.depth = rendering.depth != 0 || rendering.stencil != 0
	}
	return s
}

// holds applies r to a member of the application's structure at p, which is in
// pipe, if that is one.
func holds(r rule, p uintptr, pipe *pipeline, env *Env, args *registry.Args) bool {
	switch r {
	case always:
		return true
	case imageDescriptors:
		return elementOf((*writeDescriptorSet)(at(p)).descriptorType) == imageElement
	case bufferDescriptors:
		return elementOf((*writeDescriptorSet)(at(p)).descriptorType) == bufferElement
	case texelDescriptors:
		return elementOf((*writeDescriptorSet)(at(p)).descriptorType) == texelElement
	case immutableSamplers:
		return (*descriptorSetLayoutBinding)(at(p)).descriptorType <= 1 // SAMPLER, COMBINED_IMAGE_SAMPLER
	case concurrentBuffer:
		return (*bufferCreateInfo)(at(p)).sharingMode == 1
	case concurrentImage:
		return (*imageCreateInfo)(at(p)).sharingMode == 1
	case framebufferWithImages:
		return (*framebufferCreateInfo)(at(p)).flags&1 == 0 // IMAGELESS
	case secondaryCommandBuffer:
		return env.Secondary != nil && env.Secondary(identity(args[0]))
	case explicitRates:
		return (*imageCompressionControl)(at(p)).flags&2 != 0
	case inheritedViewports:
		return (*inheritanceViewportScissor)(at(p)).viewportScissor2D != 0
	}
	if !pipe.inside {
		return true
	}
	return pipe.holds(r, p)
}

func (s *pipeline) holds(r rule, p uintptr) bool {
	has := func(subsets uint8) bool { return s.subsets&subsets != 0 }
	dynamic := func(states uint16) bool { return s.dynamic&states != 0 }
	switch r {
	case stages:
		return has(subsetPreRasterization | subsetFragmentShader)
	case vertexInput:
		return has(subsetVertexInput) && !dynamic(dynamicVertexInput) && s.stages&stageMesh == 0
	case inputAssembly:
		return has(subsetVertexInput) && s.stages&stageMesh == 0
	case tessellation:
		return has(subsetPreRasterization) && s.stages&stageTessellation != 0
	case viewport:
		return has(subsetPreRasterization) && !s.discard
	case rasterization:
		return has(subsetPreRasterization)
	case multisample:
		return has(subsetFragmentShader|subsetFragmentOutput) && !s.discard
	case depthStencil:
		return has(subsetFragmentShader) && !s.discard && s.depth
	case colorBlend:
		return has(subsetFragmentOutput) && !s.discard && s.color
	case attachmentFormats:
		return has(subsetFragmentOutput) && !s.renderPass
	case viewports:
		return !dynamic(dynamicViewports)
	case scissors:
		return !dynamic(dynamicScissors)
	case discardRectangles:
		return !dynamic(dynamicDiscardRectangles)
	case exclusiveScissors:
		return !dynamic(dynamicExclusiveScissors)
	case shadingRatePalettes:
		return !dynamic(dynamicShadingRatePalettes) && (*shadingRateImage)(at(p)).enable != 0
	case viewportScalings:
		return !dynamic(dynamicViewportScalings) && ((*viewportScaling)(at(p)).enable != 0 || dynamic(dynamicViewportScalingEnable))
	case coverageTable:
		return !dynamic(dynamicCoverageTable) && ((*coverageModulation)(at(p)).enable != 0 || dynamic(dynamicCoverageEnable))
	}
	return true
}
