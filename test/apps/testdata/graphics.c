// SPDX-License-Identifier: Apache-2.0
//
// Drawing without a window: a triangle to an image, copied to a buffer and read
// back. What is printed is the sum of all its bytes. The argument names the
// case.

#include "app.h"
#include "triangle_frag.h"
#include "triangle_vert.h"

enum { W = 257, H = 131 }; // odd, for row pitches to matter

static const VkFormat format = VK_FORMAT_R8G8B8A8_UNORM;

typedef struct {
	VkImage image;
	VkDeviceMemory memory;
	VkImageView view;
} Image;

static Image make_image(App *a, VkImageTiling tiling, VkImageUsageFlags usage, VkMemoryPropertyFlags flags) {
	Image m = {0};
	VkImageCreateInfo info = {.sType = VK_STRUCTURE_TYPE_IMAGE_CREATE_INFO, .imageType = VK_IMAGE_TYPE_2D, .format = format, .extent = {W, H, 1},
		.mipLevels = 1, .arrayLayers = 1, .samples = VK_SAMPLE_COUNT_1_BIT, .tiling = tiling, .usage = usage,
		.initialLayout = tiling == VK_IMAGE_TILING_LINEAR ? VK_IMAGE_LAYOUT_PREINITIALIZED : VK_IMAGE_LAYOUT_UNDEFINED};
	OK(vkCreateImage(a->device, &info, NULL, &m.image));
	VkMemoryRequirements need;
	vkGetImageMemoryRequirements(a->device, m.image, &need);
	m.memory = allocate(a, need, flags);
	OK(vkBindImageMemory(a->device, m.image, m.memory, 0));
	if (usage & VK_IMAGE_USAGE_COLOR_ATTACHMENT_BIT) {
		VkImageViewCreateInfo view = {.sType = VK_STRUCTURE_TYPE_IMAGE_VIEW_CREATE_INFO, .image = m.image, .viewType = VK_IMAGE_VIEW_TYPE_2D, .format = format,
			.subresourceRange = {VK_IMAGE_ASPECT_COLOR_BIT, 0, 1, 0, 1}};
		OK(vkCreateImageView(a->device, &view, NULL, &m.view));
	}
	return m;
}

static void drop_image(App *a, Image *m) {
	vkDestroyImageView(a->device, m->view, NULL);
	vkDestroyImage(a->device, m->image, NULL);
	vkFreeMemory(a->device, m->memory, NULL);
}

static void change_layout(VkCommandBuffer cb, Image *m, VkImageLayout from, VkImageLayout to) {
	VkImageMemoryBarrier b = {.sType = VK_STRUCTURE_TYPE_IMAGE_MEMORY_BARRIER, .srcAccessMask = VK_ACCESS_MEMORY_WRITE_BIT, .dstAccessMask = VK_ACCESS_MEMORY_READ_BIT | VK_ACCESS_MEMORY_WRITE_BIT,
		.oldLayout = from, .newLayout = to, .srcQueueFamilyIndex = VK_QUEUE_FAMILY_IGNORED, .dstQueueFamilyIndex = VK_QUEUE_FAMILY_IGNORED, .image = m->image,
		.subresourceRange = {VK_IMAGE_ASPECT_COLOR_BIT, 0, 1, 0, 1}};
	vkCmdPipelineBarrier(cb, VK_PIPELINE_STAGE_ALL_COMMANDS_BIT, VK_PIPELINE_STAGE_ALL_COMMANDS_BIT, 0, 0, NULL, 0, NULL, 1, &b);
}

static const VkBufferImageCopy whole = {.imageSubresource = {VK_IMAGE_ASPECT_COLOR_BIT, 0, 0, 1}, .imageExtent = {W, H, 1}};

// Prints what the image holds, which is ready to be copied from.
static void show(App *a, const char *what, Buffer *b) {
	uint8_t *pixels = map(a, b);
	printf("%s: %016llx, corner %02x%02x%02x, middle %02x%02x%02x\n", what, (unsigned long long)sum(pixels, W * H * 4),
		pixels[0], pixels[1], pixels[2], pixels[(H / 2 * W + W / 2) * 4], pixels[(H / 2 * W + W / 2) * 4 + 1], pixels[(H / 2 * W + W / 2) * 4 + 2]);
	vkUnmapMemory(a->device, b->memory);
}

