// SPDX-License-Identifier: Apache-2.0

package pull

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/surface"
)

// A window is bytes [off, end) of the content, which are the bytes from 0 on of
// where they go.
type window struct {
	off, end int64
	open     bool // the surface may end before
}

// window returns the bytes of a range; the zero Range is all that the ticket
// opens.
func (s *Surface) window(r surface.Range) (window, error) {
	all := r == (surface.Range{})
	if all {
		r = s.allowed
	}
	if r.Offset < 0 || r.Length < 0 || r.Offset > surface.MaxSize || r.Length > surface.MaxSize {
		return window{}, ErrRange
	}
	if r.Length > surface.MaxSize-r.Offset {
		if !all {
			return window{}, ErrRange
		}
		r.Length = surface.MaxSize - r.Offset
	}
	w := window{r.Offset, r.Offset + r.Length, all}
	if w.off < s.allowed.Offset || w.end-s.allowed.Offset > s.allowed.Length {
		return window{}, fmt.Errorf("%w that the ticket opens: [%d,+%d)", ErrRange, s.allowed.Offset, s.allowed.Length)
	}
	return w, nil
}

// chunks returns the chunks [first, end) that have bytes of w: end is -1 for the
// surface's last.
func (w window) chunks(chunk int64) (first, end int64) {
	first = w.off / chunk
	switch {
	case w.open && w.end >= surface.MaxSize:
		return first, -1
	case w.off == w.end:
		return first, first
	}
	return first, (w.end-1)/chunk + 1
}

// cut returns which part of chunk content b, whose first byte is at, is inside,
// and where it goes.
func (w window) cut(at int64, b []byte) (part []byte, to int64) {
	from, end := max(at, w.off), min(at+int64(len(b)), w.end)
	if from >= end {
		return nil, 0
	}
	return b[from-at : end-at], from - w.off
}

// length returns how many bytes w has of a surface of the given size, and
// whether it lies inside.
func (w window) length(size int64) (int64, error) {
	if w.open {
		return max(0, min(w.end, size)-w.off), nil
	}
	if w.end > size {
		return 0, fmt.Errorf("%w, which has %d bytes", ErrRange, size)
	}
	return w.end - w.off, nil
}

// failed places an error.
func (s *Surface) failed(op string, w window, err error) error {
	if err == nil {
		return nil
	}
	e := &Error{Op: op, Surface: s.name(), Err: err}
	if !w.open {
		e.Offset, e.Length = w.off, w.end-w.off
	}
	return e
}

func (s *Surface) name() string {
	m := s.Header()
	if m.Name != "" {
		return m.Name
	}
	return s.ticket.ID.String()
}

// readable says why the content cannot be had.
func (s *Surface) readable() error {
	if m := s.Header(); m.Encrypted && s.sealer == nil {
		return ErrKey
	}
	return nil
}

// settled returns the length of w once that is known: at once, unless w goes to
// the end of a surface that is not sealed.
func (s *Surface) settled(w window) (n int64, known bool, err error) {
	size, sealed := s.Size()
	if sealed {
		n, err = w.length(size)
		return n, true, err
	}
	return w.end - w.off, !w.open, nil
}

// Size returns how many bytes the content has; of a surface that is not sealed
// yet, how many so far.
func (s *Surface) Size() (size int64, sealed bool) {
	if s.direct != nil {
		return s.direct.size()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.header.Size, s.sealed
}

// writerSink puts chunks to where they belong in a file or a memory.
type writerSink struct {
	to     io.WriterAt
	window window
	chunk  int64
}

func (t *writerSink) put(i int64, b []byte) error {
	part, at := t.window.cut(i*t.chunk, b)
	if len(part) == 0 {
		return nil
	}
	_, err := t.to.WriteAt(part, at)
	return err
}

func (t *writerSink) hole(i, n int64) error { return nil } // it reads as zeros

// A Memory is a surface's content, or a range of it, in a memory that nobody can
// change any more.
type Memory struct {
	file *os.File
	mem  []byte
}

// Bytes returns the content. It must not be written, nor be touched after Close.
func (m *Memory) Bytes() []byte { return m.mem }

// File returns the memfd, sealed, which can be handed on. It is closed by Close.
func (m *Memory) File() *os.File { return m.file }

// Close unmaps the memory, which goes when nobody else has it.
func (m *Memory) Close() error {
	var err error
	if m.mem != nil {
		err = memfd.Unmap(m.mem)
		m.mem = nil
	}
	return errors.Join(err, m.file.Close())
}

// ToMemory pulls a range of the content, the zero Range for all that the ticket
// opens, into a new memory (on Linux), and returns it once all of it is there
// and verified.
func (s *Surface) ToMemory(ctx context.Context, r surface.Range) (*Memory, error) {
	w, err := s.window(r)
	if err == nil {
		err = s.readable()
	}
	if err != nil {
		return nil, s.failed("pull", w, err)
	}
	file, err := memfd.Blank("memspan-pull")
	if err != nil {
		return nil, s.failed("pull", w, err)
	}
	m := &Memory{file: file}
	if err = s.fill(ctx, file, w); err == nil {
		err = memfd.Freeze(file)
	}
	if err == nil {
		var info os.FileInfo
		if info, err = file.Stat(); err == nil && info.Size() > 0 {
			m.mem, err = memfd.MapRange(file, 0, info.Size(), false)
		}
	}
	if err != nil {
		file.Close()
		return nil, s.failed("pull", w, err)
	}
	return m, nil
}

// fill pulls the bytes of w into an empty file, which gets their length.
func (s *Surface) fill(ctx context.Context, file *os.File, w window) error {
	n, known, err := s.settled(w)
	if err != nil {
		return err
	}
	if known {
		if err := file.Truncate(n); err != nil {
			return err
		}
	}
	chunk := s.Header().Chunk
	first, end := w.chunks(chunk)
	if err := s.bring(ctx, &writerSink{file, w, chunk}, first, end, bitset{base: first}); err != nil {
		return err
	}
	if n, _, err = s.settled(w); err != nil {
		return err
	}
	return file.Truncate(n)
}

// bring gathers chunks [first, end) and waits for them.
func (s *Surface) bring(ctx context.Context, to sink, first, end int64, have bitset) error {
	if s.direct != nil {
		return s.direct.bring(ctx, to, first, end, have)
	}
	return s.gather(to, nil, first, end, have, math.MaxInt64).wait(ctx)
}

// Gather pulls what is stored of the chunks, verified whatever the options say and not
// opened, in any order, to keep it: put is called once for each chunk from several
// goroutines, but for those that have says are there, and must not keep the chunk's memory.
// Zeros come as zeros. It ends when all chunks were put, an error of put first, or ctx.
func (s *Surface) Gather(ctx context.Context, have func(i int64) bool, put func(i int64, c surface.Chunk) error) error {
	w, _ := s.window(surface.Range{})
	if s.direct != nil {
		return s.failed("gather", w, fmt.Errorf("it is mapped; open it with Options.Copy: %w", errors.ErrUnsupported))
	}
	first, end := w.chunks(s.Header().Chunk)
	there := bitset{base: first}
	if have != nil {
		m := s.Header()
		for i := range m.Count() {
			if i >= first && have(i) {
				there.set(i)
			}
		}
	}
	err := s.gather(nil, put, first, end, there, math.MaxInt64).wait(ctx)
	return s.failed("gather", w, err)
}
