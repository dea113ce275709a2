#version 450
// SPDX-License-Identifier: Apache-2.0

// A kernel that does not end while anybody waits.
layout(local_size_x = 64) in;

layout(set = 0, binding = 0) buffer Block { uint words[]; };

void main() {
    uint i = gl_GlobalInvocationID.x;
    for (uint n = 0; n < 4000000000u; n++) { // a driver may end a loop after some rounds, but each is long
        for (uint j = 0; j < 32; j++) {
            atomicAdd(words[(i + j * n) & 262143u], n ^ j);
        }
    }
}
