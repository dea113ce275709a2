// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"github.com/memspan/memspan/internal/crc32c"
	"io"
	"net"
	"time"

	"github.com/klauspost/compress/s2"
)

const (
	// readBuffer holds small frames and the headers of large ones. What it
	// takes in of a large frame's data is copied once more, so it is small.
	readBuffer = 16 << 10
	// firstBuffer is the buffer's size until more comes at once: many connections
	// ask one thing, and end.
	firstBuffer = 4 << 10
	// streamBuffer is the buffer's size while many small frames come at once.
	streamBuffer = 128 << 10
	// streamFrame is the longest payload that counts as small then.
	streamFrame = 32 << 10
	// directRead is the shortest rest of a payload that is read straight into
	// the caller's memory. A shorter rest is read into the buffer together
	// with the sum and the next frame's header.
	directRead = 4 << 10
	// replyPrefix is how much of a next frame's payload is taken in with its
	// header: the prefix of the answer to a read.
	replyPrefix = 4
)

// A reader is the state of the frame that is being read.
type reader struct {
	buf    []byte
	r, w   int  // buf[r:w] has been received and not delivered
	begun  bool // a header has been read
	header Header
	prefix int    // bytes of the prefix not delivered yet
	data   int    // bytes of the data part, as sent, not delivered yet
	sum    uint32 // of the payload so far
	fill   [4]byte
	full   bool  // the last read left nothing free in buf: more may wait in the socket
	open   bool  // the payload, or its sum, has not been read to its end
	err    error // set for good by the first failed read
}

// ReadHeader waits for the next frame and returns its header. What has not
// been read of the frame before is discarded. At the end of the connection,
// between two frames, it returns io.EOF.
//
// It waits without limit for a frame to begin, but for the first frame of a
// connection, which must begin within the i/o timeout. Once a frame has begun,
// a peer that sends nothing for the i/o timeout ends it with an error that
// matches Stalled, and a broken connection with one that matches PeerLost.
// ErrInterrupted says that Interrupt was called and nothing was read.
func (c *Conn) ReadHeader() (Header, error) {
	if err := c.Discard(); err != nil {
		return Header{}, err
	}
	in := &c.in
	for in.w-in.r < HeaderSize {
		if in.r == in.w {
			c.progress.setIdle(in.begun)
		}
		err := c.fill()
		c.progress.setIdle(false)
		if err != nil {
			if errors.Is(err, ErrInterrupted) {
				return Header{}, ErrInterrupted
			}
			if errors.Is(err, io.EOF) && in.r == in.w {
				in.err = io.EOF
				return Header{}, io.EOF
			}
			return Header{}, c.readFailed(ioError("read header", err))
		}
	}
	h, err := ParseHeader(in.buf[in.r:in.w])
	if err != nil {
		return Header{}, c.readFailed(err)
	}
	switch {
	case c.sums && h.Length > 0 && !h.Has(FlagSum):
		return Header{}, c.readFailed(fmt.Errorf("%w: %v frame without a sum on a connection that needs them", ErrSum, h.Kind))
	case h.Encoding != EncodingRaw && !c.compress.Load():
		return Header{}, c.readFailed(fmt.Errorf("%w: %v data, which was not agreed on", ErrMalformed, h.Encoding))
	}
	in.adapt(h)
	in.r += HeaderSize
	in.begun = true
	in.header, in.prefix, in.data, in.sum = h, int(h.Prefix), h.encoded(), 0
	in.open = h.Length > 0
	c.received.frames[h.Kind].Add(1)
	return h, nil
}

// adapt chooses the buffer's size by the frame that begins.
func (in *reader) adapt(h Header) {
	size := len(in.buf)
	switch {
	case h.Length > streamFrame, in.full && size < readBuffer:
		size = readBuffer
	case in.full:
		size = streamBuffer
	}
	if size != len(in.buf) && in.w-in.r <= size {
		buf := make([]byte, size)
		in.w = copy(buf, in.buf[in.r:in.w])
		in.buf, in.r = buf, 0
	}
	in.full = false
}

// streaming reports whether many small frames come at once.
func (in *reader) streaming() bool { return len(in.buf) > readBuffer }

// FrameReceived reports whether the next frame has been received whole, so that
// reading it does not wait.
func (c *Conn) FrameReceived() bool {
	in := &c.in
	if in.open || in.w-in.r < HeaderSize {
		return false
	}
	h, err := ParseHeader(in.buf[in.r:in.w])
	whole := HeaderSize + int(h.Length)
	if h.Has(FlagSum) {
		whole += sumSize
	}
	return err == nil && in.w-in.r >= whole
}

