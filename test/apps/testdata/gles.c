// SPDX-License-Identifier: Apache-2.0
//
// Usage: gles
//
// Draws and computes with OpenGL ES 3.1, without a window, and prints sums of
// what comes out. With Mesa's zink it is an application of Vulkan.

#include <EGL/egl.h>
#include <EGL/eglext.h>
#include <GLES3/gl31.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FAIL(...) (fprintf(stderr, __VA_ARGS__), fputc('\n', stderr), exit(1))
#define CHECK(condition) ((condition) ? (void)0 : FAIL("line %d: not so: %s", __LINE__, #condition))

enum { W = 333, H = 200, N = 1 << 16 };

static void tell(const char *name, const void *data, size_t n) {
	uint64_t sum = 14695981039346656037u;
	for (size_t i = 0; i < n; i++)
		sum = (sum ^ ((const uint8_t *)data)[i]) * 1099511628211u;
	GLenum error = glGetError();
	if (error != 0)
		FAIL("%s: GL error %#x", name, error);
	printf("%s %016llx\n", name, (unsigned long long)sum);
}

static GLuint link_program(int count, const GLenum *kinds, const char *const *sources, const char *feedback) {
	GLuint program = glCreateProgram();
	for (int i = 0; i < count; i++) {
		GLuint shader = glCreateShader(kinds[i]);
		glShaderSource(shader, 1, &sources[i], NULL);
		glCompileShader(shader);
		glAttachShader(program, shader);
	}
	if (feedback)
		glTransformFeedbackVaryings(program, 1, &feedback, GL_INTERLEAVED_ATTRIBS);
	glLinkProgram(program);
	GLint linked = 0;
	glGetProgramiv(program, GL_LINK_STATUS, &linked);
	if (!linked) {
		char log[1000] = "";
		glGetProgramInfoLog(program, sizeof log, NULL, log);
		FAIL("program: %s", log);
	}
	return program;
}

static GLuint buffer(GLenum target, size_t size, const void *data) {
	GLuint name;
	glGenBuffers(1, &name);
	glBindBuffer(target, name);
	glBufferData(target, size, data, GL_DYNAMIC_COPY);
	return name;
}

static void tell_buffer(const char *name, GLenum target, size_t size) {
	void *data = glMapBufferRange(target, 0, size, GL_MAP_READ_BIT);
	CHECK(data);
	tell(name, data, size);
	glUnmapBuffer(target);
}

static void compute(void) {
	GLuint program = link_program(1, (GLenum[]){GL_COMPUTE_SHADER}, (const char *[]){
		"#version 310 es\n"
		"layout(local_size_x = 64) in;\n"
		"layout(std430, binding = 0) buffer B { uint x[]; };\n"
		"layout(binding = 0, offset = 0) uniform atomic_uint odd;\n"
		"shared uint part[64];\n"
		"void main() {\n"
		"	uint i = gl_GlobalInvocationID.x, l = gl_LocalInvocationIndex;\n"
		"	part[l] = x[i] * 2654435761u;\n"
		"	barrier();\n"
		"	x[i] = part[63u - l] ^ i;\n"
		"	if ((x[i] & 1u) != 0u) atomicCounterIncrement(odd);\n"
		"}\n"}, NULL);
	uint32_t *words = malloc(4 * N), zero = 0;
	for (uint32_t i = 0; i < N; i++)
		words[i] = i;
	glBindBufferBase(GL_SHADER_STORAGE_BUFFER, 0, buffer(GL_SHADER_STORAGE_BUFFER, 4 * N, words));
	glBindBufferBase(GL_ATOMIC_COUNTER_BUFFER, 0, buffer(GL_ATOMIC_COUNTER_BUFFER, 4, &zero));
	glUseProgram(program);
	for (int round = 0; round < 4; round++) {
		glDispatchCompute(N / 64, 1, 1);
		glMemoryBarrier(GL_ALL_BARRIER_BITS);
		// A few bytes from this side between two rounds.
		uint32_t *some = glMapBufferRange(GL_SHADER_STORAGE_BUFFER, 4096 * round, 64, GL_MAP_WRITE_BIT);
		CHECK(some);
		memset(some, round, 64);
		glUnmapBuffer(GL_SHADER_STORAGE_BUFFER);
	}
	tell_buffer("compute", GL_SHADER_STORAGE_BUFFER, 4 * N);
	tell_buffer("counter", GL_ATOMIC_COUNTER_BUFFER, 4);
	free(words);
}

