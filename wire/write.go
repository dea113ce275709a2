// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/binary"
	"fmt"
	"github.com/memspan/memspan/internal/crc32c"
	"os"
	"time"
)

const (
	// smallPayload is the longest payload, as sent, that is copied behind its
	// header and leaves in one plain write.
	smallPayload = 4 << 10
	// queueLimit is how many bytes of queued frames wait for the next write.
	queueLimit = 32 << 10
	// keepBuffer is the largest buffer that a connection keeps.
	keepBuffer = 64 << 10
)

// WriteFrame writes a frame of the header's Kind, Flags and ID, with the given
// prefix and, as its data part, the given pieces one after the other. Its
// errors are ErrTooLarge, after which nothing was written and the connection
// can still be used, and those of a connection that broke or stalled.
//
// Data is written straight from the pieces' memory, or encoded if the
// connection compresses and it pays. The memory must not change until
// WriteFrame returns: the peer could receive a mixture of old and new bytes,
// and on a connection with sums find the frame corrupt.
func (c *Conn) WriteFrame(h Header, prefix []byte, data ...[]byte) error {
	return c.write(h, prefix, data, false)
}

// QueueFrame is WriteFrame for one of many small frames: it may keep a copy of
// the frame, which then leaves with the next frame that is written, or queued
// when many bytes wait, or at Push. Whoever queues sees to it that one of these
// comes, before he waits for anything.
func (c *Conn) QueueFrame(h Header, prefix []byte, data ...[]byte) error {
	return c.write(h, prefix, data, true)
}

// Push writes the frames that are queued. It costs little if none are. Once
// writing has failed it says so.
func (c *Conn) Push() error {
	if !c.waiting.Load() {
		return nil
	}
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	if c.writeErr != nil || c.queued == 0 {
		return c.writeErr
	}
	return c.push()
}

// push writes what is queued in c.out. The caller holds writeMu.
func (c *Conn) push() error {
	_, err := c.nc.Write(c.out)
	c.unqueue()
	if err != nil {
		c.broke("write queued frames", err)
	}
	return c.writeErr
}

// broke notes that nothing can be written any more. Whoever pushes is to know.
func (c *Conn) broke(op string, err error) {
	c.writeErr = ioError(op, err)
	c.waiting.Store(true)
}

// unqueue notes that what was queued has been written, or never will be.
func (c *Conn) unqueue() {
	c.queued = 0
	c.waiting.Store(false)
}

func (c *Conn) write(h Header, prefix []byte, data [][]byte, queue bool) error {
	raw := 0
	for _, d := range data {
		raw += len(d)
	}
	switch {
	case len(prefix) > MaxPrefix:
		return fmt.Errorf("%w: write a prefix of %d bytes, at most %d", ErrTooLarge, len(prefix), MaxPrefix)
	case raw > MaxData:
		return fmt.Errorf("%w: write %d bytes of data in one frame, at most %d", ErrTooLarge, raw, MaxData)
	}
	h.Prefix, h.Raw = uint32(len(prefix)), uint32(raw)
	h.Encoding, h.Length = EncodingRaw, uint32(len(prefix)+raw)
	var one [1][]byte // data as it is sent, if that is not how it was given
	if raw >= minEncode && c.compress.Load() {
		if e, ok := c.enc.encode(data, raw); ok {
			defer putScratch(e.scratch)
			one[0], data = e.data, one[:]
			h.Encoding, h.Length = e.encoding, uint32(len(prefix)+len(e.data))
		}
	}
	switch {
	case queue && h.Length <= queueLimit:
		return c.writeSmall(h, prefix, data, true)
	case h.Length <= smallPayload:
		return c.writeSmall(h, prefix, data, false)
	}
	return c.writeLarge(h, prefix, data)
}