// ReadPrefix returns the frame's prefix, in buf if it has room for it. Until
// ReadData has returned nil, or if the frame has no data, ReadPrefix itself,
// a sum has not been verified: a caller who acts on the prefix before that
// must be able to undo it.
func (c *Conn) ReadPrefix(buf []byte) ([]byte, error) {
	in := &c.in
	if in.err != nil {
		return nil, in.err
	}
	buf = buf[:0]
	for in.prefix > 0 {
		// A header costs its sender 32 bytes. Memory is taken as the bytes
		// that it announces arrive.
		n := min(in.prefix, max(cap(buf)-len(buf), len(buf), readBuffer))
		if cap(buf)-len(buf) < n {
			buf = append(make([]byte, 0, len(buf)+n), buf...)
		}
		buf = buf[:len(buf)+n]
		if err := c.readPayload(buf[len(buf)-n:]); err != nil {
			return nil, err
		}
		in.prefix -= n
	}
	if in.data == 0 {
		return buf, c.endPayload()
	}
	return buf, nil
}

// ReadData reads the frame's data, decoded, into dst, whose length must be the
// header's Raw: raw data straight from the socket. The rest of the prefix, if
// it was not read, is skipped. Unless ReadData returns nil the contents of dst
// are undefined. Nobody else may write dst meanwhile.
func (c *Conn) ReadData(dst []byte) error {
	in := &c.in
	if in.err != nil {
		return in.err
	}
	h := in.header
	if len(dst) != int(h.Raw) || in.data != h.encoded() {
		return fmt.Errorf("wire: read %d bytes of data into %d: %w", h.Raw, len(dst), Invalid)
	}
	if err := c.skipPrefix(); err != nil {
		return err
	}
	if err := c.readData(dst, h); err != nil {
		return err
	}
	c.received.countData(h)
	return nil
}

func (c *Conn) readData(dst []byte, h Header) error {
	in := &c.in
	switch h.Encoding {
	case EncodingFill:
		if err := c.readEncoded(in.fill[:]); err != nil {
			return err
		}
		fillPattern(dst, in.fill)
		return nil
	case EncodingS2:
		scratch := getScratch()
		defer putScratch(scratch)
		src := (*scratch)[:in.data]
		if err := c.readEncoded(src); err != nil {
			return err
		}
		if err := decodeS2(dst, src); err != nil {
			return c.readFailed(err)
		}
		return nil
	}
	return c.readEncoded(dst)
}

// readEncoded reads the whole data part, as sent, and verifies the sum.
func (c *Conn) readEncoded(b []byte) error {
	if err := c.readPayload(b); err != nil {
		return err
	}
	c.in.data = 0
	return c.endPayload()
}

// decodeS2 decodes src into exactly dst.
func decodeS2(dst, src []byte) error {
	n, err := s2.DecodedLen(src)
	if err == nil && n != len(dst) {
		return fmt.Errorf("%w: %d bytes instead of %d", ErrEncoding, n, len(dst))
	}
	if err == nil {
		_, err = s2.Decode(dst[:n:n], src) // in place, since it fits
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrEncoding, err)
	}
	return nil
}

// Buffered returns how many bytes have been received that no frame has
// delivered. Only the goroutine that reads may ask.
func (c *Conn) Buffered() int { return c.in.w - c.in.r }

// Await waits until the socket has bytes to read or has ended, and reports
// whether it has before the timeout; a negative one is none. It takes nothing
// from the socket and does not see what is Buffered.
//
// It waits in a system call of the calling thread, which the system wakes
// directly: a goroutine that is bound to its thread and waits in Read is woken
// by way of another thread. Where the socket cannot be waited for so, under TLS
// for one, it fails with an error that matches Unsupported. Close does not wake
// it: shut the socket down first.
func (c *Conn) Await(timeout time.Duration) (bool, error) {
	if c.layered || c.progress.socket == nil {
		return false, fmt.Errorf("wire: await: %w", Unsupported)
	}
	if c.progress.direct != nil {
		c.progress.direct.Watch()
	}
	ready, err := c.progress.socket.AwaitReadable(timeout)
	if err != nil {
		return false, ioError("await", err)
	}
	return ready, nil
}