// pass is null with dynamic rendering.
static VkPipeline make_pipeline(App *a, VkPipelineLayout layout, VkRenderPass pass) {
	VkShaderModule vert = make_shader(a, triangle_vert, sizeof triangle_vert), frag = make_shader(a, triangle_frag, sizeof triangle_frag);
	VkPipelineShaderStageCreateInfo stages[] = {
		{.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO, .stage = VK_SHADER_STAGE_VERTEX_BIT, .module = vert, .pName = "main"},
		{.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO, .stage = VK_SHADER_STAGE_FRAGMENT_BIT, .module = frag, .pName = "main"}};
	VkVertexInputBindingDescription binding = {0, 20, VK_VERTEX_INPUT_RATE_VERTEX};
	VkVertexInputAttributeDescription attributes[] = {{0, 0, VK_FORMAT_R32G32_SFLOAT, 0}, {1, 0, VK_FORMAT_R32G32B32_SFLOAT, 8}};
	VkPipelineVertexInputStateCreateInfo input = {.sType = VK_STRUCTURE_TYPE_PIPELINE_VERTEX_INPUT_STATE_CREATE_INFO,
		.vertexBindingDescriptionCount = 1, .pVertexBindingDescriptions = &binding, .vertexAttributeDescriptionCount = 2, .pVertexAttributeDescriptions = attributes};
	VkPipelineInputAssemblyStateCreateInfo assembly = {.sType = VK_STRUCTURE_TYPE_PIPELINE_INPUT_ASSEMBLY_STATE_CREATE_INFO, .topology = VK_PRIMITIVE_TOPOLOGY_TRIANGLE_LIST};
	VkPipelineViewportStateCreateInfo viewport = {.sType = VK_STRUCTURE_TYPE_PIPELINE_VIEWPORT_STATE_CREATE_INFO, .viewportCount = 1, .scissorCount = 1};
	VkPipelineRasterizationStateCreateInfo raster = {.sType = VK_STRUCTURE_TYPE_PIPELINE_RASTERIZATION_STATE_CREATE_INFO, .lineWidth = 1};
	VkPipelineMultisampleStateCreateInfo samples = {.sType = VK_STRUCTURE_TYPE_PIPELINE_MULTISAMPLE_STATE_CREATE_INFO, .rasterizationSamples = VK_SAMPLE_COUNT_1_BIT};
	VkPipelineColorBlendAttachmentState blend = {.colorWriteMask = 15};
	VkPipelineColorBlendStateCreateInfo blending = {.sType = VK_STRUCTURE_TYPE_PIPELINE_COLOR_BLEND_STATE_CREATE_INFO, .attachmentCount = 1, .pAttachments = &blend};
	VkDynamicState states[] = {VK_DYNAMIC_STATE_VIEWPORT, VK_DYNAMIC_STATE_SCISSOR};
	VkPipelineDynamicStateCreateInfo dynamic = {.sType = VK_STRUCTURE_TYPE_PIPELINE_DYNAMIC_STATE_CREATE_INFO, .dynamicStateCount = 2, .pDynamicStates = states};
	VkPipelineRenderingCreateInfo rendering = {.sType = VK_STRUCTURE_TYPE_PIPELINE_RENDERING_CREATE_INFO, .colorAttachmentCount = 1, .pColorAttachmentFormats = &format};
	VkGraphicsPipelineCreateInfo info = {.sType = VK_STRUCTURE_TYPE_GRAPHICS_PIPELINE_CREATE_INFO, .pNext = pass ? NULL : &rendering, .stageCount = 2, .pStages = stages,
		.pVertexInputState = &input, .pInputAssemblyState = &assembly, .pViewportState = &viewport, .pRasterizationState = &raster, .pMultisampleState = &samples,
		// There is no depth, so this may be anything.
		.pDepthStencilState = (void *)(uintptr_t)0xdead,
		.pColorBlendState = &blending, .pDynamicState = &dynamic, .layout = layout, .renderPass = pass};
	if (!pass)
		info.pDepthStencilState = NULL;
	VkPipeline pipeline;
	OK(vkCreateGraphicsPipelines(a->device, VK_NULL_HANDLE, 1, &info, NULL, &pipeline));
	vkDestroyShaderModule(a->device, vert, NULL);
	vkDestroyShaderModule(a->device, frag, NULL);
	return pipeline;
}

