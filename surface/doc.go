// SPDX-License-Identifier: Apache-2.0

// Package surface exposes bytes once, for any number of pullers: what a surface
// is, who may open it, and the store that keeps surfaces in shared memory.
//
// A surface is an immutable exposure of bytes in chunks. Its [Manifest] says
// how many bytes there are and binds each chunk to a BLAKE3 digest; a bitmap says
// which chunks are there. A [Ticket] is what a puller needs: where the surface
// is, which it is, and a secret that opens this one and nothing else. Whoever
// holds a ticket can derive a narrower one and cannot widen it.
//
// A [Store] keeps surfaces. An exposer streams bytes into an [Exposure], or has
// a file copied once, or hands over a sealed memfd, which is taken as it is. A
// puller's [Opening] reads chunks as soon as they are there; on the same machine
// it gets the memory itself, which neither it nor anybody else can change, and
// an availability page whose futex wakes it: see [Availability].
//
// "Content" is what a user exposes; "stored" are the bytes in memory, which
// differ where the surface is encrypted: each chunk is followed by 16 bytes of
// authentication, and the key is in the ticket alone.
//
// The formats, and whom one has to trust for what, are docs/surface.md.
package surface
