// SPDX-License-Identifier: Apache-2.0

package sharedbuf

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Limits of the channel, in bytes. A client of the original system loses its
// place in the stream after a longer response.
const (
	MaxRequest  = 65535 // of a request's JSON
	MaxResponse = 65536 // of a response's JSON
)

// headerSize is how many bytes say how long a frame is.
const headerSize = 4

// ReadFrame reads one frame, a big-endian u32 and that many bytes of JSON, from r,
// whose buffer must have room for it. The body is r's memory: it is valid until r
// is read again. ReadFrame returns io.EOF if r ends before the frame,
// io.ErrUnexpectedEOF if it ends within, and an *Error with ErrLimit or ErrInvalid
// for a frame of more than limit bytes or none: after that the place in the stream
// is lost. Any other error is r's, and has taken nothing: what has come of the frame
// is there when it is read again.
func ReadFrame(r *bufio.Reader, limit int) ([]byte, error) {
	header, err := r.Peek(headerSize)
	if err != nil {
		if len(header) > 0 && errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	n := binary.BigEndian.Uint32(header)
	switch {
	case n == 0:
		return nil, invalidf("a frame of no bytes")
	case uint64(n) > uint64(limit):
		return nil, &Error{Code: ErrLimit, Message: fmt.Sprintf("a frame of %d bytes; at most %d are allowed: is the peer in step, and does it speak this protocol?", n, limit)}
	}
	frame, err := r.Peek(headerSize + int(n))
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	_, err = r.Discard(len(frame)) // which is there
	return frame[headerSize:], err
}

// AppendFrame appends a frame to dst, so that length and body leave in one write. The
// body is message as JSON, without the escapes that are meant for web pages: an
// answer has to fit. It fails with ErrLimit if that is longer than limit, and with
// ErrInvalid if message cannot be said in JSON.
func AppendFrame(dst []byte, message any, limit int) ([]byte, error) {
	frame := appender(append(dst, make([]byte, headerSize)...))
	enc := json.NewEncoder(&frame)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(message); err != nil {
		return dst, &Error{Code: ErrInvalid, Message: "the arguments are no JSON", Err: err}
	}
	frame = frame[:len(frame)-1] // Encode ends it with a newline
	body := len(frame) - len(dst) - headerSize
	if body > limit {
		return dst, &Error{Code: ErrLimit, Message: fmt.Sprintf("a message of %d bytes; at most %d fit", body, limit)}
	}
	binary.BigEndian.PutUint32(frame[len(dst):], uint32(body))
	return frame, nil
}

// An appender appends what is written to it.
type appender []byte

func (a *appender) Write(p []byte) (int, error) {
	*a = append(*a, p...)
	return len(p), nil
}
