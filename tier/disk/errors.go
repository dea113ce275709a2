// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/memspan/memspan/tier"
)

// Errors of this package, wrapped with what was asked, on what, and why it
// failed.
var (
	// ErrInUse: another process has the directory.
	ErrInUse = errors.New("tier/disk: directory is in use")
	// ErrFormat: the directory is not one of memspan's, or is of a version that
	// this program does not know.
	ErrFormat = errors.New("tier/disk: not a data directory that this version knows")
	// ErrFailed: the disk failed while something was made durable, so the tier
	// takes no more changes until it is opened anew.
	ErrFailed = errors.New("tier/disk: failed, takes no more changes")
	// ErrStale: the block was published anew since the bytes were staged.
	ErrStale = errors.New("tier/disk: staged bytes are stale")
	// ErrUnknown: the span has no durable record, or was deleted.
	ErrUnknown = errors.New("tier/disk: no such durable span")
)

// A CorruptError says which bytes are not those that were written. It is a
// tier.ErrCorrupt.
type CorruptError struct {
	Span     string // name or id; empty if no span is concerned
	Block    int    // of the span; -1 if no block is concerned
	File     string
	Offset   int64 // in the file, in bytes
	What     string
	Expected string // empty if there is nothing to compare with
	Found    string
}

// Error says what is wrong, where, and what was expected.
func (e *CorruptError) Error() string {
	s := fmt.Sprintf("tier/disk: corrupt: %s in %s at %d", e.What, e.File, e.Offset)
	if e.Block >= 0 {
		s = fmt.Sprintf("tier/disk: corrupt: block %d of span %q: %s in %s at %d", e.Block, e.Span, e.What, e.File, e.Offset)
	}
	if e.Expected != "" || e.Found != "" {
		s += fmt.Sprintf(": expected %s, found %s", e.Expected, e.Found)
	}
	return s + "; run memspan fsck"
}

// Is reports whether target is tier.ErrCorrupt.
func (e *CorruptError) Is(target error) bool { return target == tier.ErrCorrupt }

// full says that err means a full disk or quota, if it does.
func full(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", tier.ErrBudget, err)
	}
	return err
}
