// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strings"
)

// What the registry does not say is decided here, by "VkStruct.member" or
// "vkCommand.parameter". An entry that nothing asked for is an error, and so is
// a pointer or handle that the registry leaves unchecked without an entry.

// conditional members mean something only if a rule of package codec says so;
// else they may hold anything.
var conditional = []string{
	"VkAttachmentSampleCountInfoAMD.pColorAttachmentSamples",
	"VkBindImageMemoryInfo.memory",
	"VkBufferCreateInfo.pQueueFamilyIndices",
	"VkCommandBufferBeginInfo.pInheritanceInfo",
	"VkCommandBufferInheritanceInfo.framebuffer",
	"VkCommandBufferInheritanceInfo.renderPass",
	"VkCommandBufferInheritanceViewportScissorInfoNV.pViewportDepths",
	"VkComputePipelineCreateInfo.basePipelineHandle",
	"VkDescriptorImageInfo.imageView",
	"VkDescriptorImageInfo.sampler",
	"VkDescriptorSetLayoutBinding.pImmutableSamplers",
	"VkDescriptorUpdateTemplateCreateInfo.descriptorSetLayout",
	"VkDescriptorUpdateTemplateCreateInfo.pipelineLayout",
	"VkFramebufferCreateInfo.pAttachments",
	"VkGraphicsPipelineCreateInfo.basePipelineHandle",
	"VkGraphicsPipelineCreateInfo.layout",
	"VkGraphicsPipelineCreateInfo.pColorBlendState",
	"VkGraphicsPipelineCreateInfo.pDepthStencilState",
	"VkGraphicsPipelineCreateInfo.pInputAssemblyState",
	"VkGraphicsPipelineCreateInfo.pMultisampleState",
	"VkGraphicsPipelineCreateInfo.pRasterizationState",
	"VkGraphicsPipelineCreateInfo.pStages",
	"VkGraphicsPipelineCreateInfo.pTessellationState",
	"VkGraphicsPipelineCreateInfo.pVertexInputState",
	"VkGraphicsPipelineCreateInfo.pViewportState",
	"VkGraphicsPipelineCreateInfo.renderPass",
	"VkImageCompressionControlEXT.pFixedRateFlags",
	"VkImageCreateInfo.pQueueFamilyIndices",
	"VkPipelineCoverageModulationStateCreateInfoNV.pCoverageModulationTable",
	"VkPipelineDiscardRectangleStateCreateInfoEXT.pDiscardRectangles",
	"VkPipelineRenderingCreateInfo.pColorAttachmentFormats",
	"VkPipelineViewportExclusiveScissorStateCreateInfoNV.pExclusiveScissors",
	"VkPipelineViewportShadingRateImageStateCreateInfoNV.pShadingRatePalettes",
	"VkPipelineViewportStateCreateInfo.pScissors",
	"VkPipelineViewportStateCreateInfo.pViewports",
	"VkPipelineViewportWScalingStateCreateInfoNV.pViewportWScalings",
	// The registry has these checked; the specification ignores them where
	// there is nothing to resolve, or no attachment.
	"VkRenderingAttachmentInfo.imageView",
	"VkRenderingAttachmentInfo.resolveImageView",
	"VkWriteDescriptorSet.dstSet",
	"VkWriteDescriptorSet.pBufferInfo",
	"VkWriteDescriptorSet.pImageInfo",
	"VkWriteDescriptorSet.pTexelBufferView",
}

// counted are left unchecked by the registry, but good for as many elements as
// the count says; those of handles may be null.
var counted = []string{
	"VkRenderPassBeginInfo.pClearValues",
	"vkCmdBeginTransformFeedbackEXT.pCounterBuffers",
	"vkCmdBindTransformFeedbackBuffersEXT.pSizes",
	"vkCmdClearColorImage.pColor",
	"vkCmdEndTransformFeedbackEXT.pCounterBuffers",
	"vkFreeCommandBuffers.pCommandBuffers",
	"vkFreeDescriptorSets.pDescriptorSets",
	"vkCmdDrawMultiEXT.pVertexInfo",
	"vkCmdDrawMultiIndexedEXT.pIndexInfo",
}

// lengths that the registry gives in prose only.
var lengths = map[string]string{
	"VkCommandBufferInheritanceViewportScissorInfoNV.pViewportDepths": "viewportDepthCount",
}

// objects point to what a descriptor update template lays out.
var objects = []string{
	"vkCmdPushDescriptorSetWithTemplateKHR.pData",
	"vkUpdateDescriptorSetWithTemplate.pData",
}

// inputs are only read, though the registry does not call them const.
var inputs = []string{
	"VkImageCompressionControlEXT.pFixedRateFlags",
}

// locals mean something in one process only, besides callbacks and allocators.
var locals = []string{
	"vkMapMemory.ppData",
}

// skipped types are no structures of their own.
var skipped = []string{"VkAllocationCallbacks", "VkBaseInStructure", "VkBaseOutStructure"}

// belongs names the extension without which drivers do not have a command,
// though the registry gives it to another one alone.
var belongs = map[string]string{
	"vkCmdSetCoverageModulationModeNV":           "VK_NV_framebuffer_mixed_samples",
	"vkCmdSetCoverageModulationTableEnableNV":    "VK_NV_framebuffer_mixed_samples",
	"vkCmdSetCoverageModulationTableNV":          "VK_NV_framebuffer_mixed_samples",
	"vkCmdSetCoverageReductionModeNV":            "VK_NV_coverage_reduction_mode",
	"vkCmdSetCoverageToColorEnableNV":            "VK_NV_fragment_coverage_to_color",
	"vkCmdSetCoverageToColorLocationNV":          "VK_NV_fragment_coverage_to_color",
	"vkCmdSetRepresentativeFragmentTestEnableNV": "VK_NV_representative_fragment_test",
	"vkCmdSetShadingRateImageEnableNV":           "VK_NV_shading_rate_image",
	"vkCmdSetViewportSwizzleNV":                  "VK_NV_viewport_swizzle",
	"vkCmdSetViewportWScalingEnableNV":           "VK_NV_clip_space_w_scaling",
}

// decisions notes which entries were asked for.
type decisions map[string]bool

func (d decisions) in(list []string, key string) bool {
	if !slices.Contains(list, key) {
		return false
	}
	d[key] = true
	return true
}

// unused is an error that names the entries nothing asked for.
func (d decisions) unused() error {
	var names []string
	for _, list := range [][]string{conditional, counted, objects, inputs, locals} {
		for _, key := range list {
			if !d[key] {
				names = append(names, key)
			}
		}
	}
	for key := range lengths {
		if !d[key] {
			names = append(names, key)
		}
	}
	if names == nil {
		return nil
	}
	slices.Sort(names)
	return fmt.Errorf("decisions about what is not there: %s", strings.Join(names, ", "))
}
