// SPDX-License-Identifier: Apache-2.0

// Package memfd makes and maps anonymous shared memory: the pages that a span
// has in RAM, that a client maps, and that a worker copies from and to.
//
// A [Region] is one memfd with its size fixed by seals, so that no peer that
// is handed its descriptor can shrink it under this process and raise SIGBUS
// here. An [Arena] is memory of this process alone, as many pieces as one likes with
// one descriptor. On systems other than Linux Create fails with [errors.ErrUnsupported].
// What is [Published] is memory of the paging file on Windows.
package memfd
