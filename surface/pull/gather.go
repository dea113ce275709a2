// SPDX-License-Identifier: Apache-2.0

package pull

import (
	"context"
	"slices"
	"sync"

	"github.com/memspan/memspan/surface"
	"github.com/memspan/memspan/wire"
)

const (
	// fetchSize is how many stored bytes are asked for at a time, unless one
	// chunk has more.
	fetchSize = wire.MaxData
	// maxAsked is of how many sources the same bytes are asked at a time.
	maxAsked = 3
)

// A sink takes the chunks of a gathering, each once. Its methods may be called
// concurrently.
type sink interface {
	// put takes the content of chunk i, verified. The memory is the caller's again
	// afterwards.
	put(i int64, b []byte) error
	// hole takes chunk i, n zeros.
	hole(i, n int64) error
}

// A keeper takes what is stored of chunk i, once; the memory is the caller's again
// afterwards. It may be called concurrently.
type keeper func(i int64, c surface.Chunk) error

// A gathering brings chunks [first, end) of a surface into a sink, whichever
// source has them.
type gathering struct {
	s        *Surface
	sink     sink
	keep     keeper     // takes what is stored in place of the sink, if it is not nil
	first    int64      // a chunk
	whole    bool       // to the surface's end, and its root is verified
	progress sync.Mutex // held while Progress is called

	// Guarded by the surface's mu.
	end     int64 // of the chunks; -1: not known yet
	limit   int64 // chunks from here on are not asked for yet
	next    int64 // all before were handed out
	handed  bitset
	claimed bitset // given to the sink
	have    bitset // in the sink
	got     int64  // chunks in the sink
	bytes   int64  // of content in the sink
	pieces  []*piece
	putting int // workers in the sink
	over    bool
	err     error
}

// A piece is consecutive chunks that are asked for together.
type piece struct {
	g          *gathering
	first, end int64
	fetches    []*fetch
	asked      int
}

// A fetch is a piece that one source was asked for.
type fetch struct {
	piece  *piece
	source *source // nil: the chunks are zeros
	offset int64   // in what is stored
	buf    []byte
	left   int // bytes of buf that have not come
}

// fit is how many chunks [first, ...) of end may be asked for together.
func (g *gathering) fit(first, end int64) int64 {
	return min(end, first+max(1, fetchSize/g.s.header.StoredChunk()))
}

// assign finds what source c shall be asked for next, and notes that it is:
// nil if nothing, or nothing now.
func (s *Surface) assign(c *source) *fetch {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.err != nil {
		return nil
	}
	for _, g := range s.gatherings {
		if f := g.take(c); f != nil {
			return f
		}
	}
	if c.inflight > 1 {
		return nil
	}
	// This source has time. What another owes for longest may never come.
	for _, g := range s.gatherings {
		for _, p := range g.pieces {
			if p.asked < maxAsked && !p.of(c) && c.have.holds(p.first, p.end) {
				return p.fetch(c)
			}
		}
	}
	return nil
}

// take hands the first chunks out that nobody was asked for and c has.
func (g *gathering) take(c *source) *fetch {
	s := g.s
	end := min(s.usableLocked(), g.limit)
	if g.end >= 0 {
		end = min(end, g.end)
	}
	g.next = g.handed.nextClear(g.next)
	for i := g.next; i < end; i = g.handed.nextClear(i) {
		run := c.have.from(i)
		if run.first >= run.end || run.first >= end {
			return nil
		}
		if i = run.first; g.handed.has(i) {
			continue
		}
		zero := s.zeros.Zero(&s.header, i)
		stop, j := g.fit(i, min(run.end, end)), i+1
		for j < stop && !g.handed.has(j) && s.zeros.Zero(&s.header, j) == zero {
			j++
		}
		p := &piece{g: g, first: i, end: j}
		_, last := s.header.StoredRange(j - 1)
		frames := ((j-i-1)*s.header.StoredChunk() + last + wire.MaxData - 1) / wire.MaxData
		if !zero && c.inflight > c.window/2 && c.inflight+int(frames) > c.window {
			return nil
		}
		for k := i; k < j; k++ {
			g.handed.set(k)
		}
		g.pieces = append(g.pieces, p)
		if zero {
			f := &fetch{piece: p}
			p.fetches = append(p.fetches, f)
			return f
		}
		return p.fetch(c)
	}
	return nil
}

