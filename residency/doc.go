// SPDX-License-Identifier: Apache-2.0

// Package residency says which blocks a full tier gives up first.
//
// A [Queue] is told which blocks are resident in a tier, each time one is used
// and when one goes; asked for [Queue.Victims], it names the blocks that are
// least likely to be missed. It moves nothing, waits for nothing and looks at
// no clock: the tier's owner does, and guards the Queue by its lock.
//
// # The policy
//
// A plain LRU list gives up everything for one pass over more than fits, and
// never has what a program asks for that goes round and round over more than
// fits. So a Queue judges a block by its reuse distance, the time between its
// last two uses, counted in uses of other blocks (the idea of LIRS):
//
//   - Resident blocks are hot or on trial. A newcomer is on trial, unless there
//     is room that nobody had to leave. Victims come from those on trial, first
//     come first, and only then from the hot ones, least recently used first.
//   - A block on trial, or one that left lately, becomes hot when it is used
//     again after less time than the hot block that was used longest ago has
//     waited for its next use. That one goes on trial in its place.
//   - Blocks that left are remembered for as long as that could still happen.
//
// So a scan passes through the trial and leaves the hot blocks alone, and of a
// loop over more than fits the part that fits stays, since none of the others
// returns sooner.
//
// The bytes of a block are often used bit by bit: a scan that reads 64 KiB at a
// time uses each block 16 times. A block on trial that is used again before a
// few others have come is still in its first use.
//
// How many are on trial adapts, between a sixteenth and a half of all. If blocks
// that were never hot come back too late, trials are too short: one more. If
// blocks that were hot are used again, they were put on trial too soon: two
// fewer.
//
// docs/residency.md compares the policy with others.
package residency
