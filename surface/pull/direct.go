// SPDX-License-Identifier: Apache-2.0

package pull

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/surface"
	"github.com/memspan/memspan/wire"
	"github.com/memspan/memspan/wire/control"
)

// A direct is a surface's own memory, and its availability page. While it grows
// it is read by its descriptor; once it is sealed it is mapped, by who reads it.
type direct struct {
	s      *Surface
	source *source
	file   *os.File
	page   *surface.Availability // nil: all was there when it was opened, and nothing changes any more
	header surface.Manifest      // of a growing surface with the size that it had
	root   *surface.Digest       // of one that was sealed when it was opened; else nil

	mapping sync.Mutex
	mem     []byte      // what is stored, once it was mapped
	mapped  atomic.Bool // mem is set, for good
	full    atomic.Bool // what is stored has all its pages, for good
	// last is the size of a surface that was seen to be sealed, plus one: what
	// the page says later does not change it.
	last atomic.Int64
}

// openDirect takes the descriptors that have come with the answer.
func (s *Surface) openDirect(c *source, opened control.SurfaceOpened) error {
	d := &direct{s: s, source: c, header: c.header}
	s.sources = []*source{c}
	err := d.take(opened)
	if err != nil {
		c.conn.Wire.Close()
		return fmt.Errorf("%s: %w", c.address, err)
	}
	s.direct = d
	return nil
}

func (d *direct) take(opened control.SurfaceOpened) (err error) {
	if d.file, err = d.source.conn.Files.Take(); err != nil {
		return err
	}
	page, err := d.source.conn.Files.Take()
	if err == nil {
		if d.complete(opened.State) {
			d.last.Store(d.header.Size + 1)
		} else {
			d.page, err = surface.OpenAvailability(page)
		}
		page.Close()
	}
	if err != nil {
		d.close()
	}
	return err
}

// complete reports whether a surface is in a state that does not change any more:
// its page, which says so too, is not worth mapping then.
func (d *direct) complete(st control.SurfaceState) bool {
	if !st.Sealed || st.Size < 0 || st.Size > surface.MaxSize {
		return false
	}
	if len(st.Root) == surface.DigestSize {
		d.root = (*surface.Digest)(st.Root)
	}
	n := d.header.Count()
	return n == 0 || len(st.Have) == 1 && st.Have[0] == control.ChunkRun{First: 0, Count: n}
}

func (d *direct) close() error {
	var err error
	if d.mapped.Load() {
		d.mapped.Store(false)
		if len(d.mem) > 0 {
			err = memfd.Unmap(d.mem)
		}
	}
	if d.page != nil {
		err = errors.Join(err, d.page.Close())
	}
	return errors.Join(err, d.file.Close())
}

// size returns the size so far, and whether it is final.
func (d *direct) size() (int64, bool) {
	if last := d.last.Load(); last > 0 {
		return last - 1, true
	}
	sealed := d.page.State() == surface.Sealed // then what follows is final
	size, _ := d.page.Size()
	size = min(max(size, 0), surface.MaxSize)
	if sealed {
		d.last.CompareAndSwap(0, size+1)
		return d.last.Load() - 1, true
	}
	return size, false
}

// sequence is the page's.
func (d *direct) sequence() uint32 {
	if d.page == nil {
		return 0
	}
	return d.page.Sequence()
}

func (d *direct) layout() surface.Manifest {
	m := d.header
	m.Size, _ = d.size()
	return m
}

// all maps what is stored of a surface that is sealed.
func (d *direct) all() ([]byte, error) {
	if d.mapped.Load() {
		return d.mem, nil
	}
	d.mapping.Lock()
	defer d.mapping.Unlock()
	if d.mapped.Load() {
		return d.mem, nil
	}
	m := d.layout()
	if n := m.StoredSize(); n > 0 {
		mem, err := memfd.MapRange(d.file, 0, n, false)
		if err != nil {
			return nil, err
		}
		d.mem = mem
	}
	d.mapped.Store(true)
	return d.mem, nil
}