static VkRenderPass make_pass(App *a) {
	VkAttachmentDescription colour = {.format = format, .samples = VK_SAMPLE_COUNT_1_BIT, .loadOp = VK_ATTACHMENT_LOAD_OP_CLEAR, .storeOp = VK_ATTACHMENT_STORE_OP_STORE,
		.stencilLoadOp = VK_ATTACHMENT_LOAD_OP_DONT_CARE, .stencilStoreOp = VK_ATTACHMENT_STORE_OP_DONT_CARE,
		.initialLayout = VK_IMAGE_LAYOUT_UNDEFINED, .finalLayout = VK_IMAGE_LAYOUT_TRANSFER_SRC_OPTIMAL};
	VkAttachmentReference reference = {0, VK_IMAGE_LAYOUT_COLOR_ATTACHMENT_OPTIMAL};
	VkSubpassDescription subpass = {.pipelineBindPoint = VK_PIPELINE_BIND_POINT_GRAPHICS, .colorAttachmentCount = 1, .pColorAttachments = &reference};
	VkSubpassDependency after = {.srcSubpass = 0, .dstSubpass = VK_SUBPASS_EXTERNAL, .srcStageMask = VK_PIPELINE_STAGE_COLOR_ATTACHMENT_OUTPUT_BIT, .dstStageMask = VK_PIPELINE_STAGE_TRANSFER_BIT,
		.srcAccessMask = VK_ACCESS_COLOR_ATTACHMENT_WRITE_BIT, .dstAccessMask = VK_ACCESS_TRANSFER_READ_BIT};
	VkRenderPassCreateInfo info = {.sType = VK_STRUCTURE_TYPE_RENDER_PASS_CREATE_INFO, .attachmentCount = 1, .pAttachments = &colour, .subpassCount = 1, .pSubpasses = &subpass, .dependencyCount = 1, .pDependencies = &after};
	VkRenderPass pass;
	OK(vkCreateRenderPass(a->device, &info, NULL, &pass));
	return pass;
}

static void triangle(App *a, int dynamic) {
	Image target = make_image(a, VK_IMAGE_TILING_OPTIMAL, VK_IMAGE_USAGE_COLOR_ATTACHMENT_BIT | VK_IMAGE_USAGE_TRANSFER_SRC_BIT, LOCAL);
	Buffer pixels = make_buffer(a, W * H * 4, COPY, COHERENT), vertices = make_buffer(a, 60, VK_BUFFER_USAGE_VERTEX_BUFFER_BIT, COHERENT);
	const float points[15] = {0, -.9, 1, 0, 0, .9, .9, 0, 1, 0, -.9, .9, 0, 0, 1};
	memcpy(map(a, &vertices), points, sizeof points);
	VkPushConstantRange push = {VK_SHADER_STAGE_VERTEX_BIT, 0, 4};
	VkPipelineLayoutCreateInfo info = {.sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO, .pushConstantRangeCount = 1, .pPushConstantRanges = &push};
	VkPipelineLayout layout;
	OK(vkCreatePipelineLayout(a->device, &info, NULL, &layout));
	VkRenderPass pass = dynamic ? VK_NULL_HANDLE : make_pass(a);
	VkFramebuffer frame = VK_NULL_HANDLE;
	if (pass) {
		VkFramebufferCreateInfo f = {.sType = VK_STRUCTURE_TYPE_FRAMEBUFFER_CREATE_INFO, .renderPass = pass, .attachmentCount = 1, .pAttachments = &target.view, .width = W, .height = H, .layers = 1};
		OK(vkCreateFramebuffer(a->device, &f, NULL, &frame));
	}
	VkPipeline pipeline = make_pipeline(a, layout, pass);
	for (int turn = 0; turn < 4; turn++) {
		float angle = turn * .7f;
		VkClearValue clear = {.color = {.float32 = {.1f, .2f, .3f, 1}}};
		VkRect2D area = {{0, 0}, {W, H}};
		VkViewport viewport = {0, 0, W, H, 0, 1};
		VkDeviceSize zero = 0;
		VkCommandBuffer cb = begin(a);
		if (dynamic) {
			VkRenderingAttachmentInfo colour = {.sType = VK_STRUCTURE_TYPE_RENDERING_ATTACHMENT_INFO, .imageView = target.view, .imageLayout = VK_IMAGE_LAYOUT_COLOR_ATTACHMENT_OPTIMAL,
				.loadOp = VK_ATTACHMENT_LOAD_OP_CLEAR, .storeOp = VK_ATTACHMENT_STORE_OP_STORE, .clearValue = clear};
			VkRenderingInfo r = {.sType = VK_STRUCTURE_TYPE_RENDERING_INFO, .renderArea = area, .layerCount = 1, .colorAttachmentCount = 1, .pColorAttachments = &colour};
			change_layout(cb, &target, VK_IMAGE_LAYOUT_UNDEFINED, VK_IMAGE_LAYOUT_COLOR_ATTACHMENT_OPTIMAL);
			vkCmdBeginRendering(cb, &r);
		} else {
			VkRenderPassBeginInfo r = {.sType = VK_STRUCTURE_TYPE_RENDER_PASS_BEGIN_INFO, .renderPass = pass, .framebuffer = frame, .renderArea = area, .clearValueCount = 1, .pClearValues = &clear};
			vkCmdBeginRenderPass(cb, &r, VK_SUBPASS_CONTENTS_INLINE);
		}
		vkCmdBindPipeline(cb, VK_PIPELINE_BIND_POINT_GRAPHICS, pipeline);
		vkCmdSetViewport(cb, 0, 1, &viewport);
		vkCmdSetScissor(cb, 0, 1, &area);
		vkCmdBindVertexBuffers(cb, 0, 1, &vertices.buffer, &zero);
		vkCmdPushConstants(cb, layout, VK_SHADER_STAGE_VERTEX_BIT, 0, 4, &angle);
		vkCmdDraw(cb, 3, 1, 0, 0);
		if (dynamic) {
			vkCmdEndRendering(cb);
			change_layout(cb, &target, VK_IMAGE_LAYOUT_COLOR_ATTACHMENT_OPTIMAL, VK_IMAGE_LAYOUT_TRANSFER_SRC_OPTIMAL);
		} else {
			vkCmdEndRenderPass(cb);
		}
		vkCmdCopyImageToBuffer(cb, target.image, VK_IMAGE_LAYOUT_TRANSFER_SRC_OPTIMAL, pixels.buffer, 1, &whole);
		finish(a, cb);
		show(a, "triangle", &pixels);
	}
	vkDestroyPipeline(a->device, pipeline, NULL);
	vkDestroyFramebuffer(a->device, frame, NULL);
	vkDestroyRenderPass(a->device, pass, NULL);
	vkDestroyPipelineLayout(a->device, layout, NULL);
	drop_image(a, &target);
	drop_buffer(a, &pixels);
	drop_buffer(a, &vertices);
}

