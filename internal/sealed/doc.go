// SPDX-License-Identifier: Apache-2.0

// Package sealed keeps a buffer's bytes in memory that others may read and write,
// such that they learn nothing of them but how much changes when, and that what
// they change is found out: blocks sealed with AES-256-GCM.
//
// Two sides that know the key take turns. Each turn has a number, higher than all
// before it, and belongs to one side. What is sealed in a turn has its number in
// the nonce, with the block's index: a nonce is never used twice as long as nobody
// seals twice in a turn. Which turn each block is of stands in a table that is
// sealed in every turn in which something was; who opens knows by other means
// which turn that was. So nothing can be put in the place of something else, nor
// something older in its own.
package sealed
