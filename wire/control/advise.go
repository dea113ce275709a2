// SPDX-License-Identifier: Apache-2.0

package control

import "github.com/memspan/memspan/coherency"

// Advice says what is to become of a tier's copies of a span's blocks.
type Advice string

// The advices.
const (
	AdvicePrefetch Advice = "prefetch" // make them current
	AdviceEvict    Advice = "evict"    // take them away, written back first if they are the last
	AdvicePin      Advice = "pin"      // prefetch, and keep them until unpin or until the span is freed
	AdviceUnpin    Advice = "unpin"
	AdvicePrefer   Advice = "prefer" // let writes go there from now on; the whole span
)

// Advise follows an advice for the blocks that bytes [Offset, Offset+Length) of a
// span touch; Offset and Length 0: the whole span.
type Advise struct {
	Handle uint64         `json:"handle,string"`
	Advice Advice         `json:"advice"`
	Tier   coherency.Tier `json:"tier"`
	Offset int64          `json:"offset,omitempty"`
	Length int64          `json:"length,omitempty"`
}

// Advised answers Advise. The moves of Planned are the copies that it took, as
// the blocks lay when it began; those of Moved were made.
type Advised struct {
	Blocks  int             `json:"blocks"`  // that the range touches
	There   int             `json:"there"`   // of them: the advice asked nothing for
	Changed int             `json:"changed"` // of them: brought, given up, pinned or unpinned
	Bytes   int64           `json:"bytes"`   // of the blocks that changed
	Planned []Move          `json:"planned"`
	Moved   []Move          `json:"moved"`
	Skipped []Skip          `json:"skipped"`
	Was     *coherency.Tier `json:"was,omitempty"` // prefer: where writes went before
}

// Move is copies of blocks from one tier to another.
type Move struct {
	From   coherency.TierMask `json:"from"` // one tier; none: never written, filled with zeros
	To     coherency.Tier     `json:"to"`
	Blocks int                `json:"blocks"`
	Bytes  int64              `json:"bytes"`
}

// Skip is blocks that an advice left as they were, for one reason.
type Skip struct {
	Code    string `json:"code"`              // of an error: pinned, busy, last-copy, data-loss, or budget if it was brought and had to leave again
	Message string `json:"message,omitempty"` // about the first of them
	First   int    `json:"first"`             // block
	Blocks  int    `json:"blocks"`
}
