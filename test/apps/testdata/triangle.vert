// SPDX-License-Identifier: Apache-2.0
#version 450

layout(location = 0) in vec2 place;
layout(location = 1) in vec3 tint;
layout(location = 0) out vec3 colour;
layout(push_constant) uniform Constants { float angle; };

void main() {
	mat2 turn = mat2(cos(angle), sin(angle), -sin(angle), cos(angle));
	gl_Position = vec4(turn * place, 0.0, 1.0);
	colour = tint;
}
