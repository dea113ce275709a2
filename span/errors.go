// SPDX-License-Identifier: Apache-2.0

package span

import (
	"errors"
	"fmt"
)

// Errors of this package, found with errors.Is in an *Error. Those of packages
// coherency (ErrConflict, ErrDataLoss, ErrPinned, …) and tier (ErrBudget,
// ErrLost, ErrAbsent) come wrapped in the same way.
var (
	ErrNotFound = errors.New("no such span")
	ErrExists   = errors.New("a span of this name exists")
	ErrRange    = errors.New("range is outside the span")
	ErrInvalid  = errors.New("invalid argument")
	ErrFreed    = errors.New("span was freed")
	ErrLimit    = errors.New("limit reached")
	ErrNotHeld  = errors.New("lock is not held")

	ErrNotMapped = errors.New("the mapping was closed")

	// ErrDebt: the version is committed and held by one tier at least, but
	// not by all that the write policy asks for. The store goes on trying.
	ErrDebt = errors.New("committed, but the write policy is not met yet")
)

// An Error says what was asked of which span and why it failed.
type Error struct {
	Op             string
	Span           string // name, or id in hexadecimal
	Offset, Length int64  // the range concerned; Length 0 if none
	Err            error
}

func (e *Error) Error() string {
	if e.Length == 0 {
		return fmt.Sprintf("%s span %q: %v", e.Op, e.Span, e.Err)
	}
	return fmt.Sprintf("%s span %q [%d, +%d): %v", e.Op, e.Span, e.Offset, e.Length, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }
