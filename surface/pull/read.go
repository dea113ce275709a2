// SPDX-License-Identifier: Apache-2.0

package pull

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/memspan/memspan/surface"
)

// copyAhead is how much content CopyTo lets arrive before the writer has taken
// what comes before it, but for a few chunks.
const copyAhead = 32 << 20

// CopyTo writes a range of the content, the zero Range for all that the ticket
// opens, to w, in order and as it arrives. It returns how many bytes w has taken.
// What w has taken was verified chunk by chunk; but only without an error was it
// all, and, of a surface that was still being written, by its root.
func (s *Surface) CopyTo(ctx context.Context, w io.Writer, r surface.Range) (int64, error) {
	win, err := s.window(r)
	if err == nil {
		err = s.readable()
	}
	if err == nil {
		_, _, err = s.settled(win)
	}
	if err != nil {
		return 0, s.failed("copy", win, err)
	}
	n, err := s.copy(ctx, w, win)
	if err == nil {
		_, _, err = s.settled(win) // of a surface that is sealed only now
	}
	return n, s.failed("copy", win, err)
}

func (s *Surface) copy(ctx context.Context, w io.Writer, win window) (done int64, err error) {
	if s.direct != nil {
		return s.direct.copy(ctx, w, win)
	}
	chunk := s.Header().Chunk
	first, end := win.chunks(chunk)
	ahead := max(4, copyAhead/chunk)
	queue := &ordered{chunk: chunk, window: win, next: first, parts: make(map[int64][]byte), holes: make(map[int64]int64), came: make(chan struct{}, 1)}
	g := s.gather(queue, nil, first, end, bitset{base: first}, first+ahead)
	ctx, cancel := context.WithCancelCause(ctx)
	var work sync.WaitGroup
	work.Go(func() {
		queue.end(g.wait(ctx))
	})
	zero := make([]byte, min(chunk, 64<<10))
	for err == nil {
		part, hole, more, failed := queue.take()
		if !more {
			err = failed
			break
		}
		for hole > 0 && err == nil {
			var n int
			n, err = w.Write(zero[:min(hole, int64(len(zero)))])
			done, hole = done+int64(n), hole-int64(n)
		}
		if len(part) > 0 {
			var n int
			n, err = w.Write(part)
			done += int64(n)
		}
		s.mu.Lock()
		g.limit++
		s.pokeLocked()
		s.mu.Unlock()
	}
	cancel(err)
	work.Wait()
	return done, err
}

// ordered is a sink that gives chunks on in order.
type ordered struct {
	chunk  int64
	window window
	came   chan struct{} // has an element when there is something to look at

	mu    sync.Mutex // guards what follows
	next  int64
	parts map[int64][]byte
	holes map[int64]int64 // bytes
	over  bool
	err   error
}

func (o *ordered) put(i int64, b []byte) error {
	part, _ := o.window.cut(i*o.chunk, b)
	kept := append([]byte(nil), part...)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.parts[i] = kept
	o.tell()
	return nil
}

func (o *ordered) hole(i, n int64) error {
	from, to := max(i*o.chunk, o.window.off), min(i*o.chunk+n, o.window.end)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.holes[i] = max(0, to-from)
	o.tell()
	return nil
}

// end says that nothing more comes.
func (o *ordered) end(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.over, o.err = true, err
	o.tell()
}

func (o *ordered) tell() {
	select {
	case o.came <- struct{}{}:
	default:
	}
}

// take waits for the next chunk: its bytes, or how many zeros they are. Without
// more the gathering is over.
func (o *ordered) take() (part []byte, hole int64, more bool, err error) {
	for {
		o.mu.Lock()
		i := o.next
		part, here := o.parts[i]
		hole, zeros := o.holes[i]
		if here || zeros {
			delete(o.parts, i)
			delete(o.holes, i)
			o.next++
			o.mu.Unlock()
			return part, hole, true, nil
		}
		over, err := o.over, o.err
		o.mu.Unlock()
		if over {
			return nil, 0, false, err
		}
		<-o.came
	}
}

// ReadAt reads len(p) bytes of the content from off on, as io.ReaderAt asks it:
// only at the content's end are they fewer, with io.EOF. It waits for what has
// not been written yet. Chunk by chunk it asks for those that p touches; what
// else they have is kept for a while. It may be called concurrently.
func (s *Surface) ReadAt(p []byte, off int64) (int, error) {
	return s.ReadAtContext(s.ctx, p, off)
}

// ReadAtContext is ReadAt, which ends when ctx does.
func (s *Surface) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := s.readAt(ctx, p, off)
	if err == nil || errors.Is(err, io.EOF) {
		return n, err
	}
	return 0, s.failed("read", window{off: off, end: off + int64(len(p))}, err)
}

func (s *Surface) readAt(ctx context.Context, p []byte, off int64) (int, error) {
	size, sealed := s.Size()
	if off < 0 || off > surface.MaxSize {
		return 0, ErrRange
	}
	if err := s.readable(); err != nil {
		return 0, err
	}
	want := int64(len(p))
	if sealed {
		want = max(0, min(want, size-off))
	}
	if want > 0 {
		if off < s.allowed.Offset || off+want-s.allowed.Offset > s.allowed.Length {
			return 0, fmt.Errorf("%w that the ticket opens: [%d,+%d)", ErrRange, s.allowed.Offset, s.allowed.Length)
		}
		if err := s.read(ctx, p[:want], off); err != nil {
			return 0, err
		}
		if size, sealed = s.Size(); sealed { // perhaps only now
			want = max(0, min(want, size-off))
		}
	}
	if want < int64(len(p)) {
		return int(want), io.EOF
	}
	return int(want), nil
}

