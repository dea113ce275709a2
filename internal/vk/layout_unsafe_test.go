// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package vk

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"
)

// layout is what TestLayout knows of one structure: its size and the offsets
// of its fields as the C header has them, and as Go has them.
type layout struct {
	name   string
	size   [2]uintptr // C, Go
	fields []field
}

type field struct {
	name   string
	offset [2]uintptr // C, Go
}

func layouts() []layout {
	var (
		app    applicationInfo
		inst   instanceCreateInfo
		queue  deviceQueueCreateInfo
		dev    deviceCreateInfo
		limits physicalDeviceLimits
		ext    extensionProperties
		props  physicalDeviceProperties
		props2 physicalDeviceProperties2
		id     physicalDeviceIDProperties
		drv    physicalDeviceDriverProperties
		mem    physicalDeviceMemoryProperties
		fam    queueFamilyProperties
		alloc  memoryAllocateInfo
		rng    mappedMemoryRange
		buf    bufferCreateInfo
		req    memoryRequirements
		pool   commandPoolCreateInfo
		cmds   commandBufferAllocateInfo
		begin  commandBufferBeginInfo
		bar    memoryBarrier
		sub    submitInfo
		fence  fenceCreateInfo
		cp     BufferCopy
		feat   physicalDeviceFeatures
		module shaderModuleCreateInfo
		stage  shaderStageCreateInfo
		pipe   computePipelineCreateInfo
		bind   setLayoutBinding
		set    setLayoutCreateInfo
		push   pushConstantRange
		lay    pipelineLayoutCreateInfo
		dps    descriptorPoolSize
		dpool  descriptorPoolCreateInfo
		dset   descriptorSetAllocateInfo
		dbuf   descriptorBufferInfo
		write  writeDescriptorSet
	)
	return []layout{
		{"VkApplicationInfo", [2]uintptr{48, unsafe.Sizeof(app)}, []field{
			{"pApplicationName", [2]uintptr{16, unsafe.Offsetof(app.name)}}, {"apiVersion", [2]uintptr{44, unsafe.Offsetof(app.apiVersion)}}}},
		{"VkInstanceCreateInfo", [2]uintptr{64, unsafe.Sizeof(inst)}, []field{
			{"pApplicationInfo", [2]uintptr{24, unsafe.Offsetof(inst.application)}}, {"ppEnabledExtensionNames", [2]uintptr{56, unsafe.Offsetof(inst.extensions)}}}},
		{"VkDeviceQueueCreateInfo", [2]uintptr{40, unsafe.Sizeof(queue)}, []field{
			{"queueFamilyIndex", [2]uintptr{20, unsafe.Offsetof(queue.family)}}, {"pQueuePriorities", [2]uintptr{32, unsafe.Offsetof(queue.priorities)}}}},
		{"VkDeviceCreateInfo", [2]uintptr{72, unsafe.Sizeof(dev)}, []field{
			{"pQueueCreateInfos", [2]uintptr{24, unsafe.Offsetof(dev.queues)}}, {"pEnabledFeatures", [2]uintptr{64, unsafe.Offsetof(dev.features)}}}},
		{"VkPhysicalDeviceLimits", [2]uintptr{504, unsafe.Sizeof(limits)}, []field{
			{"maxMemoryAllocationCount", [2]uintptr{36, unsafe.Offsetof(limits.maxMemoryAllocations)}},
			{"maxComputeWorkGroupCount", [2]uintptr{220, unsafe.Offsetof(limits.maxGroupCount)}},
			{"maxComputeWorkGroupInvocations", [2]uintptr{232, unsafe.Offsetof(limits.maxInvocations)}},
			{"maxComputeWorkGroupSize", [2]uintptr{236, unsafe.Offsetof(limits.maxGroupSize)}},
			{"nonCoherentAtomSize", [2]uintptr{496, unsafe.Offsetof(limits.nonCoherentAtomSize)}}}},
		{"VkPhysicalDeviceProperties", [2]uintptr{824, unsafe.Sizeof(props)}, []field{
			{"deviceName", [2]uintptr{20, unsafe.Offsetof(props.deviceName)}}, {"limits", [2]uintptr{296, unsafe.Offsetof(props.limits)}}}},
		{"VkPhysicalDeviceProperties2", [2]uintptr{840, unsafe.Sizeof(props2)}, []field{
			{"properties", [2]uintptr{16, unsafe.Offsetof(props2.properties)}}}},
		{"VkPhysicalDeviceIDProperties", [2]uintptr{64, unsafe.Sizeof(id)}, []field{
			{"deviceUUID", [2]uintptr{16, unsafe.Offsetof(id.deviceUUID)}}, {"deviceLUIDValid", [2]uintptr{60, unsafe.Offsetof(id.deviceLUIDValid)}}}},
		{"VkPhysicalDeviceDriverProperties", [2]uintptr{536, unsafe.Sizeof(drv)}, []field{
			{"driverName", [2]uintptr{20, unsafe.Offsetof(drv.driverName)}}, {"driverInfo", [2]uintptr{276, unsafe.Offsetof(drv.driverInfo)}}}},
		{"VkExtensionProperties", [2]uintptr{260, unsafe.Sizeof(ext)}, []field{
			{"specVersion", [2]uintptr{256, unsafe.Offsetof(ext.specVersion)}}}},
		{"VkPhysicalDeviceMemoryProperties", [2]uintptr{520, unsafe.Sizeof(mem)}, []field{
			{"memoryTypes", [2]uintptr{4, unsafe.Offsetof(mem.types)}}, {"memoryHeapCount", [2]uintptr{260, unsafe.Offsetof(mem.heapCount)}},
			{"memoryHeaps", [2]uintptr{264, unsafe.Offsetof(mem.heaps)}}}},
		{"VkQueueFamilyProperties", [2]uintptr{24, unsafe.Sizeof(fam)}, []field{{"queueCount", [2]uintptr{4, unsafe.Offsetof(fam.count)}}}},
		{"VkMemoryAllocateInfo", [2]uintptr{32, unsafe.Sizeof(alloc)}, []field{
			{"allocationSize", [2]uintptr{16, unsafe.Offsetof(alloc.size)}}, {"memoryTypeIndex", [2]uintptr{24, unsafe.Offsetof(alloc.index)}}}},
		{"VkMappedMemoryRange", [2]uintptr{40, unsafe.Sizeof(rng)}, []field{
			{"memory", [2]uintptr{16, unsafe.Offsetof(rng.memory)}}, {"size", [2]uintptr{32, unsafe.Offsetof(rng.size)}}}},
		{"VkBufferCreateInfo", [2]uintptr{56, unsafe.Sizeof(buf)}, []field{
			{"size", [2]uintptr{24, unsafe.Offsetof(buf.size)}}, {"usage", [2]uintptr{32, unsafe.Offsetof(buf.usage)}},
			{"pQueueFamilyIndices", [2]uintptr{48, unsafe.Offsetof(buf.families)}}}},
		{"VkMemoryRequirements", [2]uintptr{24, unsafe.Sizeof(req)}, []field{{"memoryTypeBits", [2]uintptr{16, unsafe.Offsetof(req.typeBits)}}}},
		{"VkCommandPoolCreateInfo", [2]uintptr{24, unsafe.Sizeof(pool)}, []field{
			{"flags", [2]uintptr{16, unsafe.Offsetof(pool.flags)}}, {"queueFamilyIndex", [2]uintptr{20, unsafe.Offsetof(pool.family)}}}},
		{"VkCommandBufferAllocateInfo", [2]uintptr{32, unsafe.Sizeof(cmds)}, []field{
			{"commandPool", [2]uintptr{16, unsafe.Offsetof(cmds.pool)}}, {"commandBufferCount", [2]uintptr{28, unsafe.Offsetof(cmds.count)}}}},
		{"VkCommandBufferBeginInfo", [2]uintptr{32, unsafe.Sizeof(begin)}, []field{{"flags", [2]uintptr{16, unsafe.Offsetof(begin.flags)}}}},
		{"VkMemoryBarrier", [2]uintptr{24, unsafe.Sizeof(bar)}, []field{
			{"srcAccessMask", [2]uintptr{16, unsafe.Offsetof(bar.src)}}, {"dstAccessMask", [2]uintptr{20, unsafe.Offsetof(bar.dst)}}}},
		{"VkSubmitInfo", [2]uintptr{72, unsafe.Sizeof(sub)}, []field{
			{"commandBufferCount", [2]uintptr{40, unsafe.Offsetof(sub.commandCount)}}, {"pCommandBuffers", [2]uintptr{48, unsafe.Offsetof(sub.commands)}},
			{"pSignalSemaphores", [2]uintptr{64, unsafe.Offsetof(sub.signals)}}}},
		{"VkFenceCreateInfo", [2]uintptr{24, unsafe.Sizeof(fence)}, []field{{"flags", [2]uintptr{16, unsafe.Offsetof(fence.flags)}}}},
		{"VkBufferCopy", [2]uintptr{24, unsafe.Sizeof(cp)}, []field{
			{"dstOffset", [2]uintptr{8, unsafe.Offsetof(cp.Dst)}}, {"size", [2]uintptr{16, unsafe.Offsetof(cp.Size)}}}},
		{"VkPhysicalDeviceFeatures", [2]uintptr{220, unsafe.Sizeof(feat)}, []field{
			{"robustBufferAccess", [2]uintptr{0, unsafe.Offsetof(feat.robustBufferAccess)}}, {"shaderFloat64", [2]uintptr{156, unsafe.Offsetof(feat.shaderFloat64)}},
			{"shaderInt64", [2]uintptr{160, unsafe.Offsetof(feat.shaderInt64)}}, {"shaderInt16", [2]uintptr{164, unsafe.Offsetof(feat.shaderInt16)}}}},
		{"VkShaderModuleCreateInfo", [2]uintptr{40, unsafe.Sizeof(module)}, []field{
			{"codeSize", [2]uintptr{24, unsafe.Offsetof(module.size)}}, {"pCode", [2]uintptr{32, unsafe.Offsetof(module.code)}}}},
		{"VkPipelineShaderStageCreateInfo", [2]uintptr{48, unsafe.Sizeof(stage)}, []field{
			{"stage", [2]uintptr{20, unsafe.Offsetof(stage.stage)}}, {"module", [2]uintptr{24, unsafe.Offsetof(stage.module)}},
			{"pName", [2]uintptr{32, unsafe.Offsetof(stage.name)}}}},
		{"VkComputePipelineCreateInfo", [2]uintptr{96, unsafe.Sizeof(pipe)}, []field{
			{"stage", [2]uintptr{24, unsafe.Offsetof(pipe.stage)}}, {"layout", [2]uintptr{72, unsafe.Offsetof(pipe.layout)}},
			{"basePipelineIndex", [2]uintptr{88, unsafe.Offsetof(pipe.baseIndex)}}}},
		{"VkDescriptorSetLayoutBinding", [2]uintptr{24, unsafe.Sizeof(bind)}, []field{
			{"descriptorType", [2]uintptr{4, unsafe.Offsetof(bind.kind)}}, {"stageFlags", [2]uintptr{12, unsafe.Offsetof(bind.stages)}}}},
		{"VkDescriptorSetLayoutCreateInfo", [2]uintptr{32, unsafe.Sizeof(set)}, []field{
			{"bindingCount", [2]uintptr{20, unsafe.Offsetof(set.count)}}, {"pBindings", [2]uintptr{24, unsafe.Offsetof(set.bindings)}}}},
		{"VkPushConstantRange", [2]uintptr{12, unsafe.Sizeof(push)}, []field{{"size", [2]uintptr{8, unsafe.Offsetof(push.size)}}}},
		{"VkPipelineLayoutCreateInfo", [2]uintptr{48, unsafe.Sizeof(lay)}, []field{
			{"pSetLayouts", [2]uintptr{24, unsafe.Offsetof(lay.sets)}}, {"pushConstantRangeCount", [2]uintptr{32, unsafe.Offsetof(lay.pushCount)}},
			{"pPushConstantRanges", [2]uintptr{40, unsafe.Offsetof(lay.push)}}}},
		{"VkDescriptorPoolSize", [2]uintptr{8, unsafe.Sizeof(dps)}, []field{{"descriptorCount", [2]uintptr{4, unsafe.Offsetof(dps.count)}}}},
		{"VkDescriptorPoolCreateInfo", [2]uintptr{40, unsafe.Sizeof(dpool)}, []field{
			{"maxSets", [2]uintptr{20, unsafe.Offsetof(dpool.maxSets)}}, {"pPoolSizes", [2]uintptr{32, unsafe.Offsetof(dpool.sizes)}}}},
		{"VkDescriptorSetAllocateInfo", [2]uintptr{40, unsafe.Sizeof(dset)}, []field{
			{"descriptorPool", [2]uintptr{16, unsafe.Offsetof(dset.pool)}}, {"pSetLayouts", [2]uintptr{32, unsafe.Offsetof(dset.layouts)}}}},
		{"VkDescriptorBufferInfo", [2]uintptr{24, unsafe.Sizeof(dbuf)}, []field{{"range", [2]uintptr{16, unsafe.Offsetof(dbuf.size)}}}},
		{"VkWriteDescriptorSet", [2]uintptr{64, unsafe.Sizeof(write)}, []field{
			{"dstSet", [2]uintptr{16, unsafe.Offsetof(write.set)}}, {"descriptorType", [2]uintptr{36, unsafe.Offsetof(write.kind)}},
			{"pBufferInfo", [2]uintptr{48, unsafe.Offsetof(write.buffers)}}}},
	}
}

