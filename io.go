// SPDX-License-Identifier: Apache-2.0

package memspan

import (
	"context"
	"errors"

	"github.com/memspan/memspan/wire"
)

// window is how many data frames of one call are under way at a time: enough
// to keep a link busy over a round trip, and a bound on what the other side
// may have to keep.
const window = 16

// A flight is the calls under way of one operation, in the order in which they
// were sent.
type flight struct {
	calls [window]*call
	head  int
	n     int
}

func (f *flight) full() bool { return f.n == window }

func (f *flight) push(c *call) {
	f.calls[(f.head+f.n)%window] = c
	f.n++
}

func (f *flight) pop() *call {
	c := f.calls[f.head]
	f.calls[f.head] = nil
	f.head = (f.head + 1) % window
	f.n--
	return c
}

// wait waits for the first half of the calls, which are answered in order, and
// returns how many they are. Waking up for each would take the processor from
// those who receive and send the data, twice for every block.
func (f *flight) wait(ctx context.Context, l *link) int {
	n := (f.n + 1) / 2
	last := f.calls[(f.head+n-1)%window]
	if l.wait(ctx, last) {
		last.done <- struct{}{} // for await
	}
	return n
}

// ReadAt reads len(p) bytes of the span from off on into p. Each block's part
// is of one version; several blocks need not be of one moment. It returns how
// many bytes, from p's beginning, are read; fewer than len(p) only with an
// error. A range that is not wholly inside the span is ErrOutOfRange, and
// nothing is read.
func (s *Span) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := s.checkRange(off, int64(len(p))); err != nil {
		return 0, s.failed("read", off, int64(len(p)), err)
	}
	n, err := s.read(ctx, p, off)
	return n, s.failed("read", off, int64(len(p)), err)
}

// piece returns how many of n bytes at off lie in one block.
func (c *Client) piece(off int64, n int) int {
	return int(min(int64(n), c.blockSize-off%c.blockSize))
}

func (s *Span) read(ctx context.Context, p []byte, off int64) (done int, err error) {
	if ctx.Err() != nil {
		return 0, canceled(ctx)
	}
	l := s.client.link
	var under flight
	answered := 0 // of those under way, or as good as
	for rest := p; len(rest) > 0 || under.n > 0; {
		if len(rest) > 0 && !under.full() && answered == 0 {
			n := s.client.piece(off, len(rest))
			c := l.newCall(wire.KindRead)
			c.data = rest[:n:n]
			if err = l.sendRead(c, s.handle, off); err != nil {
				l.release(c)
				break
			}
			under.push(c)
			rest, off = rest[n:], off+int64(n)
			continue
		}
		if answered == 0 {
			answered = under.wait(ctx, l)
		}
		c := under.pop()
		answered--
		err = l.await(ctx, c)
		n := len(c.data)
		l.release(c)
		if err != nil {
			break
		}
		done += n
	}
	for under.n > 0 { // p is the caller's again
		c := under.pop()
		l.abandon(c)
		l.release(c)
	}
	return done, err
}

// sendRead asks for len(c.data) bytes at off.
func (l *link) sendRead(c *call, handle uint64, off int64) error {
	return l.send(c, 0, wire.AppendRead(c.out[:0], wire.MemoryCommand{Memory: handle, Offset: uint64(off), Size: uint64(len(c.data))}))
}

// WriteAt stores p in the span from off on, whatever was there. Each block's
// part is stored whole or not at all. It returns how many bytes, from p's
// beginning, the server is known to hold; fewer than len(p) only with an error,
// after which later parts may be stored or not. With ErrDebt all of p is
// stored. Where the write is durable before it is answered all of p is stored or
// none: on a named span whose home is Disk, unless it is written back later;
// such writes through one Span come one after the other. A range that is not wholly inside the span is ErrOutOfRange, and
// nothing is stored.
func (s *Span) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := s.checkRange(off, int64(len(p))); err != nil {
		return 0, s.failed("write", off, int64(len(p)), err)
	}
	if s.durable() {
		select {
		case s.writing <- struct{}{}:
		case <-ctx.Done():
			return 0, s.failed("write", off, int64(len(p)), canceled(ctx))
		}
		defer func() { <-s.writing }()
	}
	n, err := s.client.write(ctx, s.handle, p, off)
	if err != nil && !errors.Is(err, ErrDebt) && s.durable() { // none, where it is durable first
		n = 0
	}
	return n, s.failed("write", off, int64(len(p)), err)
}

// write stores p from off on in what a handle means. It returns how many bytes, from
// p's beginning, the server is known to hold.
func (c *Client) write(ctx context.Context, handle uint64, p []byte, off int64) (done int, err error) {
	var debt error // of a part that is stored: no reason to stop
	l := c.link
	var under flight
	var sizes [window]int
	for rest := p; len(rest) > 0 || under.n > 0; {
		if len(rest) > 0 && !under.full() {
			if ctx.Err() != nil {
				err = canceled(ctx)
				break
			}
			n := c.piece(off, len(rest))
			part := l.newCall(wire.KindTransfer)
			if err = l.sendTransfer(part, handle, off, rest[:n], partFlags(len(rest) == len(p), len(rest) > n)); err != nil {
				l.release(part)
				break
			}
			sizes[(under.head+under.n)%window] = n
			under.push(part)
			rest, off = rest[n:], off+int64(n)
			continue
		}
		n := sizes[under.head]
		part := under.pop()
		err = l.await(ctx, part)
		l.release(part)
		if errors.Is(err, ErrDebt) {
			debt, err = err, nil
		}
		if err != nil {
			break
		}
		done += n
	}
	for under.n > 0 {
		part := under.pop()
		l.abandon(part)
		l.release(part)
	}
	if err == nil {
		err = debt
	}
	return done, err
}

// partFlags are the flags of a frame that is the first of a write or flush, or
// has more of it after it.
func partFlags(first, more bool) (flags wire.Flags) {
	if first {
		flags |= wire.FlagFirst
	}
	if more {
		flags |= wire.FlagMore
	}
	return flags
}

func (l *link) sendTransfer(c *call, handle uint64, off int64, data []byte, flags wire.Flags) error {
	return l.send(c, flags, wire.AppendTransfer(c.out[:0], wire.MemoryCommand{Memory: handle, Offset: uint64(off), Size: uint64(len(data))}), data)
}