// has reports whether chunk i is there, as a whole: the last one of a surface that
// is not sealed is not.
func (d *direct) has(i int64) bool {
	if d.page == nil {
		m := d.layout()
		return i >= 0 && i < m.Count()
	}
	if !d.page.Has(i) {
		return false
	}
	size, sealed := d.size()
	return sealed || i < size/d.header.Chunk
}

// await waits until chunk i is there, and reports whether there is such a chunk: a
// surface that is sealed may end before.
func (d *direct) await(ctx context.Context, i int64) (bool, error) {
	for {
		seen := d.sequence()
		if d.has(i) {
			return true, nil
		}
		if _, sealed := d.size(); sealed {
			if m := d.layout(); i >= m.Count() {
				return false, nil
			}
		}
		var err error
		switch d.page.State() {
		case surface.Failed:
			err = &wire.Error{Code: wire.PeerLost, Err: surface.ErrFailed}
		case surface.Revoked:
			err = &wire.Error{Code: wire.Revoked}
		default:
			err = d.waiting(ctx, func(ctx context.Context) error { return d.page.WaitChange(ctx, seen) })
		}
		if err != nil {
			return false, err
		}
	}
}

// awaitAll waits for chunks [first, end), or those of them that there are.
func (d *direct) awaitAll(ctx context.Context, first, end int64) error {
	if _, sealed := d.size(); sealed && d.whole() {
		return nil
	}
	for i := first; i < end; i++ {
		if there, err := d.await(ctx, i); !there || err != nil {
			return err
		}
	}
	return nil
}

// waiting calls wait with a context that ends with the connection too: who dies
// wakes nobody.
func (d *direct) waiting(ctx context.Context, wait func(context.Context) error) error {
	d.source.listen()
	both, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(d.s.ctx, cancel)
	defer stop()
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	watching.Go(func() {
		select {
		case <-d.source.gone:
			cancel()
		case <-both.Done():
		}
	})
	err := wait(both)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return &wire.Error{Code: wire.Canceled, Err: context.Cause(ctx)}
	case d.s.ctx.Err() != nil:
		return ErrClosed
	case both.Err() != nil:
		d.s.mu.Lock()
		defer d.s.mu.Unlock()
		return d.source.err
	}
	return err
}

// wait waits until the bytes of w are there.
func (d *direct) wait(ctx context.Context, w window) error {
	if err := d.inside(w); err != nil {
		return err
	}
	first, end := w.chunks(d.header.Chunk)
	if err := d.awaitAll(ctx, first, end); err != nil {
		return err
	}
	return d.inside(w)
}

// inside fails if it is known that w goes beyond the end.
func (d *direct) inside(w window) error {
	if size, sealed := d.size(); sealed {
		_, err := w.length(size)
		return err
	}
	return nil
}

// solid reports whether what is stored of m, which is sealed, has no holes: to read holes
// where they are mapped would make them take memory, for as long as anybody has the surface.
// It fails if the memory is other than the server said.
func (d *direct) solid(m *surface.Manifest) (bool, error) {
	size := m.StoredSize()
	if d.full.Load() || size == 0 {
		return true, nil
	}
	if err := memfd.CheckSealed(d.file, size); err != nil {
		return false, err
	}
	if !memfd.Solid(d.file, size) {
		return false, nil
	}
	d.full.Store(true)
	return true, nil
}

// stored returns what is stored of chunk i, which is there, in *buf if it has to be
// read.
func (d *direct) stored(m *surface.Manifest, i int64, buf *[]byte) ([]byte, error) {
	off, n := m.StoredRange(i)
	if n <= 0 {
		return nil, broken("chunk %d of a surface of %d bytes is there", i, m.Size)
	}
	if _, sealed := d.size(); sealed {
		solid, err := d.solid(m)
		if err != nil {
			return nil, err
		}
		if solid {
			mem, err := d.all()
			if err != nil {
				return nil, err
			}
			if off+n > int64(len(mem)) { // m is older
				return nil, broken("chunk %d of a surface of %d bytes is there", i, m.Size)
			}
			return mem[off : off+n : off+n], nil
		}
	}
	if int64(cap(*buf)) < n {
		*buf = make([]byte, n)
	}
	b := (*buf)[:n]
	if _, err := d.file.ReadAt(b, off); err != nil {
		return nil, err
	}
	return b, nil
}

