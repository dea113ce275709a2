// SPDX-License-Identifier: Apache-2.0

// Package sockopt is the door to what the net package does not offer of
// sockets: the receive low-water mark, the congestion control, the length of
// the send queue, and vectored writes through any connection that shows its
// descriptor. On systems other than Linux the settings fail with
// [errors.ErrUnsupported]; callers do without them.
package sockopt