// Shutdown ends both directions of the connection without closing it, so that
// everyone who waits for it wakes up. Where the socket cannot be reached it
// closes the connection.
func (c *Conn) Shutdown() error {
	if c.progress.socket != nil && c.progress.socket.Shutdown() == nil {
		return nil
	}
	return c.Close()
}

// Discard skips what has not been read of the frame, and verifies its sum.
func (c *Conn) Discard() error {
	in := &c.in
	if in.err != nil {
		return in.err
	}
	if !in.open {
		return nil
	}
	if err := c.skipPrefix(); err != nil {
		return err
	}
	if err := c.skip(&in.data); err != nil {
		return err
	}
	return c.endPayload()
}

// Detach returns the connection below, which is the caller's from now on for
// bytes of another protocol: reads of it wait without limit, writes still end
// when they stall. The frame before must have been read to its end; if bytes
// that follow it have been received already, they would be lost, and Detach
// fails with an error that matches ErrMalformed.
func (c *Conn) Detach() (net.Conn, error) {
	if c.in.open || c.in.w > c.in.r {
		return nil, fmt.Errorf("%w: %d bytes follow a frame that should be the last", ErrMalformed, c.in.w-c.in.r)
	}
	c.progress.setIdle(true)
	return c.nc, nil
}

func (c *Conn) skipPrefix() error { return c.skip(&c.in.prefix) }

// skip reads and forgets left bytes of the payload.
func (c *Conn) skip(left *int) error {
	in := &c.in
	for *left > 0 {
		if in.r == in.w {
			if err := c.fill(); err != nil {
				return c.readFailed(ioError("read payload", err))
			}
		}
		n := min(*left, in.w-in.r)
		c.addSum(in.buf[in.r : in.r+n])
		in.r += n
		*left -= n
	}
	return nil
}

// readPayload reads the next len(dst) bytes of the payload.
func (c *Conn) readPayload(dst []byte) error {
	in := &c.in
	for len(dst) > 0 {
		var n int
		var err error
		switch {
		case in.r < in.w:
			n = copy(dst, in.buf[in.r:in.w])
			in.r += n
		case len(dst) < directRead && in.header.encoded() < directRead, len(dst) <= streamFrame && in.streaming():
			err = c.fill()
		case c.layered || c.progress.direct == nil:
			n, err = c.nc.Read(dst)
		default:
			n, err = c.readThrough(dst)
		}
		c.addSum(dst[:n]) // while it is in the processor's cache
		dst = dst[n:]
		if err != nil && len(dst) > 0 {
			return c.readFailed(ioError("read payload", err))
		}
	}
	return nil
}

// readThrough reads into dst and, where dst ends, on into the buffer: the sum,
// and the next frame's header if it has come already.
func (c *Conn) readThrough(dst []byte) (int, error) {
	in := &c.in
	in.r, in.w = 0, 0
	sure := len(dst)
	if in.header.Has(FlagSum) {
		sure += sumSize
	}
	n, err := c.progress.receive(dst, in.buf[:sumSize+HeaderSize+replyPrefix], sure)
	in.w = max(0, n-len(dst))
	return min(n, len(dst)), err
}

func (c *Conn) addSum(b []byte) {
	if c.in.header.Has(FlagSum) {
		c.in.sum = crc32c.Update(c.in.sum, b)
	}
}

// endPayload verifies the sum after the payload, if there is one.
func (c *Conn) endPayload() error {
	in := &c.in
	if !in.open {
		return nil
	}
	if in.header.Has(FlagSum) {
		for in.w-in.r < sumSize {
			if err := c.fill(); err != nil {
				return c.readFailed(ioError("read sum", err))
			}
		}
		want := binary.LittleEndian.Uint32(in.buf[in.r:])
		in.r += sumSize
		if in.sum != want {
			return c.readFailed(fmt.Errorf("%w: %v frame, request %d", ErrSum, in.header.Kind, in.header.ID))
		}
	}
	in.open = false
	return nil
}

// fill reads more into the buffer, at least one byte.
func (c *Conn) fill() error {
	in := &c.in
	if in.r > 0 {
		in.w = copy(in.buf, in.buf[in.r:in.w])
		in.r = 0
	}
	for range 100 {
		n, err := c.nc.Read(in.buf[in.w:])
		in.w += n
		if n > 0 {
			in.full = in.w == len(in.buf)
			return nil // an error, if there was one, comes again
		}
		if err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}

func (c *Conn) readFailed(err error) error {
	c.in.err = err
	return err
}
