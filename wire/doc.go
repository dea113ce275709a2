// SPDX-License-Identifier: Apache-2.0

// Package wire carries memspan's frames over a connection: TCP, TLS or a unix
// socket. docs/protocol.md specifies every byte; testdata/vectors holds
// examples of them.
//
// A frame is a header of 32 bytes, a payload and, where the connection needs
// one, a sum. The payload is a prefix of a few fixed fields, sent as it is,
// and a data part, which may be encoded. Both sides number their requests, and
// a reply carries the number of its request, so requests are pipelined.
//
// A [Conn] reads and writes frames without copying bulk data: raw data goes
// from the caller's memory to the socket and from the socket to the caller's
// memory. Its timeouts measure progress: however slow a link is, it does not
// time out while bytes move.
//
// The package knows what frames look like and not what they ask for: the JSON
// of control messages is package control's, what requests do is the server's.
package wire
