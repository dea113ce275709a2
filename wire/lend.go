// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"errors"
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
	tail   []byte    // of the sum
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
	one := [1][]byte{data}
	if h.Has(FlagSum) {
		l.tail = c.sum(one[:])
	}
	n, err := c.progress.writeVector(c.out, one[:], l.tail)
	l.end()
	if !errors.Is(err, errRecalled) {
		l.err = err
	}
	skip := func(b []byte) []byte {
		k := min(n, len(b))
		n -= k
		return b[k:]
	}
	c.out = append(c.out[:0], skip(c.out)...)
	rest := skip(data)
	l.rest[0] = spare[:memfd.Copy(spare, rest)]
	l.tail = skip(l.tail)
	return true
}

// Settle writes what Lend has left of the frame and ends it; its errors are
// those of WriteFrame. It must follow a Lend that returned true: until then no
// other frame is written.
func (l *Loan) Settle() error {
	c := l.conn
	defer c.writeMu.Unlock()
	err := l.err
	if err == nil && len(c.out)+len(l.rest[0])+len(l.tail) > 0 {
		err = c.gather(l.rest[:], l.tail)
	}
	c.enc.wrote(int(l.header.Length), time.Since(l.start))
	return c.finish(l.header, err)
}
