#version 450
// SPDX-License-Identifier: Apache-2.0

// Each word of the buffer becomes word * factor + term + its index in the buffer.
layout(local_size_x = 64) in;

layout(set = 0, binding = 0) buffer Block { uint words[]; };

layout(push_constant) uniform Push {
    uvec2 first; // the block's first byte in the buffer, 64 bits
    uvec2 bytes; // how many it has
    uint factor; // what the guest gave
    uint term;
};

void main() {
    uint i = gl_GlobalInvocationID.x;
    if (4 * i < bytes.x) { // the last work group may have more invocations than there are words
        words[i] = words[i] * factor + term + (first.x >> 2 | first.y << 30) + i;
    }
}
