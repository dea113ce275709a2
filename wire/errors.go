// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// A protocolError is what is wrong with bytes that a peer sent. It matches its
// code under errors.Is.
type protocolError struct {
	code Code
	text string
}

func (e *protocolError) Error() string { return "wire: " + e.text }
func (e *protocolError) Unwrap() error { return e.code }

// What can be wrong with bytes that a peer sent. Each also matches the code
// named beside it. Whoever meets one in a frame closes the connection: where
// the next frame begins is not known, or not to be trusted.
var (
	ErrTruncated error = &protocolError{Invalid, "message cut short"}
	ErrMagic     error = &protocolError{Invalid, "not a memspan frame: wrong magic"}
	ErrHeaderSum error = &protocolError{Corrupt, "sum of the header does not match"}
	ErrSum       error = &protocolError{Corrupt, "sum of the payload missing or wrong"}
	ErrEncoding  error = &protocolError{Corrupt, "encoded data does not decode to the announced length"}
	ErrTooLarge  error = &protocolError{Limit, "message too large"}
	ErrMalformed error = &protocolError{Invalid, "malformed message"}
)

// A VersionError says that a peer speaks another version of the protocol. It
// matches BadVersion under errors.Is.
type VersionError struct {
	Got int // the peer's version
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("wire: peer speaks protocol version %d, this side speaks version %d: use the same release of memspan on both sides", e.Got, Version)
}

// Unwrap returns BadVersion.
func (e *VersionError) Unwrap() error { return BadVersion }

// An Error says why a request failed. It crosses the wire as JSON and matches
// its Code under errors.Is, as in errors.Is(err, wire.Conflict).
type Error struct {
	Code     Code   `json:"code"`
	Op       string `json:"op,omitempty"`       // what was asked, as in "flush"
	Span     string `json:"span,omitempty"`     // name or id of the span concerned
	Offset   int64  `json:"offset,omitempty"`   // bytes [Offset, Offset+Length) of the span;
	Length   int64  `json:"length,omitempty"`   // Length 0: no range
	Version  uint64 `json:"version,omitempty"`  // the version concerned, if one is
	Survivor uint64 `json:"survivor,omitempty"` // of DataLoss: the newest version left, 0 if none
	Message  string `json:"message,omitempty"`  // why, and what to do
	Err      error  `json:"-"`                  // the cause, where it is known on this side
}

// Error describes the failure in one line, as in
//
//	flush span "x" [0,+4096): conflict: the same bytes were changed since version 3
func (e *Error) Error() string {
	var b strings.Builder
	if e.Op != "" {
		b.WriteString(e.Op)
	}
	if e.Span != "" {
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString("span " + strconv.Quote(e.Span))
	}
	if e.Length != 0 {
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "[%d,+%d)", e.Offset, e.Length)
	}
	if b.Len() > 0 {
		b.WriteString(": ")
	}
	b.WriteString(e.Code.String())
	if e.Message == "" {
		b.WriteString(": " + e.Code.text())
	} else {
		b.WriteString(": " + e.Message)
	}
	if e.Code == DataLoss {
		fmt.Fprintf(&b, " (version %d; newest surviving: %d)", e.Version, e.Survivor)
	}
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	return b.String()
}

// Unwrap returns the code and, if there is one, the cause.
func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Code}
	}
	return []error{e.Code, e.Err}
}

// Append appends the error's JSON to dst, as replies with FlagError carry it.
// The message is shortened if need be: the result is at most MaxControl bytes
// longer than dst.
func (e *Error) Append(dst []byte) []byte {
	short := *e
	short.Op = clip(short.Op, maxErrorText)
	short.Span = clip(short.Span, maxErrorText)
	short.Message = clip(short.Message, maxErrorText)
	if e.Err != nil { // the cause's text crosses, its type does not
		short.Message = clip(strings.TrimPrefix(e.Message+": "+e.Err.Error(), ": "), maxErrorText)
	}
	j, err := json.Marshal(&short)
	if err != nil { // no field of Error can fail to marshal
		panic(err)
	}
	return append(dst, j...)
}

// maxErrorText bounds the texts of an Error, so that its JSON is far below
// MaxControl even if each byte is escaped.
const maxErrorText = 16 << 10

func clip(s string, n int) string {
	if len(s) > n {
		return strings.ToValidUTF8(s[:n], "") + "…"
	}
	return s
}

// ParseError reads an Error from the JSON of a reply with FlagError. Fields
// that this version does not know are ignored; a code that it does not know
// becomes Internal.
func ParseError(data []byte) (*Error, error) {
	if len(data) > MaxControl {
		return nil, fmt.Errorf("%w: error of %d bytes", ErrTooLarge, len(data))
	}
	e := new(Error)
	if err := json.Unmarshal(data, e); err != nil {
		return nil, fmt.Errorf("%w: error message: %w", ErrMalformed, err)
	}
	if e.Code == 0 {
		e.Code = Internal
	}
	return e, nil
}
