// SPDX-License-Identifier: Apache-2.0

package sharedbuf

import (
	"errors"
	"fmt"
	"strings"
)

// A Code says what kind of failure an [Error] is. It crosses the channel as a
// string, and is an error itself, for errors.Is.
type Code string

// The kinds of failures. Those that a host sends match on the guest's side too.
const (
	ErrInvalid     Code = "invalid"           // a request or an argument that cannot be meant
	ErrUnsupported Code = "unsupported"       // this system, connection or file system cannot do it
	ErrNotFound    Code = "not-found"         // no such file, job, span or kernel
	ErrOutside     Code = "outside"           // the path is not beneath the host's directory, or leads over a link
	ErrNotOwner    Code = "not-owner"         // the file belongs to another user, or may not be opened
	ErrSize        Code = "wrong-size"        // the file's size is not the buffer's
	ErrTruncated   Code = "truncated"         // the file was cut short while it was mapped
	ErrNoSpace     Code = "no-space"          // there is no room for a buffer, or span, of that size
	ErrExists      Code = "exists"            // every name that was tried is taken, or a span has the name
	ErrOperation   Code = "unknown-operation" // the host has no such operation
	ErrMismatch    Code = "mismatch"          // verify found other bytes than the pattern
	ErrCorrupt     Code = "corrupt"           // bytes were damaged, or changed by somebody else, on their way or where they lay
	ErrStale       Code = "stale"             // the buffer has another generation than the request says, or the host's copy of it is no good any more
	ErrLimit       Code = "limit"             // more than the host allows
	ErrDenied      Code = "denied"            // the host does not let this peer in, or the buffer's permissions or the connection forbid it
	ErrBusy        Code = "busy"              // the host has the buffer already, and an encrypted one it can have once only
	ErrFreed       Code = "freed"             // the buffer was freed
	ErrClosed      Code = "closed"            // the client was closed, or the host is stopping
	ErrCanceled    Code = "canceled"          // it was canceled, by its context or by name
	ErrPeerLost    Code = "peer-lost"         // the connection ended, or nobody answers
	ErrFailed      Code = "failed"            // anything else
)

// Error returns the code itself.
func (c Code) Error() string { return string(c) }

// An Error says why something failed. It matches its Code, and its cause where
// that is known on this side, under errors.Is.
type Error struct {
	Code    Code
	Op      string // what was asked: "alloc", or an operation's name
	Path    string // of the buffer concerned, as the guest names it; or the address
	Message string // why, and what to do
	Err     error  // the cause, or nil
}

// Error describes the failure in one line, as in
//
//	process /mnt/c/temp/winapi_shared_buffer_1_2: wrong-size: the file has 5 bytes, not 10
func (e *Error) Error() string {
	var b strings.Builder
	for _, word := range []string{e.Op, e.Path} {
		if word != "" && b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(word)
	}
	for _, part := range []string{string(e.Code), e.Message} {
		if part != "" && b.Len() > 0 {
			b.WriteString(": ")
		}
		b.WriteString(part)
	}
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	return b.String()
}

// Unwrap returns the code and the cause.
func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Code}
	}
	return []error{e.Code, e.Err}
}

// codeOf returns the code of err, which is ErrFailed if it has none.
func codeOf(err error) Code {
	var code Code
	if errors.As(err, &code) {
		return code
	}
	return ErrFailed
}

func invalidf(format string, args ...any) *Error {
	return &Error{Code: ErrInvalid, Message: fmt.Sprintf(format, args...)}
}