static GLuint framebuffer(int samples, GLenum color) {
	GLuint names[2], fb;
	glGenRenderbuffers(2, names);
	glGenFramebuffers(1, &fb);
	glBindFramebuffer(GL_FRAMEBUFFER, fb);
	for (int i = 0; i < 2; i++) {
		glBindRenderbuffer(GL_RENDERBUFFER, names[i]);
		glRenderbufferStorageMultisample(GL_RENDERBUFFER, samples, i ? GL_DEPTH24_STENCIL8 : color, W, H);
		glFramebufferRenderbuffer(GL_FRAMEBUFFER, i ? GL_DEPTH_STENCIL_ATTACHMENT : GL_COLOR_ATTACHMENT0, GL_RENDERBUFFER, names[i]);
	}
	CHECK(glCheckFramebufferStatus(GL_FRAMEBUFFER) == GL_FRAMEBUFFER_COMPLETE);
	return fb;
}

static void feedback(void) {
	GLuint program = link_program(2, (GLenum[]){GL_VERTEX_SHADER, GL_FRAGMENT_SHADER}, (const char *[]){
		"#version 310 es\n"
		"out vec4 v;\n"
		"void main() { float i = float(gl_VertexID); v = vec4(i, i * i, 1.0 / (i + 1.0), float(gl_InstanceID)); gl_Position = v; }\n",
		"#version 310 es\n"
		"void main() {}\n"}, "v");
	glBindBufferBase(GL_TRANSFORM_FEEDBACK_BUFFER, 0, buffer(GL_TRANSFORM_FEEDBACK_BUFFER, 16 * 300, NULL));
	GLuint query, written = 0;
	glGenQueries(1, &query);
	glUseProgram(program);
	framebuffer(0, GL_RGBA8); // nothing is drawn to it, but there must be one
	glEnable(GL_RASTERIZER_DISCARD);
	glBeginQuery(GL_TRANSFORM_FEEDBACK_PRIMITIVES_WRITTEN, query);
	glBeginTransformFeedback(GL_POINTS);
	glDrawArraysInstanced(GL_POINTS, 0, 100, 3);
	glEndTransformFeedback();
	glEndQuery(GL_TRANSFORM_FEEDBACK_PRIMITIVES_WRITTEN);
	glDisable(GL_RASTERIZER_DISCARD);
	glGetQueryObjectuiv(query, GL_QUERY_RESULT, &written);
	printf("written %u\n", written);
	tell_buffer("feedback", GL_TRANSFORM_FEEDBACK_BUFFER, 16 * 300);
}

