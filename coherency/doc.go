// SPDX-License-Identifier: Apache-2.0

// Package coherency decides who holds which version of a block and what must
// move.
package coherency
