// SPDX-License-Identifier: Apache-2.0

// Package pull pulls surfaces: what somebody exposed, by a ticket.
//
// Where the surface is on this machine its memory is mapped, read-only, and no
// byte is copied. Elsewhere its chunks are asked for, of one source or of several
// at once, verified by their digests, and put into a file, a memory or a writer;
// or just those chunks that a read needs. A source that is slow, lies or dies
// costs nothing but itself: what it owes is asked of others.
//
// What vouches for the digests is the ticket's root, or, if the surface was still
// being written when the ticket was made, who answers at the ticket's own
// addresses. Other sources are believed nothing. docs/surface.md has the formats
// and says whom one trusts with what.
package pull