static void draw(int samples) {
	GLuint program = link_program(2, (GLenum[]){GL_VERTEX_SHADER, GL_FRAGMENT_SHADER}, (const char *[]){
		"#version 310 es\n"
		"layout(location = 0) in vec2 at;\n"
		"uniform float turn;\n"
		"out vec2 where;\n"
		"void main() {\n"
		"	float a = turn * float(gl_InstanceID);\n"
		"	where = at;\n"
		"	gl_Position = vec4(mat2(cos(a), -sin(a), sin(a), cos(a)) * at, 0.1 * float(gl_InstanceID % 5), 1.0);\n"
		"}\n",
		"#version 310 es\n"
		"precision highp float;\n"
		"uniform sampler2D image;\n"
		"in vec2 where;\n"
		"out vec4 color;\n"
		"void main() { color = vec4(texture(image, where * 3.0).rgb, 0.6); }\n"}, NULL);
	GLuint drawn = framebuffer(samples, GL_RGBA8), resolved = framebuffer(0, GL_RGBA8), texture, query, seen = 0;
	glGenTextures(1, &texture);
	glBindTexture(GL_TEXTURE_2D, texture);
	uint8_t *texels = malloc(4 * 64 * 64);
	for (int i = 0; i < 4 * 64 * 64; i++)
		texels[i] = i * 7 + i / 256 * 3;
	glTexStorage2D(GL_TEXTURE_2D, 7, GL_RGBA8, 64, 64);
	glTexSubImage2D(GL_TEXTURE_2D, 0, 0, 0, 64, 64, GL_RGBA, GL_UNSIGNED_BYTE, texels);
	glGenerateMipmap(GL_TEXTURE_2D);
	glTexParameteri(GL_TEXTURE_2D, GL_TEXTURE_MIN_FILTER, GL_LINEAR_MIPMAP_LINEAR);
	free(texels);

	static const float corners[] = {-0.9, -0.6, 0.8, -0.7, 0.1, 0.9};
	static const uint16_t indices[] = {0, 1, 2};
	buffer(GL_ARRAY_BUFFER, sizeof corners, corners);
	buffer(GL_ELEMENT_ARRAY_BUFFER, sizeof indices, indices);
	glVertexAttribPointer(0, 2, GL_FLOAT, GL_FALSE, 0, NULL);
	glEnableVertexAttribArray(0);
	glBindFramebuffer(GL_FRAMEBUFFER, drawn);
	glViewport(0, 0, W, H);
	glClearColor(0.1, 0.2, 0.3, 1);
	glClear(GL_COLOR_BUFFER_BIT | GL_DEPTH_BUFFER_BIT | GL_STENCIL_BUFFER_BIT);
	glEnable(GL_DEPTH_TEST);
	glEnable(GL_BLEND);
	glBlendFunc(GL_SRC_ALPHA, GL_ONE_MINUS_SRC_ALPHA);
	glUseProgram(program);
	glUniform1f(glGetUniformLocation(program, "turn"), 0.7);
	glGenQueries(1, &query);
	glBeginQuery(GL_ANY_SAMPLES_PASSED, query);
	glDrawElementsInstanced(GL_TRIANGLES, 3, GL_UNSIGNED_SHORT, NULL, 9);
	glEndQuery(GL_ANY_SAMPLES_PASSED);
	glBindFramebuffer(GL_READ_FRAMEBUFFER, drawn);
	glBindFramebuffer(GL_DRAW_FRAMEBUFFER, resolved);
	glBlitFramebuffer(0, 0, W, H, 0, 0, W, H, GL_COLOR_BUFFER_BIT, GL_NEAREST);
	glBindFramebuffer(GL_FRAMEBUFFER, resolved);
	// Through a buffer, with a fence; then without.
	buffer(GL_PIXEL_PACK_BUFFER, 4 * W * H, NULL);
	glReadPixels(0, 0, W, H, GL_RGBA, GL_UNSIGNED_BYTE, NULL);
	GLsync fence = glFenceSync(GL_SYNC_GPU_COMMANDS_COMPLETE, 0);
	CHECK(glClientWaitSync(fence, GL_SYNC_FLUSH_COMMANDS_BIT, 60000000000u) != GL_TIMEOUT_EXPIRED);
	char name[30];
	snprintf(name, sizeof name, "drawn, %d samples", samples);
	tell_buffer(name, GL_PIXEL_PACK_BUFFER, 4 * W * H);
	glBindBuffer(GL_PIXEL_PACK_BUFFER, 0);
	uint8_t *pixels = malloc(4 * W * H);
	glReadPixels(0, 0, W, H, GL_RGBA, GL_UNSIGNED_BYTE, pixels);
	tell(name, pixels, 4 * W * H);
	free(pixels);
	glGetQueryObjectuiv(query, GL_QUERY_RESULT, &seen);
	printf("seen %u\n", seen);
}

int main(void) {
	EGLDisplay display = eglGetPlatformDisplay(EGL_PLATFORM_SURFACELESS_MESA, EGL_DEFAULT_DISPLAY, NULL);
	CHECK(display != EGL_NO_DISPLAY);
	CHECK(eglInitialize(display, NULL, NULL));
	CHECK(eglBindAPI(EGL_OPENGL_ES_API));
	EGLContext context = eglCreateContext(display, EGL_NO_CONFIG_KHR, EGL_NO_CONTEXT,
		(EGLint[]){EGL_CONTEXT_MAJOR_VERSION, 3, EGL_CONTEXT_MINOR_VERSION, 1, EGL_NONE});
	CHECK(context != EGL_NO_CONTEXT);
	CHECK(eglMakeCurrent(display, EGL_NO_SURFACE, EGL_NO_SURFACE, context));
	printf("%s, %s\n", glGetString(GL_RENDERER), glGetString(GL_VERSION));
	compute();
	feedback();
	draw(0);
	draw(4);
	eglDestroyContext(display, context);
	eglTerminate(display);
	return 0;
}
