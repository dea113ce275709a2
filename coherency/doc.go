// SPDX-License-Identifier: Apache-2.0

// Package coherency decides who holds which version of a block and what must
// move.
//
// A Manager is the directory of one span's blocks. Agents, each a tier of a
// machine, hold copies. What the Manager keeps of a block is only its version,
// and of an agent only which version its bytes are; whether a copy is valid,
// its MOESI state, whether home is owed something and whether the version is
// lost all follow from these.
//
// The package does no I/O, starts no goroutine and reads no clock. Calls
// return plans, and nothing changes because something is intended:
//
//   - Acquire plans the Copy that makes an agent hold the current version.
//   - Complete reports what became of a Copy. Only then does its destination
//     hold the version that was copied, if the copy still counts.
//   - BeginWrite, Commit and Abort bracket a write. While it lasts the
//     writer's bytes are no version; Commit makes them the next one.
//   - Evict takes a copy away, after a plan that writes it back if it is the
//     only one. Discard takes it by force.
//   - Lose records that an agent died. A version that had no other holder is
//     lost, and says so until Accept, Adopt or a write of the whole block ends
//     it.
//
// The invariants, which an exhaustive search of the states holds (in the
// package's tests): one writer or many readers; a valid copy shows exactly its
// version's writes; a version has a holder or is explicitly lost; debt is
// computed; versions only rise; nothing is valid by a copy that was not
// acknowledged; every busy block can come to rest.
//
// The vocabulary is that of seeds/002; where that document's own protocol is
// wrong the behaviour is the corrected one that docs/origins.md lists.
package coherency
