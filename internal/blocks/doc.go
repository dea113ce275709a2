// SPDX-License-Identifier: Apache-2.0

// Package blocks keeps two copies of some memory in step over a connection: it
// finds the blocks that changed since both were the same, and carries them.
package blocks
