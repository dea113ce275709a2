// SPDX-License-Identifier: Apache-2.0

// Package vram is the tier whose bytes live in a GPU's memory, through Vulkan.
//
// The driver runs in a worker process, so that its crashes cost the copies in
// VRAM and nothing else. This side of the socket ([Tier]) decides where every
// block lives: it has the worker make slabs of device memory, cuts them into
// slots, and counts them against the budget. The worker only moves bytes,
// between the slabs and the memory regions that both processes map; bulk bytes
// never cross the socket.
//
// A slab that the CPU can map stays mapped and is copied to and from directly,
// flushed and invalidated where it is not coherent. Others go through a ring of
// staging chunks and the device's queue; so do reads from mapped memory that
// the CPU does not cache, which the processor would read a few bytes at a time.
// Copies between slabs, and fills, are the device's own work.
//
// When a worker dies or stops answering, it is killed and waited for, every
// call under way fails with [tier.ErrLost], Config.Lost is called, and another
// worker is started. Blocks reserved before stay lost until they are reserved
// anew.
package vram
