// SPDX-License-Identifier: Apache-2.0

// Package bell waits for a number in shared memory to change, without polling: one
// process counts it up, any number of others wait. Who waits writes nothing: the
// memory may be read-only to him.
//
// On Linux the number is a futex. On Windows each of its values has an event,
// whose name is in the same memory: it is set when the number gets to that value,
// and never reset, so nobody misses it. On other systems nobody can wait.
package bell

import "errors"

// IDSize is how many bytes of the shared memory the bell's name takes.
const IDSize = 16

// ErrGone: the process that rings is gone, or has closed the bell. Where that is
// not known who waits goes on waiting.
var ErrGone = errors.New("bell: nobody rings any more")