// of reports whether c is asked for the piece already, or nobody need be: it has
// come.
func (p *piece) of(c *source) bool {
	return slices.ContainsFunc(p.fetches, func(f *fetch) bool { return f.source == c || f.left == 0 })
}

// fetch notes that the piece is asked of c.
func (p *piece) fetch(c *source) *fetch {
	h := &c.s.header
	off, _ := h.StoredRange(p.first)
	at, n := h.StoredRange(p.end - 1)
	f := &fetch{piece: p, source: c, offset: off, buf: c.s.buffers.get(int(at + n - off))}
	f.left = len(f.buf)
	p.fetches = append(p.fetches, f)
	p.asked++
	c.fetches[f] = struct{}{}
	c.inflight += (len(f.buf) + wire.MaxData - 1) / wire.MaxData
	return f
}

// failedLocked says that the fetch's source will not bring it.
func (f *fetch) failedLocked() { f.endLocked() }

// endLocked takes the fetch from its piece, which is asked of others if chunks
// of it are still wanted and nobody else is asked.
func (f *fetch) endLocked() {
	p, g := f.piece, f.piece.g
	p.fetches = slices.DeleteFunc(p.fetches, func(other *fetch) bool { return other == f })
	missing := false
	for i := p.first; i < p.end; i++ {
		missing = missing || !g.have.has(i)
	}
	switch {
	case !missing:
	case len(p.fetches) > 0:
		return
	default:
		for i := p.first; i < p.end; i++ {
			if !g.claimed.has(i) {
				g.handed.clear(i)
				g.next = min(g.next, i)
			}
		}
	}
	g.pieces = slices.DeleteFunc(g.pieces, func(other *piece) bool { return other == p })
}

// check hands a fetch that is complete to the workers who verify it.
func (s *Surface) check(f *fetch) {
	select {
	case s.received <- f:
	case <-s.ctx.Done():
	}
}

// verify takes what was received until the surface is closed.
func (s *Surface) verify() {
	w := worker{s: s}
	for {
		select {
		case f := <-s.received:
			w.take(f)
		case <-s.ctx.Done():
			return
		}
	}
}

// A worker verifies chunks and gives them to sinks.
type worker struct {
	s     *Surface
	plain []byte
}

// take verifies the chunks of a fetch one by one and gives those to the sink
// that it lacks.
func (w *worker) take(f *fetch) {
	s, g := w.s, f.piece.g
	m := s.layout()
	rest := f.buf
	for i := f.piece.first; i < f.piece.end; i++ {
		if f.source == nil {
			if g.claim(i) {
				g.arrived(&m, i, g.hole(&m, i))
			}
			continue
		}
		_, n := m.StoredRange(i)
		var stored []byte
		stored, rest = rest[:n:n], rest[n:]
		if !g.wants(i, f.source) {
			continue
		}
		var chunk surface.Chunk
		if !s.options.Unverified || g.keep != nil {
			if chunk = surface.NewChunk(stored); chunk.Digest() != m.Digests[i] {
				s.caught(f.source, lying("chunk %d is not what was exposed: its digest differs", i))
				break
			}
		}
		f.source.prove()
		if !g.claim(i) {
			continue
		}
		if g.keep != nil {
			g.arrived(&m, i, g.keep(i, chunk))
		} else {
			g.arrived(&m, i, w.put(g, &m, i, stored))
		}
	}
	s.mu.Lock()
	f.endLocked()
	if f.source != nil {
		f.source.checking--
	}
	s.pokeLocked()
	s.mu.Unlock()
	if f.source != nil {
		s.buffers.put(f.buf)
	}
}

// prove notes that the source has sent a chunk as it is.
func (c *source) prove() {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.proven = true
}

// caught gives up whoever answers at the source's address, for good.
func (s *Surface) caught(liar *source, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.liars == nil {
		s.liars = make(map[string]bool)
	}
	s.liars[liar.address] = true
	for _, c := range s.sources {
		if c.address == liar.address {
			c.dropLocked(err)
		}
	}
}

// hole gives on a chunk that is zeros.
func (g *gathering) hole(m *surface.Manifest, i int64) error {
	_, n := m.ContentRange(i)
	if g.keep != nil { // which has no holes of its own
		return g.keep(i, surface.NewChunk(make([]byte, n)))
	}
	return g.sink.hole(i, n)
}

