// SPDX-License-Identifier: Apache-2.0

// Package durable is the door to files whose contents must survive a loss of
// power: positioned vectored reads and writes, the calls that make them durable,
// and those that take space from the file system and give it back.
//
// Nothing is durable before [File.Sync] has returned nil; a file that was made,
// renamed or removed not before [SyncDir] has. After a Sync that failed, what
// was written since the one before may be lost although a later Sync succeeds:
// the kernel reports it once.
package durable
