// SPDX-License-Identifier: Apache-2.0

// Package server keeps spans and serves them to clients over unix sockets and
// TCP: the daemon behind `memspan serve`, and, embedded, the memory of tests
// and small programs.
//
// A [Server] listens where it is told to (Serve), each connection is a session
// with handles, mappings and locks of its own, and all of it goes when the
// connection goes. docs/protocol.md specifies what is said, docs/security.md
// who may say it, docs/consistency.md what it means.
package server
