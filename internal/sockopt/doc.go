// SPDX-License-Identifier: Apache-2.0

// Package sockopt is the door to what the net package does not offer of
// sockets: the receive low-water mark, reads that set it only where they wait,
// the length of the send queue, and waiting in the calling thread. On systems
// other than Linux all of it fails with [errors.ErrUnsupported]; callers do
// without.
package sockopt
