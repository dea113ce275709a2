#version 450
// SPDX-License-Identifier: Apache-2.0

// A kernel that writes far outside of what it was given.
layout(local_size_x = 64) in;

layout(set = 0, binding = 0) buffer Block { uint words[]; };

void main() {
    uint i = gl_GlobalInvocationID.x;
    words[i + 262144u] = 0xbadbad;
    words[i + 524288u] = 0xbadbad;
    words[i - 262144u] = 0xbadbad;
}