// read reads p from off on. What lies beyond the end of a surface that is sealed
// while it waits is left out.
func (d *direct) read(ctx context.Context, p []byte, off int64) error {
	w := window{off: off, end: off + int64(len(p))}
	first, end := w.chunks(d.header.Chunk)
	if err := d.awaitAll(ctx, first, end); err != nil {
		return err
	}
	if d.header.Encrypted {
		return d.open(p, w)
	}
	if size, sealed := d.size(); sealed {
		m := d.layout()
		solid, err := d.solid(&m)
		if err != nil {
			return err
		}
		if solid {
			mem, err := d.all()
			if err != nil {
				return err
			}
			if off < int64(len(mem)) {
				memfd.Copy(p, mem[off:])
			}
			return nil
		}
		p = p[:min(int64(len(p)), max(0, size-off))]
	}
	_, err := d.file.ReadAt(p, off)
	return err
}

// open reads p of sealed chunks that are there.
func (d *direct) open(p []byte, w window) error {
	m := d.layout()
	var buf []byte
	first, end := m.ChunksOf(w.off, int64(len(p)))
	for i := first; i < end; i++ {
		content := d.s.cache.get(i)
		if content == nil {
			b, err := d.stored(&m, i, &buf)
			if err == nil {
				content, err = d.s.sealer.Open(nil, i, b)
			}
			if err != nil {
				return err
			}
			d.s.cache.put(i, content)
		}
		part, at := w.cut(i*m.Chunk, content)
		copy(p[at:], part)
	}
	return nil
}

// final waits until the surface is sealed.
func (d *direct) final(ctx context.Context) (int64, error) {
	for {
		seen := d.sequence()
		if size, sealed := d.size(); sealed {
			return size, nil
		}
		switch d.page.State() {
		case surface.Failed:
			return 0, &wire.Error{Code: wire.PeerLost, Err: surface.ErrFailed}
		case surface.Revoked:
			return 0, &wire.Error{Code: wire.Revoked}
		}
		if err := d.waiting(ctx, func(ctx context.Context) error { return d.page.WaitChange(ctx, seen) }); err != nil {
			return 0, err
		}
	}
}

// whole reports whether all chunks of a sealed surface are there. Of one that its
// server gathers from elsewhere some may be missing.
func (d *direct) whole() bool {
	if d.page == nil {
		return true
	}
	m := d.layout()
	runs := d.page.Runs(0, 1)
	return m.Count() == 0 || len(runs) == 1 && runs[0] == surface.Run{First: 0, Count: m.Count()}
}

// Direct reports whether the surface's own memory is mapped here.
func (s *Surface) Direct() bool { return s.direct != nil }

// Bytes returns the content of a surface that is Direct and sealed: the very
// pages that everybody has who maps it, which nobody can change any more. They must not be
// written to, nor be touched after Close. It fails with ErrNotDirect,
// ErrNotSealed, with surface.ErrMissing while the server that pulls instead has not
// gathered all of it, and, if what is stored is encrypted, errors.ErrUnsupported: ReadAt
// opens that.
func (s *Surface) Bytes() ([]byte, error) {
	w := window{open: true}
	switch d := s.direct; {
	case d == nil:
		return nil, s.failed("map", w, ErrNotDirect)
	case d.header.Encrypted:
		return nil, s.failed("map", w, fmt.Errorf("its memory is encrypted: %w", errors.ErrUnsupported))
	default:
		if _, sealed := d.size(); !sealed {
			return nil, s.failed("map", w, ErrNotSealed)
		}
		if !d.whole() {
			return nil, s.failed("map", w, surface.ErrMissing)
		}
		mem, err := d.all()
		return mem, s.failed("map", w, err)
	}
}