func (s *Surface) read(ctx context.Context, p []byte, off int64) error {
	if s.direct != nil {
		return s.direct.read(ctx, p, off)
	}
	win := window{off: off, end: off + int64(len(p))}
	to := &readSink{s: s, p: p, window: win, chunk: s.Header().Chunk}
	first, end := win.chunks(to.chunk)
	have := bitset{base: first}
	there := int64(0)
	s.mu.Lock()
	m, usable := s.header, s.usableLocked()
	s.mu.Unlock()
	for i := first; i < end; i++ {
		if data := s.cache.get(i); data != nil {
			part, at := win.cut(i*to.chunk, data)
			copy(p[at:], part)
		} else if i < usable && s.zeros.Zero(&m, i) {
			_, n := m.ContentRange(i)
			to.hole(i, n)
		} else {
			continue
		}
		have.set(i)
		there++
	}
	if there == end-first {
		return nil
	}
	return s.bring(ctx, to, first, end, have)
}

// readSink is the memory of a read.
type readSink struct {
	s      *Surface
	p      []byte
	window window
	chunk  int64
}

func (t *readSink) put(i int64, b []byte) error {
	part, at := t.window.cut(i*t.chunk, b)
	copy(t.p[at:], part)
	if len(part) < len(b) {
		t.s.cache.put(i, append([]byte(nil), b...))
	}
	return nil
}

func (t *readSink) hole(i, n int64) error {
	from, to := max(i*t.chunk, t.window.off), min(i*t.chunk+n, t.window.end)
	if from < to {
		clear(t.p[from-t.window.off : to-t.window.off])
	}
	return nil
}

// Wait waits until bytes [off, off+n) of the content are there to be pulled, or
// mapped: on one machine woken by who writes them, elsewhere told by a source.
// Of a surface that ends before it returns ErrRange.
func (s *Surface) Wait(ctx context.Context, off, n int64) error {
	w := window{off: off, end: off + n}
	if off < 0 || n < 0 || off > surface.MaxSize || n > surface.MaxSize {
		return s.failed("wait for", w, ErrRange)
	}
	if s.direct != nil {
		return s.failed("wait for", w, s.direct.wait(ctx, w))
	}
	first, end := w.chunks(s.Header().Chunk)
	err := s.until(ctx, func() (bool, error) {
		if s.sealed {
			if _, err := w.length(s.header.Size); err != nil {
				return false, err
			}
		}
		if s.usableLocked() >= end && s.hadLocked(first, end) {
			return true, nil
		}
		return false, s.err
	})
	return s.failed("wait for", w, err)
}

// hadLocked reports whether each of the chunks is had by a source.
func (s *Surface) hadLocked(first, end int64) bool {
	for first < end {
		next := first
		for _, c := range s.sources {
			if run := c.have.from(first); c.err == nil && run.first == first {
				next = max(next, run.end)
			}
		}
		if next == first {
			return false
		}
		first = next
	}
	return true
}

// A Reader reads a surface's content from its beginning to its end: an
// io.ReadSeeker. Io.Copy and others who take its WriterTo get what lies ahead
// asked for in time. It is for one goroutine.
type Reader struct {
	s   *Surface
	ctx context.Context
	at  int64
}

// Reader returns a reader whose waits end when ctx does.
func (s *Surface) Reader(ctx context.Context) *Reader { return &Reader{s: s, ctx: ctx} }

// Read reads from where the reader is.
func (r *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	// Of a surface that is being written the whole of p may come late.
	if chunk := r.s.Header().Chunk; int64(len(p)) > chunk-r.at%chunk {
		p = p[:chunk-r.at%chunk]
	}
	n, err := r.s.ReadAtContext(r.ctx, p, r.at)
	r.at += int64(n)
	if n > 0 && errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

// Seek implements io.Seeker. From the end it waits until the surface is sealed.
func (r *Reader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		offset += r.at
	case io.SeekEnd:
		size, err := r.s.final(r.ctx)
		if err != nil {
			return 0, r.s.failed("seek in", window{open: true}, err)
		}
		offset += size
	default:
		return 0, r.s.failed("seek in", window{open: true}, fmt.Errorf("whence %d: %w", whence, ErrRange))
	}
	if offset < 0 || offset > surface.MaxSize {
		return 0, r.s.failed("seek in", window{open: true}, fmt.Errorf("to %d: %w", offset, ErrRange))
	}
	r.at = offset
	return offset, nil
}

// WriteTo writes the rest to w: see CopyTo.
func (r *Reader) WriteTo(w io.Writer) (int64, error) {
	if size, sealed := r.s.Size(); sealed && r.at >= size {
		return 0, nil
	}
	if err := r.s.readable(); err != nil {
		return 0, r.s.failed("copy", window{open: true}, err)
	}
	n, err := r.s.copy(r.ctx, w, window{r.at, surface.MaxSize, true})
	r.at += n
	return n, r.s.failed("copy", window{off: r.at, open: true}, err)
}

// final waits until the surface is sealed and returns its size.
func (s *Surface) final(ctx context.Context) (int64, error) {
	if s.direct != nil {
		return s.direct.final(ctx)
	}
	var size int64
	err := s.until(ctx, func() (bool, error) {
		size = s.header.Size
		if s.sealed {
			return true, nil
		}
		return false, s.err
	})
	return size, err
}
