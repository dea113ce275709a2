// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"time"

	"github.com/memspan/memspan/internal/memfd"
)

const (
	// smallPayload is the longest payload that is copied behind its header
	// and leaves in one plain write.
	smallPayload = 4 << 10
	// sumChunk is how much data is copied and summed before it is written, so
	// that it is still in the processor's cache when the kernel takes it.
	sumChunk = 128 << 10
	// keepBuffer is the largest buffer that a connection keeps.
	keepBuffer = 64 << 10
)

// WriteFrame writes a frame of the header's Kind, Flags and ID, with the given
// prefix and, as its data part, the given pieces one after the other. Its
// errors are ErrTooLarge, after which nothing was written and the connection
// can still be used, and those of a connection that broke or stalled.
//
// Data is written straight from the pieces' memory, or encoded if the
// connection compresses and it pays. Should somebody else change that memory
// meanwhile, the peer receives a mixture of old and new bytes, never a frame
// that does not decode or whose sum is wrong.
func (c *Conn) WriteFrame(h Header, prefix []byte, data ...[]byte) error {
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
	if raw >= minEncode && c.compress.Load() {
		if e, ok := c.enc.encode(data, raw); ok {
			defer e.release()
			h.Encoding = e.encoding
			return c.write(h, prefix, true, e.data)
		}
	}
	h.Encoding = EncodingRaw
	return c.write(h, prefix, false, data...)
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
	c.begin(&h)
	c.out = append(c.out, data...)
	if h.Has(FlagSum) {
		c.out = appendSum(c.out, crc32.Checksum(data, castagnoli))
	}
	return c.finish(h, c.progress.writeFiles(to, c.out, files))
}

// write completes h and writes the frame. private says that nobody else can
// change the data.
func (c *Conn) write(h Header, prefix []byte, private bool, data ...[]byte) error {
	size := 0
	for _, d := range data {
		size += len(d)
	}
	h.Length = uint32(len(prefix) + size)

	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	if c.writeErr != nil {
		return c.writeErr
	}
	c.begin(&h)
	c.out = append(c.out, prefix...)
	if len(prefix)+size <= smallPayload {
		for _, d := range data {
			c.out = append(c.out, d...)
		}
		if h.Has(FlagSum) {
			c.out = appendSum(c.out, crc32.Checksum(c.out[HeaderSize:], castagnoli))
		}
		_, err := c.nc.Write(c.out)
		return c.finish(h, err)
	}
	start := time.Now()
	var err error
	switch {
	case !h.Has(FlagSum):
		err = c.gather(c.out, data, nil)
	case private:
		sum := crc32.Checksum(c.out[HeaderSize:], castagnoli)
		for _, d := range data {
			sum = crc32.Update(sum, castagnoli, d)
		}
		err = c.gather(c.out, data, appendSum(c.tail[:0], sum))
	default:
		err = c.writeSummed(data)
	}
	c.enc.wrote(int(h.Length), time.Since(start))
	return c.finish(h, err)
}

// gather writes the pieces of a frame one after the other.
func (c *Conn) gather(head []byte, data [][]byte, tail []byte) error {
	if !c.layered {
		return c.progress.writeBuffers(head, data, tail)
	}
	c.progress.hold()
	_, err := c.nc.Write(head)
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

// begin starts a frame in c.out.
func (c *Conn) begin(h *Header) {
	h.Flags &^= FlagSum
	if c.sums && h.Length > 0 {
		h.Flags |= FlagSum
	}
	if cap(c.out) > keepBuffer {
		c.out = nil
	}
	c.out = h.Append(c.out[:0])
}

func appendSum(dst []byte, sum uint32) []byte { return binary.LittleEndian.AppendUint32(dst, sum) }

// finish ends the writing of a frame.
func (c *Conn) finish(h Header, err error) error {
	if err != nil {
		c.writeErr = ioError("write "+h.Kind.String(), err)
		return c.writeErr
	}
	c.sent.frames[h.Kind].Add(1)
	c.sent.countData(h)
	return nil
}

// writeSummed writes c.out, which holds header and prefix, then data, then the
// sum. The data is copied first, piece by piece: memory that another process
// writes could change between summing and sending, and what is copied here
// from main memory the kernel copies from the processor's cache.
func (c *Conn) writeSummed(data [][]byte) error {
	scratch := getScratch()
	defer putScratch(scratch)
	n, head := 0, c.out // scratch[:n] is not written yet, nor is head
	sum := crc32.Checksum(head[HeaderSize:], castagnoli)
	for _, d := range data {
		for len(d) > 0 {
			m := memfd.Copy((*scratch)[n:sumChunk], d)
			sum = crc32.Update(sum, castagnoli, (*scratch)[n:n+m])
			n, d = n+m, d[m:]
			if n == sumChunk {
				if err := c.gather(head, [][]byte{(*scratch)[:n]}, nil); err != nil {
					return err
				}
				n, head = 0, nil
			}
		}
	}
	return c.gather(head, nil, appendSum((*scratch)[:n], sum))
}
