// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Config says how a connection is to be used. It is never sent: both sides
// know their transport, and agree on compression in the handshake.
type Config struct {
	// Sums makes every payload carry a CRC-32C, and refuses payloads without:
	// for plain TCP. TLS has its own, unix sockets need none.
	Sums bool
	// Compress allows encoded data in both directions; see SetCompress.
	Compress bool
	// IOTimeout is how long a frame may be under way, in either direction,
	// without a single byte moving. 0 is without limit. If nc is, or lies on,
	// a ProgressConn, that one's timeout holds instead.
	IOTimeout time.Duration
}

// A Conn carries frames over a connection.
//
// One goroutine at a time reads: ReadHeader, then ReadPrefix, then ReadData.
// Any number of goroutines write; their frames do not interleave. After an
// error of reading or writing other than those that say so the connection is
// of no further use: Close it.
type Conn struct {
	nc       net.Conn
	progress *ProgressConn // nc itself, or what TLS stands on
	layered  bool          // it is the latter
	sums     bool
	compress atomic.Bool

	in reader

	writeMu  sync.Mutex  // frames do not interleave
	out      []byte      // what is queued, and a frame's beginning, or all of a small frame
	queued   int         // bytes of out that are whole frames which nobody has written
	waiting  atomic.Bool // queued is not 0, or writeErr is set
	tail     [sumSize]byte
	writeErr error // set for good by the first failed write

	enc encoder

	received, sent flow
}

// NewConn returns a Conn over nc, which it owns from now on. If nc is a
// *ProgressConn, or TLS on one, the connection's timeouts, its options and its
// count of bytes are those of the ProgressConn; otherwise NewConn puts nc on a
// ProgressConn of its own.
func NewConn(nc net.Conn, cfg Config) *Conn {
	c := &Conn{nc: nc, sums: cfg.Sums}
	switch below := nc.(type) {
	case *ProgressConn:
		c.progress = below
	case interface{ NetConn() net.Conn }: // *tls.Conn
		c.progress, _ = below.NetConn().(*ProgressConn)
	}
	if c.progress == nil {
		c.progress = Progress(nc, cfg.IOTimeout)
		c.nc = c.progress
	}
	c.layered = c.nc != net.Conn(c.progress)
	c.compress.Store(cfg.Compress)
	c.in.buf = make([]byte, firstBuffer)
	if tcp, ok := nc.RemoteAddr().(*net.TCPAddr); ok {
		c.enc.loopback = tcp.IP.IsLoopback()
	}
	return c
}

// SetCompress allows or forbids encoded data, in both directions. A side that
// has agreed to compression allows it before the other side may send the first
// encoded frame: a server once it has read Hello, and before it reads on; a
// client once it has read Welcome.
func (c *Conn) SetCompress(on bool) { c.compress.Store(on) }

// Close closes the connection. Reads and writes under way fail with an error
// that matches net.ErrClosed.
func (c *Conn) Close() error { return c.nc.Close() }

// ErrInterrupted is returned by ReadHeader after Interrupt. The connection is as
// it was.
var ErrInterrupted = errors.New("wire: reading was interrupted")

// Interruptible reports whether Interrupt works: not over TLS, which does not
// go on after a read that ended early.
func (c *Conn) Interruptible() bool { return !c.layered }

// Interrupt ends a ReadHeader that waits for a frame to begin, or the next one
// that would, with ErrInterrupted. A frame that has begun is read to its end. If
// nobody reads, whoever reads next is interrupted in vain, and reads again.
func (c *Conn) Interrupt() { c.progress.interrupt() }

// NetConn returns the connection that frames are written to: the one given to
// NewConn, or a ProgressConn around it. Its deadlines may be set, for instance
// to bound a handshake; reading or writing it breaks the framing.
func (c *Conn) NetConn() net.Conn { return c.nc }

// ioError says what became of the connection during op.
func ioError(op string, err error) error {
	switch {
	case errors.Is(err, Stalled), errors.Is(err, net.ErrClosed):
		return fmt.Errorf("wire: %s: %w", op, err)
	case errors.Is(err, io.ErrClosedPipe): // net.Pipe's word for it
		return fmt.Errorf("wire: %s: %w", op, net.ErrClosed)
	case errors.Is(err, os.ErrDeadlineExceeded): // set by the caller
		return fmt.Errorf("wire: %s: %w: %w", op, Stalled, err)
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("wire: %s: %w: %w", op, PeerLost, err)
}

// Stats counts what a connection has carried.
type Stats struct {
	Received, Sent Flow
}

// Flow counts one direction. Frames are counted when their header has been
// read or the whole frame written, data when it is complete.
type Flow struct {
	Bytes   uint64          // on the wire: headers, sums and the overhead of TLS included
	Data    uint64          // bytes of data parts, before encoding
	Encoded uint64          // bytes of data parts, as sent
	Frames  [kindEnd]uint64 // by Kind, requests and replies together
}

// flow is a Flow being counted, without its Bytes.
type flow struct {
	data, encoded atomic.Uint64
	frames        [kindEnd]atomic.Uint64
}

func (f *flow) countData(h Header) {
	f.data.Add(uint64(h.Raw))
	f.encoded.Add(uint64(h.encoded()))
}

// count counts a frame that was sent.
func (f *flow) count(h Header) {
	f.frames[h.Kind].Add(1)
	f.countData(h)
}

func (f *flow) flow(bytes uint64) Flow {
	out := Flow{Bytes: bytes, Data: f.data.Load(), Encoded: f.encoded.Load()}
	for k := range f.frames {
		out.Frames[k] = f.frames[k].Load()
	}
	return out
}

// Stats returns what the connection has carried so far. It may be called at
// any time.
func (c *Conn) Stats() Stats {
	return Stats{
		Received: c.received.flow(c.progress.BytesRead()),
		Sent:     c.sent.flow(c.progress.BytesWritten()),
	}
}

// SendQueue returns how many of the bytes sent the peer's system (TCP) or the
// peer (unix sockets) has not taken yet, 0 if that cannot be known.
func (c *Conn) SendQueue() int { return c.progress.sendQueue() }
