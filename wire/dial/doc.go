// SPDX-License-Identifier: Apache-2.0

// Package dial connects to servers: it knows the forms of addresses, who may
// answer there, and the greeting. What is said afterwards is the client's
// affair: package memspan's requests, or a Vulkan application's commands.
package dial
