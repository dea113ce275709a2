// SPDX-License-Identifier: Apache-2.0

// Package e2e holds the tests of memspan as its users meet it: a server, in
// the test's process or in one of its own, clients over unix sockets, TCP and
// TLS, workers with a Vulkan driver, and what can go wrong between them.
//
// Environment variables steer the tests:
//
//	MEMSPAN_BINARY=PATH        the servers are this binary's "memspan serve"
//	MEMSPAN_SLOW=1             run what takes minutes too
//	MEMSPAN_SEED=N             random clients do other things
//	MEMSPAN_TEST_NO_VULKAN=1   skip what needs a Vulkan driver, instead of failing
package e2e
