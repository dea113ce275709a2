// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/memspan/memspan/wire"
)

// A reader is what has been received and not returned.
type reader struct {
	buf   []byte // received: buf[r:]
	r     int
	taken int // bytes of the message returned last, to be dropped
	err   error
}

// Read returns the next message, waiting for it. Its body is valid until the
// next Read. At the end of the connection, between two messages, it returns
// io.EOF; otherwise its errors are ErrMalformed and those of wire.Conn.
func (c *Conn) Read() (Message, error) {
	in := &c.in
	if in.err != nil {
		return Message{}, in.err
	}
	in.r += in.taken
	in.taken = 0
	for {
		m, n, err := parse(in.buf[in.r:])
		if n > 0 && err == nil {
			in.taken = n
			return m, nil
		}
		if err == nil {
			err = c.readFrame()
		}
		if err != nil {
			in.err = err
			return Message{}, err
		}
	}
}

// Buffered reports whether a message, or the beginning of one, has been
// received already: whether Read may return without looking at the socket, and
// Await would wait for nothing. Only the reader may ask.
func (c *Conn) Buffered() bool {
	in := &c.in
	if in.err != nil || c.wc.Buffered() > 0 {
		return true
	}
	_, n, err := parse(in.buf[in.r+in.taken:])
	return n > 0 || err != nil
}

// Await waits until the socket has something to read or has ended, and reports
// whether it has; see [wire.Conn.Await]. It does not see what is Buffered.
// Unlike Read it may be called by several at a time.
func (c *Conn) Await(timeout time.Duration) (bool, error) { return c.wc.Await(timeout) }

// parse returns the message at b's beginning and the bytes that it takes, 0 if
// b does not hold all of it.
func parse(b []byte) (m Message, n int, err error) {
	if len(b) < HeaderSize {
		return Message{}, 0, nil
	}
	size := binary.LittleEndian.Uint32(b)
	m = Message{
		Op:     Op(binary.LittleEndian.Uint16(b[4:])),
		Flags:  Flags(binary.LittleEndian.Uint16(b[6:])),
		Serial: binary.LittleEndian.Uint64(b[8:]),
	}
	switch {
	case size > MaxBody:
		return Message{}, 0, fmt.Errorf("%w: body of %d bytes, at most %d", ErrMalformed, size, MaxBody)
	case m.Flags&^knownFlags != 0:
		return Message{}, 0, fmt.Errorf("%w: unknown flags %#x", ErrMalformed, uint16(m.Flags))
	case len(b)-HeaderSize < int(size):
		return Message{}, 0, nil
	}
	n = HeaderSize + int(size)
	m.Body = b[HeaderSize:n:n]
	return m, n, nil
}

// readFrame appends a frame's data to what has been received.
func (c *Conn) readFrame() error {
	in := &c.in
	h, err := c.wc.ReadHeader()
	if err == io.EOF && in.r < len(in.buf) {
		return fmt.Errorf("stream: the connection ended within a message: %w", wire.PeerLost)
	}
	if err != nil {
		return err
	}
	if h.Kind != wire.KindStream || h.Flags&^wire.FlagSum != 0 || h.Prefix != 0 || h.Raw == 0 || h.Raw > MaxFrame {
		return fmt.Errorf("%w: %v frame with flags %#x, a prefix of %d and %d bytes of data", ErrMalformed, h.Kind, uint8(h.Flags), h.Prefix, h.Raw)
	}
	return c.wc.ReadData(in.extend(int(h.Raw)))
}

// extend returns n bytes behind what has been received, which count as
// received from now on.
func (in *reader) extend(n int) []byte {
	rest := in.buf[in.r:]
	if len(rest) == 0 {
		in.buf, in.r = in.buf[:0], 0
	}
	if big := len(rest) == 0 && cap(in.buf) > keepBuffer; big || cap(in.buf)-len(in.buf) < n {
		room := in.buf[:0]
		if want := in.expected(rest, n); big || cap(room) < want {
			room = make([]byte, 0, want)
		}
		in.buf, in.r = append(room, rest...), 0
	}
	in.buf = in.buf[:len(in.buf)+n]
	return in.buf[len(in.buf)-n:]
}

// expected returns how large a buffer should be that holds rest and n bytes
// more. A body of 64 MiB costs its sender 16 bytes to announce: beyond
// keepBuffer memory is taken as the bytes arrive.
func (in *reader) expected(rest []byte, n int) int {
	want := max(len(rest)+n, MaxFrame)
	if len(rest) >= HeaderSize {
		announced := HeaderSize + int(binary.LittleEndian.Uint32(rest))
		want = max(want, min(announced, max(keepBuffer, 2*len(rest))))
	}
	return want
}

// TakesFiles reports whether messages with files can be received.
func (c *Conn) TakesFiles() bool {
	_, ok := c.fileSource()
	return ok
}

// fileSource returns what queues received files, a *fdpass.Conn.
func (c *Conn) fileSource() (interface{ Take() (*os.File, error) }, bool) {
	below := c.wc.NetConn()
	if p, ok := below.(*wire.ProgressConn); ok {
		below = p.Conn
	}
	from, ok := below.(interface{ Take() (*os.File, error) })
	return from, ok
}

// TakeFile returns the file that came first of those not yet taken: that of a
// message with FlagFile, if all those before took theirs. The caller closes
// it. It never waits; without a file it fails with ErrMalformed.
func (c *Conn) TakeFile() (*os.File, error) {
	from, ok := c.fileSource()
	if !ok {
		return nil, fmt.Errorf("stream: take a file: %w", wire.Unsupported)
	}
	f, err := from.Take()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return f, nil
}
