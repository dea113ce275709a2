// SPDX-License-Identifier: Apache-2.0

// Package host is the tier of bytes in RAM: one memfd per span, so that a
// client on the same machine can map the very pages. Pages are taken from the
// system when a block is reserved, counted against a budget, and reused by
// later spans unless a client was handed them.
package host