// TestLayout holds the structures to the C header's sizes and offsets as known
// here, and where the header and a compiler are installed, to the header.
func TestLayout(t *testing.T) {
	for _, l := range layouts() {
		if l.size[0] != l.size[1] {
			t.Errorf("%s: %d bytes in Go, %d in C", l.name, l.size[1], l.size[0])
		}
		for _, f := range l.fields {
			if f.offset[0] != f.offset[1] {
				t.Errorf("%s.%s: offset %d in Go, %d in C", l.name, f.name, f.offset[1], f.offset[0])
			}
		}
	}
}

func TestLayoutAgainstHeader(t *testing.T) {
	var program, want strings.Builder
	program.WriteString("#include <vulkan/vulkan_core.h>\n#include <stddef.h>\n#include <stdio.h>\nint main(void) {\n")
	number := func(expression string, value int64) {
		fmt.Fprintf(&program, "printf(\"%%s %%lld\\n\", %q, (long long)(%s));\n", expression, expression)
		fmt.Fprintf(&want, "%s %d\n", expression, value)
	}
	for _, l := range layouts() {
		number("sizeof("+l.name+")", int64(l.size[1]))
		for _, f := range l.fields {
			number("offsetof("+l.name+", "+f.name+")", int64(f.offset[1]))
		}
	}
	for name, value := range map[string]int64{
		"VK_STRUCTURE_TYPE_APPLICATION_INFO": int64(typeApplicationInfo), "VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO": int64(typeInstanceCreateInfo),
		"VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO": int64(typeDeviceQueueCreateInfo), "VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO": int64(typeDeviceCreateInfo),
		"VK_STRUCTURE_TYPE_SUBMIT_INFO": int64(typeSubmitInfo), "VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO": int64(typeMemoryAllocateInfo),
		"VK_STRUCTURE_TYPE_MAPPED_MEMORY_RANGE": int64(typeMappedMemoryRange), "VK_STRUCTURE_TYPE_FENCE_CREATE_INFO": int64(typeFenceCreateInfo),
		"VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO": int64(typeBufferCreateInfo), "VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO": int64(typeCommandPoolCreateInfo),
		"VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO": int64(typeCommandBufferAllocateInfo), "VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO": int64(typeCommandBufferBeginInfo),
		"VK_STRUCTURE_TYPE_MEMORY_BARRIER": int64(typeMemoryBarrier), "VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2": int64(typeProperties2),
		"VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_ID_PROPERTIES": int64(typeIDProperties), "VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_DRIVER_PROPERTIES": int64(typeDriverProperties),
		"VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO": int64(typeShaderModuleCreateInfo), "VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO": int64(typeShaderStageCreateInfo),
		"VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO": int64(typeComputePipelineCreateInfo), "VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO": int64(typePipelineLayoutCreateInfo),
		"VK_STRUCTURE_TYPE_DESCRIPTOR_SET_LAYOUT_CREATE_INFO": int64(typeSetLayoutCreateInfo), "VK_STRUCTURE_TYPE_DESCRIPTOR_POOL_CREATE_INFO": int64(typeDescriptorPoolCreateInfo),
		"VK_STRUCTURE_TYPE_DESCRIPTOR_SET_ALLOCATE_INFO": int64(typeDescriptorSetAllocateInfo), "VK_STRUCTURE_TYPE_WRITE_DESCRIPTOR_SET": int64(typeWriteDescriptorSet),
		"VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT": stageCompute, "VK_ACCESS_SHADER_READ_BIT": accessShaderRead, "VK_ACCESS_SHADER_WRITE_BIT": accessShaderWrite,
		"VK_SHADER_STAGE_COMPUTE_BIT": computeShader, "VK_DESCRIPTOR_TYPE_STORAGE_BUFFER": storageBuffer, "VK_PIPELINE_BIND_POINT_COMPUTE": bindCompute,
		"VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | VK_BUFFER_USAGE_TRANSFER_SRC_BIT | VK_BUFFER_USAGE_TRANSFER_DST_BIT": bufferUsage,
		"VK_PIPELINE_STAGE_TRANSFER_BIT": stageTransfer, "VK_PIPELINE_STAGE_HOST_BIT": stageHost,
		"VK_ACCESS_TRANSFER_READ_BIT": accessTransferRead, "VK_ACCESS_TRANSFER_WRITE_BIT": accessTransferWrite,
		"VK_ACCESS_HOST_READ_BIT": accessHostRead, "VK_ACCESS_HOST_WRITE_BIT": accessHostWrite,
		"VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT": int64(DeviceLocal), "VK_MEMORY_PROPERTY_HOST_CACHED_BIT": int64(HostCached),
		"VK_QUEUE_TRANSFER_BIT": int64(Transfer), "VK_PHYSICAL_DEVICE_TYPE_CPU": int64(CPU), "VK_TIMEOUT": int64(Timeout),
		"VK_ERROR_DEVICE_LOST": int64(ErrDeviceLost), "VK_ERROR_INCOMPATIBLE_DRIVER": int64(ErrIncompatibleDriver),
		"VK_API_VERSION_1_2": int64(MakeVersion(1, 2)),
	} {
		number(name, value)
	}
	program.WriteString("return 0; }\n")

	dir := t.TempDir()
	source, binary := filepath.Join(dir, "layout.c"), filepath.Join(dir, "layout")
	if err := os.WriteFile(source, []byte(program.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	compiler, err := exec.LookPath("cc")
	if err != nil {
		t.Skip("no C compiler")
	}
	if out, err := exec.Command(compiler, "-o", binary, source).CombinedOutput(); bytes.Contains(out, []byte("vulkan/vulkan_core.h: No such file")) {
		t.Skip("no Vulkan headers (apt install libvulkan-dev)")
	} else if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	out, err := exec.Command(binary).Output()
	if err != nil {
		t.Fatal(err)
	}
	got, wanted := strings.Split(string(out), "\n"), strings.Split(want.String(), "\n")
	for i := range wanted {
		if i >= len(got) || got[i] != wanted[i] {
			t.Errorf("C: %s, Go: %s", got[i], wanted[i])
		}
	}
}
