// SPDX-License-Identifier: Apache-2.0

// Package apps holds tests that run Vulkan applications through memspan's
// driver, as a user does: programs against the standard loader, started by
// 'memspan run', on one machine and over TCP. What they print is compared with
// what they print on the native driver.
//
// The programs are in testdata, in C; each carries out one of several cases,
// which its argument names. They are compiled by the tests. With
// MEMSPAN_BINARY set that program and the driver beside it are tested, else
// what go build makes of this tree.
package apps