// A linear image is written by the host, row by row, copied to an optimal one,
// and that to a buffer.
static void linear(App *a) {
	Image host = make_image(a, VK_IMAGE_TILING_LINEAR, VK_IMAGE_USAGE_TRANSFER_SRC_BIT, COHERENT);
	Image device = make_image(a, VK_IMAGE_TILING_OPTIMAL, VK_IMAGE_USAGE_TRANSFER_SRC_BIT | VK_IMAGE_USAGE_TRANSFER_DST_BIT, LOCAL);
	Buffer pixels = make_buffer(a, W * H * 4, COPY, COHERENT);
	VkImageSubresource sub = {VK_IMAGE_ASPECT_COLOR_BIT, 0, 0};
	VkSubresourceLayout place;
	vkGetImageSubresourceLayout(a->device, host.image, &sub, &place);
	printf("offset %llu, row pitch %llu\n", (unsigned long long)place.offset, (unsigned long long)place.rowPitch);
	uint8_t *at;
	OK(vkMapMemory(a->device, host.memory, 0, VK_WHOLE_SIZE, 0, (void **)&at));
	for (int y = 0; y < H; y++)
		for (int x = 0; x < W; x++)
			for (int c = 0; c < 4; c++)
				at[place.offset + y * place.rowPitch + x * 4 + c] = y * 7 + x * 3 + c * 50;
	vkUnmapMemory(a->device, host.memory);
	VkCommandBuffer cb = begin(a);
	change_layout(cb, &host, VK_IMAGE_LAYOUT_PREINITIALIZED, VK_IMAGE_LAYOUT_TRANSFER_SRC_OPTIMAL);
	change_layout(cb, &device, VK_IMAGE_LAYOUT_UNDEFINED, VK_IMAGE_LAYOUT_TRANSFER_DST_OPTIMAL);
	VkImageCopy all = {.srcSubresource = whole.imageSubresource, .dstSubresource = whole.imageSubresource, .extent = whole.imageExtent};
	vkCmdCopyImage(cb, host.image, VK_IMAGE_LAYOUT_TRANSFER_SRC_OPTIMAL, device.image, VK_IMAGE_LAYOUT_TRANSFER_DST_OPTIMAL, 1, &all);
	change_layout(cb, &device, VK_IMAGE_LAYOUT_TRANSFER_DST_OPTIMAL, VK_IMAGE_LAYOUT_TRANSFER_SRC_OPTIMAL);
	vkCmdCopyImageToBuffer(cb, device.image, VK_IMAGE_LAYOUT_TRANSFER_SRC_OPTIMAL, pixels.buffer, 1, &whole);
	finish(a, cb);
	uint8_t *got = map(a, &pixels);
	for (int y = 0; y < H; y++)
		for (int x = 0; x < W; x++)
			for (int c = 0; c < 4; c++)
				CHECK(got[(y * W + x) * 4 + c] == (uint8_t)(y * 7 + x * 3 + c * 50));
	vkUnmapMemory(a->device, pixels.memory);
	show(a, "linear", &pixels);
	drop_image(a, &host);
	drop_image(a, &device);
	drop_buffer(a, &pixels);
}

int main(int argc, char **argv) {
	App a = open_app();
	const char *name = argc > 1 ? argv[1] : "";
	if (!strcmp(name, "render-pass"))
		triangle(&a, 0);
	else if (!strcmp(name, "dynamic-rendering"))
		triangle(&a, 1);
	else if (!strcmp(name, "linear-image"))
		linear(&a);
	else
		FAIL("cases: render-pass, dynamic-rendering, linear-image");
	close_app(&a);
	return 0;
}
