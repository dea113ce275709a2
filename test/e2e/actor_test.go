// SPDX-License-Identifier: Apache-2.0

//go:build linux

package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/memspan/memspan"
)

// A subject is a span that actors act on.
type subject struct {
	key   string // its name or id
	size  int
	safe  bool // what is answered as done survives all deaths of the test
	home  memspan.Tier
	saves bool // home survives them, and Sync brings all there
	one   bool // a flush is stored whole or not at all
}

func (s subject) blocks() int { return (s.size + block - 1) / block }

// extent returns where a block lies, and its length.
func (s subject) extent(b int) (off int64, n int) {
	return int64(b) * block, min(block, s.size-b*block)
}

// An actor is one client that does what its seed says, and records it.
type actor struct {
	id       int
	history  *history
	rand     *rand.Rand
	subjects []subject
	dial     func(context.Context) (*memspan.Client, error)
	closing  func() <-chan struct{}    // if set: see mortal
	suffers  func(subject, error) bool // whether the test may cause an error
	moves    bool                      // copies between tiers, too
	cuts     bool                      // its own link, too

	client *memspan.Client
	spans  []*memspan.Span
	views  []*view // its mappings, nil where there is none
	buf    [2 * block]byte
}

// A view is a shadow mapping of a whole span, and what it was when it was last
// in step.
type view struct {
	m    *memspan.Mapping
	wins bool // the last writer
	seen [][ncells]uint64
}

func newActor(h *history, id int, seed uint64, subjects []subject) *actor {
	return &actor{id: id, history: h, rand: rand.New(rand.NewPCG(seed, uint64(id))), subjects: subjects,
		suffers: func(subject, error) bool { return false }}
}

// gone reports whether err says that there is no connection.
func gone(err error) bool {
	return errors.Is(err, memspan.ErrPeerLost) || errors.Is(err, memspan.ErrClosed) || errors.Is(err, memspan.ErrStalled)
}

// outcomeOf says what an error means for a write.
func outcomeOf(err error) outcome {
	switch {
	case err == nil:
		return done
	case errors.Is(err, memspan.ErrDebt):
		return owed
	case gone(err), errors.Is(err, memspan.ErrCanceled):
		return unheard
	}
	return failed
}

// connect opens a connection and the spans, for as long as it takes.
func (a *actor) connect(ctx context.Context) error {
	a.leave()
	for {
		err := a.try(ctx)
		// A daemon that died may have left its port to another.
		again := gone(err) || errors.Is(err, memspan.ErrUnauthenticated)
		if err == nil || !again || ctx.Err() != nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Millisecond):
		}
	}
}

func (a *actor) try(ctx context.Context) (err error) {
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	spans := make([]*memspan.Span, len(a.subjects))
	for i, s := range a.subjects {
		if spans[i], err = c.Open(ctx, s.key); err != nil {
			c.Close()
			return err
		}
	}
	a.client, a.spans, a.views = c, spans, make([]*view, len(spans))
	return nil
}

// leave ends the connection, and with it the mappings.
func (a *actor) leave() {
	if a.client == nil {
		return
	}
	for i := range a.views {
		a.drop(context.Background(), i)
	}
	a.client.Close() // its link may be gone already
	a.client = nil
}

// drop gives up a mapping and what is stored there.
func (a *actor) drop(ctx context.Context, span int) {
	if v := a.views[span]; v != nil {
		v.m.Discard(ctx) // the link may be gone
		a.views[span] = nil
	}
}

