// SPDX-License-Identifier: Apache-2.0

// Package futex waits for a word of shared memory to change, without polling,
// and wakes who waits. A word may be in a mapping that is read-only to
// the waiter: it writes nothing.
//
// On systems other than Linux Wait fails with [errors.ErrUnsupported].
package futex
