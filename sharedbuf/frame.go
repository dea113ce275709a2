// SPDX-License-Identifier: Apache-2.0

package sharedbuf

import (
	"encoding/binary"
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

// ReadFrame reads one frame, a big-endian u32 and that many bytes of JSON, into
// buf or, if that is too small, new memory. It returns io.EOF if r ends before
// the frame, io.ErrUnexpectedEOF if it ends within, and an *Error with ErrLimit
// or ErrInvalid for a frame of more than limit bytes or none: after that the
// place in the stream is lost.
func ReadFrame(r io.Reader, buf []byte, limit int) ([]byte, error) {
	if cap(buf) < headerSize {
		buf = make([]byte, 512)
	}
	header := buf[:headerSize]
	if _, err := io.ReadFull(r, header); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(header)
	switch {
	case n == 0:
		return nil, invalidf("a frame of no bytes")
	case uint64(n) > uint64(limit):
		return nil, &Error{Code: ErrLimit, Message: fmt.Sprintf("a frame of %d bytes; at most %d are allowed: is the peer in step, and does it speak this protocol?", n, limit)}
	}
	if uint64(cap(buf)) < uint64(n) {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	if _, err := io.ReadFull(r, buf); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return buf, nil
}

// AppendFrame appends a frame with the given JSON to dst, so that length and
// body leave in one write. It fails with ErrLimit if the body is longer than
// limit.
func AppendFrame(dst, body []byte, limit int) ([]byte, error) {
	if len(body) > limit {
		return dst, &Error{Code: ErrLimit, Message: fmt.Sprintf("a message of %d bytes; at most %d fit", len(body), limit)}
	}
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(body)))
	return append(dst, body...), nil
}