// act does one thing. An error is one that nothing in the test explains.
func (a *actor) act(ctx context.Context) error {
	if a.closing != nil {
		if closed := a.closing(); closed != nil {
			a.leave()
			select {
			case <-closed:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	if a.client == nil {
		if err := a.connect(ctx); err != nil {
			return fmt.Errorf("connect: %w", err)
		}
	}
	span := a.rand.IntN(len(a.subjects))
	var err error
	switch p := a.rand.IntN(100); {
	case p < 35:
		err = a.read(ctx, span)
	case p < 70:
		err = a.write(ctx, span)
	case p < 90 || !a.moves:
		err = a.useView(ctx, span)
	default:
		err = a.move(ctx, span)
	}
	if gone(err) {
		a.leave()
	}
	if err != nil && !a.suffers(a.subjects[span], err) && !(a.cuts && gone(err)) {
		return err
	}
	return nil
}

// part chooses some cells of a block, often all.
func (a *actor) part() (from, to int) {
	if a.rand.IntN(2) == 0 {
		return 0, ncells
	}
	from = a.rand.IntN(ncells)
	return from, from + 1 + a.rand.IntN(ncells-from)
}

// read reads a part of one block.
func (a *actor) read(ctx context.Context, span int) error {
	from, to := a.part()
	loss, err := a.readPart(ctx, span, a.rand.IntN(a.subjects[span].blocks()), from, to)
	if loss && a.rand.IntN(2) == 0 {
		return a.accept(ctx, span)
	}
	return err
}

// readPart reads some cells of a block, and says if it heard that they are
// lost.
func (a *actor) readPart(ctx context.Context, span, b, from, to int) (loss bool, err error) {
	off, n := a.subjects[span].extent(b)
	edges := cells(n)
	do := action{register: register{span, b}, kind: reading, from: from, to: to}
	start := a.history.begin()
	_, err = a.spans[span].ReadAt(ctx, a.buf[edges[from]:edges[to]], off+int64(edges[from]))
	if errors.Is(err, memspan.ErrDataLoss) {
		a.history.end(a.id, start, do, answer{outcome: lost})
		return true, nil
	}
	if err != nil {
		return false, err // it says nothing
	}
	got := answer{outcome: done}
	if err := values(a.buf[:], off, edges, from, to, &got.values); err != nil {
		return false, fmt.Errorf("a read of %+v is torn: %w", do.register, err)
	}
	a.history.end(a.id, start, do, got)
	return false, nil
}

// readAll reads all that the subjects hold.
func (a *actor) readAll(ctx context.Context) error {
	if err := a.connect(ctx); err != nil {
		return err
	}
	for span, s := range a.subjects {
		for b := range s.blocks() {
			if _, err := a.readPart(ctx, span, b, 0, ncells); err != nil {
				return err
			}
		}
	}
	return nil
}

// values finds the values of some cells of a block, which lies in p.
func values(p []byte, off int64, edges [ncells + 1]int, from, to int, out *[ncells]uint64) (err error) {
	for i := from; i < to; i++ {
		if out[i], err = marked(p[edges[i]:edges[i+1]], off+int64(edges[i])); err != nil {
			return fmt.Errorf("cell %d: %w", i, err)
		}
	}
	return nil
}

// accept makes what survives of a span's lost blocks their contents.
func (a *actor) accept(ctx context.Context, span int) error {
	start := a.history.begin()
	_, err := a.spans[span].Accept(ctx)
	r := answer{outcome: outcomeOf(err), err: err}
	for b := range a.subjects[span].blocks() {
		a.history.end(a.id, start, action{register: register{span, b}, kind: accepting}, r)
	}
	return err
}

// write writes a part of a block or, at times, two blocks with one call.
func (a *actor) write(ctx context.Context, span int) error {
	s := a.subjects[span]
	n := 1
	if s.blocks() > 1 && a.rand.IntN(4) == 0 {
		n = 2
	}
	first := a.rand.IntN(s.blocks() - n + 1)
	from, to := a.part()
	if n > 1 {
		from, to = 0, ncells
	}
	at := func(b, cell int) int64 {
		off, n := s.extent(b)
		return off + int64(cells(n)[cell])
	}
	begin := at(first, from)
	p := a.buf[:at(first+n-1, to)-begin]
	var actions []action
	for b := first; b < first+n; b++ {
		do := action{register: register{span, b}, kind: writing, from: from, to: to, value: a.rand.Uint64(), safe: s.safe}
		mark(p[at(b, from)-begin:at(b, to)-begin], at(b, from), do.value)
		actions = append(actions, do)
	}
	if a.cuts && a.rand.IntN(16) == 0 {
		cut := make(chan struct{})
		go func() {
			defer close(cut)
			a.client.Close()
		}()
		defer func() { <-cut }()
	}
	start := a.history.begin()
	_, err := a.spans[span].WriteAt(ctx, p, begin)
	r := answer{outcome: outcomeOf(err), err: err}
	if r.outcome == failed && len(actions) > 1 {
		// Later parts may be on their way: see WriteAt. What is asked next over the
		// same connection comes after them.
		if _, err := a.spans[span].ReadAt(ctx, make([]byte, 8), 0); gone(err) {
			r.outcome = unheard
		}
	}
	for _, do := range actions {
		a.history.end(a.id, start, do, r)
	}
	return err
}

// useView maps a span, or brings its mapping up to date, stores there and
// flushes, or ends it.
func (a *actor) useView(ctx context.Context, span int) error {
	v := a.views[span]
	switch p := a.rand.IntN(8); {
	case v == nil:
		v = &view{wins: a.rand.IntN(3) == 0}
		mode := memspan.ReadWrite | memspan.Shadow
		if v.wins {
			mode |= memspan.LastWriterWins
		}
		return a.look(ctx, span, v, func() (err error) {
			v.m, err = a.spans[span].Map(ctx, 0, int64(a.subjects[span].size), mode)
			return err
		})
	case p == 0:
		a.views[span] = nil
		if err := v.m.Unmap(ctx); err != nil {
			v.m.Discard(ctx)
			return err
		}
		return nil
	case p < 3:
		return a.look(ctx, span, v, func() error { return v.m.Invalidate(ctx) })
	}
	return a.store(ctx, span, v)
}

// look takes in a whole span, and records it as a read of each block.
func (a *actor) look(ctx context.Context, span int, v *view, acquire func() error) error {
	a.views[span] = nil
	start := a.history.begin()
	if err := acquire(); err != nil {
		if v.m != nil {
			v.m.Discard(ctx)
		}
		return err // it says nothing, and who knows what the mapping holds
	}
	a.views[span] = v
	s := a.subjects[span]
	if err := v.see(s); err != nil {
		return err
	}
	for b := range v.seen {
		a.history.end(a.id, start, action{register: register{span, b}, kind: reading, to: ncells}, answer{outcome: done, values: v.seen[b]})
	}
	return nil
}

// see notes what the mapping of s holds.
func (v *view) see(s subject) error {
	v.seen = make([][ncells]uint64, s.blocks())
	for b := range v.seen {
		off, n := s.extent(b)
		if err := values(v.m.Bytes()[off:], off, cells(n), 0, ncells, &v.seen[b]); err != nil {
			return fmt.Errorf("block %d of %q is mapped torn: %w", b, s.key, err)
		}
	}
	return nil
}

// put stores what do writes.
func (v *view) put(s subject, do action) {
	off, n := s.extent(do.block)
	edges := cells(n)
	mark(v.m.Bytes()[off:][edges[do.from]:edges[do.to]], off+int64(edges[do.from]), do.value)
}

// store stores to some blocks of a mapping and flushes it.
func (a *actor) store(ctx context.Context, span int, v *view) error {
	s := a.subjects[span]
	var actions []action
	for b := range v.seen {
		if a.rand.IntN(2) == 0 {
			continue
		}
		from, to := a.part()
		if v.wins && slices.Contains(v.seen[b][from:to], 0) {
			continue // zeros have no place: see fresh
		}
		do := action{register: register{span, b}, kind: writing, from: from, to: to,
			value: a.fresh(v.seen[b][from:to]), based: !v.wins, base: v.seen[b], safe: s.safe}
		v.put(s, do)
		for i := from; i < to; i++ {
			v.seen[b][i] = do.value
		}
		actions = append(actions, do)
	}
	disputed, err := a.flush(ctx, v, actions)
	if err == nil && len(disputed) > 0 && a.rand.IntN(2) == 0 {
		// What is under our bytes now is not seen, so this flush is over anything.
		if err = v.m.Invalidate(ctx); err == nil {
			for i := range disputed {
				disputed[i].based = false
				v.put(s, disputed[i]) // where it was no change before, it may be one now
			}
			if err = v.see(s); err != nil {
				return err
			}
			disputed, err = a.flush(ctx, v, disputed)
		}
	}
	if err != nil || len(disputed) > 0 {
		a.drop(ctx, span)
	}
	if errors.Is(err, memspan.ErrDebt) {
		return nil
	}
	return err
}

// fresh returns a value none of whose bytes is that of an old one. A flush does
// not store bytes that are there already, and if the last writer wins they stay
// those of whoever wrote them in between: that would be a mixture, and right.
func (a *actor) fresh(old []uint64) uint64 {
	value := a.rand.Uint64()
	for shift := 0; shift < 64; shift += 8 {
		for slices.ContainsFunc(old, func(o uint64) bool { return byte(o>>shift) == byte(value>>shift) }) {
			value = value&^(0xff<<shift) | uint64(byte(value>>shift)+1)<<shift
		}
	}
	return value
}

// flush flushes what actions stored, and returns those that others' commits
// forbade, of which nothing is stored.
func (a *actor) flush(ctx context.Context, v *view, actions []action) (disputed []action, err error) {
	start := a.history.begin()
	_, err = v.m.Flush(ctx)
	conflicts, others := split(err)
	r := answer{outcome: done, err: err}
	for _, e := range others {
		// What holds for one block need not for another.
		if o := outcomeOf(e); r.outcome == done || o != owed {
			r.outcome = o
		}
	}
	for _, do := range actions {
		s := a.subjects[do.span]
		off, n := s.extent(do.block)
		if len(conflicts) > 0 && s.one || slices.ContainsFunc(conflicts, func(e *memspan.Error) bool { return e.Offset < off+int64(n) && off < e.Offset+e.Length }) {
			disputed = append(disputed, do)
		} else {
			a.history.end(a.id, start, do, r)
		}
	}
	if len(conflicts) > 0 && len(disputed) == 0 {
		return nil, fmt.Errorf("a conflict where nothing was stored: %w", err)
	}
	return disputed, errors.Join(others...)
}

// split parts the conflicts that are joined in err from the rest.
func split(err error) (conflicts []*memspan.Error, others []error) {
	e, ok := err.(*memspan.Error)
	joined, several := err.(interface{ Unwrap() []error })
	switch {
	case err == nil:
	case ok && e.Code == memspan.ErrConflict:
		conflicts = []*memspan.Error{e}
	case ok || !several:
		others = []error{err}
	default:
		for _, e := range joined.Unwrap() {
			c, o := split(e)
			conflicts, others = append(conflicts, c...), append(others, o...)
		}
	}
	return conflicts, others
}

// sync has all that a span holds brought to where it is safe.
func (a *actor) sync(ctx context.Context, span int) error {
	start := a.history.begin()
	_, err := a.spans[span].Sync(ctx)
	for b := range a.subjects[span].blocks() {
		if err != nil || !a.subjects[span].saves {
			break // who knows what is where
		}
		a.history.end(a.id, start, action{register: register{span, b}, kind: saving}, answer{outcome: done})
	}
	if errors.Is(err, memspan.ErrDataLoss) {
		return nil
	}
	return err
}

// move moves copies between tiers. That changes no contents.
func (a *actor) move(ctx context.Context, span int) (err error) {
	s := a.spans[span]
	tier := memspan.Tier(a.rand.IntN(3))
	switch a.rand.IntN(7) {
	case 0:
		_, err = s.Upload(ctx)
	case 1:
		_, err = s.Download(ctx)
	case 2:
		err = s.Release(ctx)
	case 3:
		_, err = s.Advise(ctx, memspan.Advice{Do: memspan.AdvisePrefetch, Tier: tier})
	case 4:
		if tier == a.subjects[span].home {
			return nil // asked for, that is no loss of ours
		}
		_, err = s.Advise(ctx, memspan.Advice{Do: memspan.AdviseEvict, Tier: tier})
	case 5:
		if tier == memspan.Disk && !a.subjects[span].one {
			return nil // it would be, from then on
		}
		_, err = s.Advise(ctx, memspan.Advice{Do: memspan.AdvisePrefer, Tier: tier})
	default:
		return a.sync(ctx, span)
	}
	for _, harmless := range []error{memspan.ErrConflict, memspan.ErrBusy, memspan.ErrPinned, memspan.ErrTierAbsent, memspan.ErrInvalid} {
		if errors.Is(err, harmless) {
			return nil
		}
	}
	return err
}
