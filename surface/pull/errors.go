// SPDX-License-Identifier: Apache-2.0

package pull

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/memspan/memspan/wire"
)

// The reasons of this package. Those that sources give are codes of package
// wire, as in errors.Is(err, wire.Expired); those about tickets and keys are
// package surface's.
var (
	// ErrPart: what stands beside the file to be made is not the beginning of
	// the same pull.
	ErrPart = errors.New("the partial file there is not of this pull")
	// ErrBusy: another puller makes the same file.
	ErrBusy = errors.New("another puller is making this file")
	// ErrNotDirect: the surface's memory is not mapped here.
	ErrNotDirect = errors.New("the surface's memory is not mapped")
	// ErrNotSealed: the surface is still being written.
	ErrNotSealed = errors.New("the surface is not sealed yet")
	// ErrRange: bytes beyond the surface's end, or that the ticket does not open.
	ErrRange = errors.New("the range is not inside the surface")
	// ErrKey: the surface is encrypted, and the ticket has no key.
	ErrKey = errors.New("the surface is encrypted, and the ticket does not have its key")
	// ErrClosed: Close was called.
	ErrClosed = errors.New("the surface is closed")
)

// An Error says what was asked of a surface, and why it failed. It matches its
// cause under errors.Is.
type Error struct {
	Op      string // what was asked, as in "open"
	Surface string // its name, else its id
	Offset  int64  // bytes [Offset, Offset+Length) of the content;
	Length  int64  // 0: no range
	Message string // what is known beside the cause, and what to do; may be empty
	Err     error
}

// Error describes the failure in one line.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.Surface != "" {
		b.WriteString(" surface " + strconv.Quote(e.Surface))
	}
	if e.Length != 0 {
		fmt.Fprintf(&b, " [%d,+%d)", e.Offset, e.Length)
	}
	if e.Message != "" {
		b.WriteString(": " + e.Message)
	}
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// broken says how a source broke the protocol's rules.
func broken(format string, args ...any) error {
	return &wire.Error{Code: wire.Invalid, Message: "the source broke the protocol: " + fmt.Sprintf(format, args...)}
}

// lying says that a source's bytes are not those that its surface has.
func lying(format string, args ...any) error {
	return &wire.Error{Code: wire.Corrupt, Message: fmt.Sprintf(format, args...)}
}
