// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"errors"
	"hash/crc32"
	"sync"
	"time"

	"github.com/memspan/memspan/internal/memfd"
)

// A Loan is a frame whose data is sent straight from memory that its sender
// has only until somebody asks for it back. It is for one frame: the zero
// value, then Conn.Lend, then Settle. Recall may be called at any time.
type Loan struct {
	mu       sync.Mutex // guards what follows
	writing  *deadline  // of the connection, while it is written from the lent memory
	recalled bool

	conn   *Conn // that Lend has begun to write to
	header Header
	rest   [1][]byte // of the data, in the spare memory
	sum    uint32    // of what was sent before
	start  time.Time
	err    error
}

// errRecalled ends the writing of lent memory.
var errRecalled = errors.New("wire: lent memory was recalled")

// Recall asks for the memory back: Conn.Lend returns soon, however slow the
// peer is. It waits for nothing.
func (l *Loan) Recall() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.recalled && l.writing != nil {
		l.writing.interrupt()
	}
	l.recalled = true
}

// begin says that writing begins, unless the memory was recalled before.
func (l *Loan) begin(writing *deadline) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.recalled {
		l.writing = writing
	}
	return !l.recalled
}

func (l *Loan) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.writing.resume()
	l.writing = nil
}

// Lend begins to write a frame as WriteFrame does, with one piece of data that
// nobody writes before Lend returns, and never waits for a peer once l was
// recalled: what has not been sent then is copied to spare, which must be as
// long as data. Settle writes it.
//
// Lend returns false, and nothing was written, where it cannot do that or it
// would not pay: if another frame is being written, under TLS, for small
// frames, and for data that is better encoded. WriteFrame does it then.
func (c *Conn) Lend(l *Loan, h Header, prefix, data, spare []byte) bool {
	h.Prefix, h.Raw, h.Length = uint32(len(prefix)), uint32(len(data)), uint32(len(prefix)+len(data))
	h.Encoding = EncodingRaw
	switch {
	case c.layered, h.Length <= smallPayload, len(data) > MaxData, len(prefix) > MaxPrefix:
		return false
	case c.compress.Load() && c.enc.promising(data):
		return false
	case !c.writeMu.TryLock():
		return false
	case c.writeErr != nil || !l.begin(&c.progress.writing):
		c.writeMu.Unlock()
		return false
	}
	c.begin(&h, prefix)
	l.conn, l.header, l.start = c, h, time.Now()
	rest := l.write(data)
	l.end()
	if errors.Is(l.err, errRecalled) {
		l.err = nil
	}
	l.rest[0] = spare[:memfd.Copy(spare, rest)]
	return true
}

// write writes c.out and data until it is done or recalled, and returns what is
// left: a little at least if the connection has sums, to leave with the sum.
func (l *Loan) write(data []byte) (rest []byte) {
	c, step, last := l.conn, len(data), 0
	if l.header.Has(FlagSum) {
		l.sum = crc32.Checksum(c.out[c.queued+HeaderSize:], castagnoli)
		step, last = sumChunk, min(len(data), sumLast)
	}
	for len(data) > last && l.err == nil {
		part := data[:min(len(data)-last, step)]
		var n int
		n, l.err = c.progress.writeParts(c.out, part)
		head := min(n, len(c.out))
		c.out = append(c.out[:0], c.out[head:]...)
		n -= head
		if l.header.Has(FlagSum) {
			l.sum = crc32.Update(l.sum, castagnoli, part[:n])
		}
		data = data[n:]
	}
	return data
}

// Settle writes what Lend has left of the frame and ends it; its errors are
// those of WriteFrame. It must follow a Lend that returned true: until then no
// other frame is written.
func (l *Loan) Settle() error {
	c := l.conn
	defer c.writeMu.Unlock()
	err := l.err
	switch {
	case err != nil:
	case l.header.Has(FlagSum):
		err = c.writeSummed(l.sum, l.rest[:])
	case len(c.out)+len(l.rest[0]) > 0:
		err = c.gather(l.rest[:], nil)
	}
	c.enc.wrote(int(l.header.Length), time.Since(l.start))
	return c.finish(l.header, err)
}
