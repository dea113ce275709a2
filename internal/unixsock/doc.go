// SPDX-License-Identifier: Apache-2.0

// Package unixsock makes unix stream sockets that Go's poller is told of only when
// somebody has to wait.
//
// A connection that is opened to ask one thing is mostly over before the poller
// would be of use, and telling it costs more than the question: the system reports
// at once that the new socket can be written to, and wakes a thread for that on the
// processor that the other side is to run on. So a [Conn] begins as a bare
// descriptor, and becomes a connection of package net when an operation would wait.
package unixsock