// put gives the content of one chunk to the sink.
func (w *worker) put(g *gathering, m *surface.Manifest, i int64, stored []byte) error {
	if !m.Encrypted {
		return g.sink.put(i, stored)
	}
	plain, err := w.s.sealer.Open(w.plain[:0], i, stored)
	if err != nil {
		return err
	}
	w.plain = plain
	return g.sink.put(i, plain)
}

// wants reports whether chunk i is worth verifying: the sink lacks it, or nothing
// else has shown yet what its source is.
func (g *gathering) wants(i int64, from *source) bool {
	g.s.mu.Lock()
	defer g.s.mu.Unlock()
	return !g.over && !g.claimed.has(i) || !from.proven
}

// claim says that the caller gives chunk i to the sink, if nobody has.
func (g *gathering) claim(i int64) bool {
	g.s.mu.Lock()
	defer g.s.mu.Unlock()
	if g.over || g.claimed.has(i) {
		return false
	}
	g.claimed.set(i)
	g.putting++
	return true
}

// arrived notes what became of a claimed chunk.
func (g *gathering) arrived(m *surface.Manifest, i int64, err error) {
	s := g.s
	s.mu.Lock()
	if err != nil {
		g.finishLocked(err)
	} else {
		_, n := m.ContentRange(i)
		g.have.set(i)
		g.got++
		g.bytes += n
	}
	s.mu.Unlock()
	if err == nil && s.options.Progress != nil {
		g.report()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	g.putting--
	g.completeLocked()
}

// report calls Progress.
func (g *gathering) report() {
	g.progress.Lock()
	defer g.progress.Unlock()
	g.s.mu.Lock()
	p := Progress{Done: g.bytes, Total: -1}
	if g.end >= 0 {
		from := g.first * g.s.header.Chunk
		p.Total = max(0, min(g.end*g.s.header.Chunk, g.s.header.Size)-from)
	}
	g.s.mu.Unlock()
	g.s.options.Progress(p)
}

// endsLocked says that the surface's end is known now.
func (g *gathering) endsLocked() {
	if count := g.s.header.Count(); g.end < 0 || g.end > count {
		g.end = max(count, g.first)
	}
	g.completeLocked()
}

// completeLocked ends the gathering if it has all.
func (g *gathering) completeLocked() {
	if g.end >= 0 && g.putting == 0 && g.got == g.end-g.first && (!g.whole || g.s.rooted) {
		g.finishLocked(nil)
	}
	if g.over && g.putting == 0 {
		g.s.notifyLocked()
	}
}

// finishLocked ends the gathering.
func (g *gathering) finishLocked(err error) {
	if g.over {
		return
	}
	g.over, g.err = true, err
	g.s.gatherings = slices.DeleteFunc(g.s.gatherings, func(other *gathering) bool { return other == g })
	g.s.notifyLocked()
}

// gather begins to bring chunks [first, end) into a sink or a keeper; end is -1 for all to
// the surface's end. Those in have, whose base is first, are there already.
// Wait must follow.
func (s *Surface) gather(sink sink, keep keeper, first, end int64, have bitset, limit int64) *gathering {
	g := &gathering{
		s: s, sink: sink, keep: keep, whole: end < 0,
		first: first, end: end, next: first, limit: limit,
		handed: have.clone(), claimed: have.clone(), have: have,
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		g.over, g.err = true, s.err
		return g
	}
	for i := first; i < have.end(); i++ {
		if have.has(i) && (end < 0 || i < end) {
			_, n := s.header.ContentRange(i)
			g.got, g.bytes = g.got+1, g.bytes+n
		}
	}
	s.gatherings = append(s.gatherings, g)
	if s.rooted {
		g.endsLocked()
	}
	s.pokeLocked()
	return g
}

// wait waits for the end of the gathering, or ends it when ctx ends. The sink is
// the caller's again.
func (g *gathering) wait(ctx context.Context) error {
	err := g.s.until(ctx, func() (bool, error) { return g.over, nil })
	g.s.mu.Lock()
	g.finishLocked(err)
	err = g.err
	for g.putting > 0 {
		changed := g.s.changed
		g.s.mu.Unlock()
		<-changed
		g.s.mu.Lock()
	}
	g.s.mu.Unlock()
	return err
}
