// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/memspan/memspan/wire"
)

const (
	// keepBuffer is the largest buffer that a connection keeps, in either
	// direction.
	keepBuffer = 4 << 20
	// copyAtMost is how many bytes given to Write are copied behind others
	// rather than sent from where they are.
	copyAtMost = 16 << 10
)

// A Conn carries messages. Any number of goroutines write; one at a time
// reads. After an error other than wire.TooLarge the connection is of no
// further use.
type Conn struct {
	wc *wire.Conn

	mu      sync.Mutex
	out     []byte // whole messages, then the one being written
	begun   int    // where that one begins
	err     error  // set for good by the first failed write
	waiting atomic.Int64

	stall      *time.Timer // nil: nobody is told
	stallAfter time.Duration
	writing    atomic.Bool // a write to wc is under way

	in reader
}

// New returns a Conn over wc, which must be past its handshake. Nobody else
// may read wc from now on, nor write stream frames to it.
func New(wc *wire.Conn) *Conn { return &Conn{wc: wc} }

// OnStall has f called, on a goroutine of its own, whenever a write has lasted
// for after, and again and again each time that much longer. Two ends that both
// write before they read wait for each other for ever: f has somebody read. It
// is to be called before there are several writers.
func (c *Conn) OnStall(after time.Duration, f func()) {
	c.stall = time.AfterFunc(time.Hour, func() {
		if c.writing.Load() {
			f()
			c.stall.Reset(after)
		}
	})
	c.stall.Stop()
	c.stallAfter = after
}

// busy and idle stand around writes.
func (c *Conn) busy() {
	if c.stall != nil {
		c.writing.Store(true)
		c.stall.Reset(c.stallAfter)
	}
}

func (c *Conn) idle() {
	if c.stall != nil {
		c.writing.Store(false)
		c.stall.Stop()
	}
}

// Wire returns the connection below, to close it and for its statistics.
func (c *Conn) Wire() *wire.Conn { return c.wc }

// Close closes the connection below. What waits is lost: Flush before.
func (c *Conn) Close() error { return c.wc.Close() }

// Begin begins a message and returns the buffer to append its body to, which
// holds other messages already. Until End, EndFile or Abort all other writers
// wait.
func (c *Conn) Begin(op Op, flags Flags, serial uint64) []byte {
	c.mu.Lock()
	c.begun = len(c.out)
	return appendHeader(c.out, op, flags, serial, 0)
}

func appendHeader(dst []byte, op Op, flags Flags, serial uint64, n int) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, uint32(n))
	dst = binary.LittleEndian.AppendUint16(dst, uint16(op))
	dst = binary.LittleEndian.AppendUint16(dst, uint16(flags))
	return binary.LittleEndian.AppendUint64(dst, serial)
}

// End ends the message whose body was appended to what Begin returned. If more
// than FlushAt bytes wait now, all of them are written.
func (c *Conn) End(buf []byte) error {
	defer c.mu.Unlock()
	if err := c.end(buf); err != nil {
		return err
	}
	if len(c.out) > FlushAt {
		return c.flush(nil)
	}
	return nil
}

// end takes a finished message over into c.out.
func (c *Conn) end(buf []byte) error {
	if c.err != nil {
		return c.err
	}
	n := len(buf) - c.begun - HeaderSize
	if n > MaxBody {
		return fmt.Errorf("stream: message of %d bytes, at most %d: %w", n, MaxBody, wire.ErrTooLarge)
	}
	binary.LittleEndian.PutUint32(buf[c.begun:], uint32(n))
	c.out = buf
	c.waiting.Store(int64(len(buf)))
	return nil
}

// Abort drops the message that Begin began.
func (c *Conn) Abort() { c.mu.Unlock() }

// EndFile ends the message as End does and sends it at once, with f, which
// stays the caller's. It fails with an error that matches wire.Unsupported,
// and sends nothing of the message, where files cannot pass.
func (c *Conn) EndFile(buf []byte, f *os.File) error {
	defer c.mu.Unlock()
	begun := c.begun
	if err := c.end(buf); err != nil {
		return err
	}
	flags := buf[begun+6:]
	binary.LittleEndian.PutUint16(flags, binary.LittleEndian.Uint16(flags)|uint16(FlagFile))
	// The file goes with a frame of its own, so that it cannot be taken for
	// another message's.
	last := c.out[begun:]
	c.out = c.out[:begun]
	if err := c.flush(nil); err != nil {
		return err
	}
	first := last[:min(len(last), MaxFrame)]
	c.busy()
	defer c.idle()
	if err := c.wc.WriteFrameFiles(wire.Header{Kind: wire.KindStream}, first, f); err != nil {
		if !errors.Is(err, wire.Unsupported) {
			c.err = err
		}
		return fmt.Errorf("stream: send a file: %w", err)
	}
	return c.write(last[len(first):])
}

// Write writes a message whose body is head followed by data. Long data is
// sent from where it is: it must not change before Write returns.
func (c *Conn) Write(op Op, flags Flags, serial uint64, head, data []byte) error {
	if len(head)+len(data) > MaxBody {
		return fmt.Errorf("stream: message of %d bytes, at most %d: %w", len(head)+len(data), MaxBody, wire.ErrTooLarge)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	c.out = append(appendHeader(c.out, op, flags, serial, len(head)+len(data)), head...)
	if len(data) <= copyAtMost {
		c.out = append(c.out, data...)
		data = nil
	}
	c.waiting.Store(int64(len(c.out)))
	if data != nil || len(c.out) > FlushAt {
		return c.flush(data)
	}
	return nil
}

// Waiting returns how many bytes wait for Flush.
func (c *Conn) Waiting() int { return int(c.waiting.Load()) }

// Flush writes what waits.
func (c *Conn) Flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.flush(nil)
}

// flush writes what waits, then data.
func (c *Conn) flush(data []byte) error {
	out := c.out
	if cap(c.out) <= keepBuffer {
		c.out = c.out[:0]
	} else {
		c.out = nil
	}
	c.waiting.Store(0)
	if c.err != nil {
		return c.err
	}
	for len(out) > MaxFrame {
		if err := c.write(out[:MaxFrame]); err != nil {
			return err
		}
		out = out[MaxFrame:]
	}
	if n := min(len(data), MaxFrame-len(out)); n > 0 {
		if err := c.write(out, data[:n]); err != nil {
			return err
		}
		out, data = nil, data[n:]
	}
	if err := c.write(out); err != nil {
		return err
	}
	return c.write(data)
}

// write writes pieces, of which all but the last are together at most one
// frame long if there are several, as frames.
func (c *Conn) write(pieces ...[]byte) error {
	if len(pieces) == 1 && len(pieces[0]) == 0 {
		return c.err
	}
	c.busy()
	defer c.idle()
	if len(pieces) == 1 {
		for rest := pieces[0]; len(rest) > 0 && c.err == nil; {
			n := min(len(rest), MaxFrame)
			c.err = c.wc.WriteFrame(wire.Header{Kind: wire.KindStream}, nil, rest[:n])
			rest = rest[n:]
		}
		return c.err
	}
	if c.err == nil {
		c.err = c.wc.WriteFrame(wire.Header{Kind: wire.KindStream}, nil, pieces...)
	}
	return c.err
}
