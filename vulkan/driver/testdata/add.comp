#version 450
// SPDX-License-Identifier: Apache-2.0
// glslangValidator -V -Os add.comp -o add.spv
layout(local_size_x = 64) in;
layout(constant_id = 0) const uint addend = 1;
layout(set = 0, binding = 0) readonly buffer From { uint from[]; };
layout(set = 0, binding = 1) buffer To { uint to[]; };
void main() { to[gl_GlobalInvocationID.x] = from[gl_GlobalInvocationID.x] + addend; }
