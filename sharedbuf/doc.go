// SPDX-License-Identifier: Apache-2.0

// Package sharedbuf is the guest's side of buffers that a guest and its host
// share: files that both map, of any size, made, owned and removed by the guest.
// No byte of them is sent; what crosses the channel is a short request that
// names the buffer and what the host shall do with it. Where the two sides share
// no memory, what changed is sent with it, and comes back. Package
// [github.com/memspan/memspan/sharedbuf/host] is the other side.
//
// A [Client] makes buffers in a directory that both sides see; or, over a unix
// socket, buffers without a name, whose descriptor goes with each request; or,
// over TCP and TLS, buffers of which the host has a copy.
//
//	c, err := sharedbuf.Dial(ctx, "127.0.0.1:4660", sharedbuf.Options{Dir: "/mnt/c/temp"})
//	b, err := c.Alloc(ctx, 64<<20)
//	copy(b.Bytes(), data)
//	result, err := b.Process(ctx, sharedbuf.Checksum())
//	err = b.Free()
//
// Making a buffer costs more than most of what is done with it: a [Pool] keeps
// them for reuse. [AllocOptions] narrow what a host does with a buffer, and have it
// encrypted in shared memory.
//
// A buffer is the guest's to write but while a Process or a background [Job] of
// it is under way: then the host has it, and its [Buffer.Generation] is odd.
//
// The channel is that of docs/shared-buffers.md: JSON in frames. A host that is
// restarted finds the buffers where they were: the client dials again by itself.
package sharedbuf
