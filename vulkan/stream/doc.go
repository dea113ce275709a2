// SPDX-License-Identifier: Apache-2.0

// Package stream carries messages between a Vulkan driver (the client) and the
// worker that executes for it, over frames of a [wire.Conn].
//
// A message is a header of 16 bytes and a body. Its operation is a command's
// index in package registry or one of the special ones of this package. Frames
// are only what the bytes travel in: many messages may share a frame, and one
// may span several.
//
// Messages wait in the connection's buffer until Flush, or until more than
// [FlushAt] bytes wait: a client that only records and creates must cost no
// system call per call.
package stream
