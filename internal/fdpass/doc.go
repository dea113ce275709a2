// SPDX-License-Identifier: Apache-2.0

// Package fdpass carries open files beside the bytes of a unix socket.
//
// Files travel attached to the first byte of a write. The receiving [Conn] is
// a [net.Conn] like any other: bytes are read from it by code that knows
// nothing of files, and the files that came with them wait in a bounded queue
// until [Conn.Take] is called. A frame's files have arrived once its first
// byte has been read.
package fdpass
