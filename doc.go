// SPDX-License-Identifier: Apache-2.0

// Package memspan maps memory that lives elsewhere as if it were yours.
//
// A [Span] is a range of bytes that a memspan server keeps: in the memory of a
// GPU, in RAM, on disk. Programs reach it in three ways:
//
//   - [Span.ReadAt] and [Span.WriteAt] carry bytes across, without a mapping.
//   - [Span.Map] gives a []byte to load from and store to. On the server's own
//     machine, over a unix socket, the mapping is direct: it is the span's very
//     pages, and costs the same whatever its size. Elsewhere it is a shadow
//     buffer: a local copy that is filled when it is mapped, and of which a
//     flush sends back the bytes that changed, and only those.
//   - [Span.Copy] and [Span.Fill] are carried out where the bytes are, on the
//     GPU's queue if that is in its memory.
//
// A program begins with [Dial]:
//
//	c, err := memspan.Dial(ctx, "", nil) // the daemon of this user
//	...
//	s, err := c.Alloc(ctx, memspan.SpanConfig{Name: "weights", Size: 64 << 20})
//	...
//	m, err := s.Map(ctx, 0, s.Size(), memspan.ReadWrite)
//	...
//	copy(m.Bytes(), weights)
//	err = m.Unmap(ctx) // the bytes are the server's when this returns nil
//
// Package server embeds a server in a program or a test.
//
// # Consistency
//
// Mappings are release consistent. What is stored through one becomes visible
// to others with [Mapping.Flush] or [Mapping.Unmap]; what others stored becomes
// visible with [Span.Map] or [Mapping.Invalidate]. Stores to a direct mapping
// are visible to other direct mappings of the span at once, in the order the
// hardware gives.
//
// The span is divided into blocks. A flush of a shadow buffer stores the
// changed bytes of each block whole or not at all. Two mappings that changed
// different bytes both keep theirs, in one page too. If they changed the same
// bytes, the later flush of the two fails with [ErrConflict], for the blocks
// concerned alone; Invalidate then takes the others' bytes while yours stay on
// top, and Flush succeeds. Or map with [LastWriterWins].
//
// A flush returns when the span's [WritePolicy] is met, and its [Commit] says
// which tiers hold the bytes. [ErrDebt] says that they are stored, but not yet
// everywhere the policy wants them.
//
// # Failure
//
// Every error of a request is an [*Error] with what was asked of which span;
// errors.Is tells the reason: errors.Is(err, memspan.ErrNotFound). When the
// connection is lost every call that waits, and every later one, returns
// [ErrPeerLost]. Mapped memory stays valid all the same until Unmap or Discard:
// nothing ever raises SIGBUS. There is no reconnecting: handles, mappings and
// locks end with the connection that made them.
//
// A call whose context ends returns an error that is both [ErrCanceled] and the
// context's. What it asked for may have been done or not, unless it says so.
package memspan