// writeSmall writes a frame in one piece, or queues it.
func (c *Conn) writeSmall(h Header, prefix []byte, data [][]byte, queue bool) error {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	if c.writeErr != nil {
		return c.writeErr
	}
	c.begin(&h, prefix)
	for _, d := range data {
		c.out = append(c.out, d...)
	}
	if h.Has(FlagSum) {
		c.out = appendSum(c.out, crc32c.Checksum(c.out[c.queued+HeaderSize:]))
	}
	if queue {
		c.queued = len(c.out)
		c.waiting.Store(true)
		c.sent.count(h)
		if c.queued < queueLimit {
			return nil
		}
		return c.push()
	}
	_, err := c.nc.Write(c.out)
	return c.finish(h, err)
}

// writeLarge writes a frame whose data is taken from where it is.
func (c *Conn) writeLarge(h Header, prefix []byte, data [][]byte) error {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	if c.writeErr != nil {
		return c.writeErr
	}
	c.begin(&h, prefix)
	start := time.Now()
	var tail []byte
	if h.Has(FlagSum) {
		tail = c.sum(data)
	}
	err := c.gather(data, tail)
	c.enc.wrote(int(h.Length), time.Since(start))
	return c.finish(h, err)
}

// sum returns the sum of c.out's payload and data, as it follows them. It is
// computed before anything is written, so that one system call writes all: what
// is summed is in the processor's cache then, and the peer does not wait for
// the end of a frame in the middle of it.
func (c *Conn) sum(data [][]byte) []byte {
	sum := crc32c.Checksum(c.out[c.queued+HeaderSize:])
	for _, d := range data {
		sum = crc32c.Update(sum, d)
	}
	return appendSum(c.tail[:0], sum)
}

// gather writes c.out, data and tail one after the other.
func (c *Conn) gather(data [][]byte, tail []byte) error {
	if !c.layered {
		return c.progress.writeBuffers(c.out, data, tail)
	}
	c.progress.hold()
	_, err := c.nc.Write(c.out)
	for _, d := range data {
		if err == nil {
			_, err = c.nc.Write(d)
		}
	}
	if err == nil && len(tail) > 0 {
		_, err = c.nc.Write(tail)
	}
	if rerr := c.progress.release(); err == nil {
		err = rerr
	}
	return err
}

// WriteFrameFiles writes a frame with a data part that is not encoded and with
// files attached to its first byte. It fails with an error that matches
// Unsupported on connections that cannot carry files.
func (c *Conn) WriteFrameFiles(h Header, data []byte, files ...*os.File) error {
	if len(data) > MaxData {
		return fmt.Errorf("%w: write %d bytes of data in one frame, at most %d", ErrTooLarge, len(data), MaxData)
	}
	to, ok := c.progress.Conn.(fileWriter)
	if !ok || c.layered {
		return fmt.Errorf("wire: send files over %s: %w", c.nc.LocalAddr().Network(), Unsupported)
	}
	h.Encoding, h.Prefix, h.Raw, h.Length = EncodingRaw, 0, uint32(len(data)), uint32(len(data))
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	if c.writeErr != nil {
		return c.writeErr
	}
	if c.queued > 0 { // the files' place is this frame's first byte
		if err := c.push(); err != nil {
			return err
		}
	}
	c.begin(&h, nil)
	c.out = append(c.out, data...)
	if h.Has(FlagSum) {
		c.out = appendSum(c.out, crc32c.Checksum(data))
	}
	return c.finish(h, c.progress.writeFiles(to, c.out, files))
}

// begin starts a frame in c.out, behind what is queued, by its header and
// prefix.
func (c *Conn) begin(h *Header, prefix []byte) {
	h.Flags &^= FlagSum
	if c.sums && h.Length > 0 {
		h.Flags |= FlagSum
	}
	if cap(c.out) > keepBuffer && c.queued == 0 {
		c.out = nil
	}
	c.out = append(h.Append(c.out[:c.queued]), prefix...)
}

func appendSum(dst []byte, sum uint32) []byte { return binary.LittleEndian.AppendUint32(dst, sum) }

// finish ends the writing of a frame.
func (c *Conn) finish(h Header, err error) error {
	c.unqueue()
	if err != nil {
		c.broke("write "+h.Kind.String(), err)
		return c.writeErr
	}
	c.sent.count(h)
	return nil
}
