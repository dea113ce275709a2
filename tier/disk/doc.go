// SPDX-License-Identifier: Apache-2.0

// Package disk is the tier of bytes in files, in one data directory. Its durable
// spans outlive the process, kill -9 and the machine's power at any instant; its
// ephemeral spaces are room for evicted copies of other spans, of which nothing
// survives a restart.
//
// # Durable spans
//
// Nothing of a durable span changes but by a [Tx], whose Commit publishes all of
// it at once, after it is durable. A change of a block is staged before, by
// [Space.Stage] or the methods of tier.Space, where nobody sees it: whole blocks
// are written to fresh slots of one sparse file, small changes travel in the
// redo log's record. What a slot holds carries a checksum for each page of
// 4 KiB, which every read verifies: a read returns the bytes that were written
// or a [*CorruptError], never others.
//
// # Failure
//
// A Commit that returns an error has published nothing. When a failed fsync makes
// uncertain what the disk holds, the tier takes no more changes ([ErrFailed],
// [Tier.Err]); reading goes on, and the next Open finds what is there. A full
// disk is no such failure: [tier.ErrBudget], and the tier goes on working.
//
// docs/disk-format.md describes every byte in the directory.
package disk
