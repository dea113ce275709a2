// SPDX-License-Identifier: Apache-2.0
#version 450

// to[i] = mixed from[i], in as many rounds as are asked for: the answer is as
// deterministic as it is hard to guess, and rounds make it slow.
layout(local_size_x = 64) in;
layout(std430, binding = 0) readonly buffer From { uint from[]; };
layout(std430, binding = 1) buffer To { uint to[]; };
layout(push_constant) uniform Constants { uint rounds; };

void main() {
	uint i = gl_GlobalInvocationID.x;
	if (i >= from.length())
		return;
	uint x = from[i];
	for (uint n = 0; n < rounds; n++) {
		x ^= x << 13;
		x ^= x >> 17;
		x ^= x << 5;
		x += i;
	}
	to[i] = x;
}
