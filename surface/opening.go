// SPDX-License-Identifier: Apache-2.0

package surface

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"
)

// A Request asks a store to open a surface.
type Request struct {
	Who            string   // asks, for limiting how often he may be wrong: an address, a user
	ID             ID       // of the surface
	Caveats        [][]byte // see Ticket.EncodedCaveats
	Proof          Proof    // see Ticket.Proof
	Nonce, Binding [32]byte // that the proof has to be made with
}

// An Opening is a puller's access to a surface. It does not keep the surface's
// memory: when the surface ends, that goes as soon as no method is under way that
// uses it. Its methods may be called concurrently.
type Opening struct {
	e           *Exposure
	restriction Restriction
	direct      sync.Once // counts it as such
	closing     sync.Once

	mu    sync.Mutex
	given []Range // of what is stored: what a read-once surface gave out; ascending, apart
}

// maxGiven bounds Opening.given: a puller reads in longer runs.
const maxGiven = 4096

// Open opens a surface for who proves to have a ticket of it. Without that it
// fails with ErrTicket, whether there is such a surface or not, or with ErrBusy if the
// same asker was wrong too often lately; with ErrFormat or ErrLimit if the caveats are
// none. Who proved it is told ErrExpired, ErrRevoked, ErrTaken, ErrLeft, ErrFailed or ErrClosed.
func (s *Store) Open(r Request) (*Opening, error) {
	o, err := s.open(r)
	if err != nil {
		return nil, fmt.Errorf("open surface %v: %w", r.ID, err)
	}
	return o, nil
}

func (s *Store) open(r Request) (*Opening, error) {
	s.mu.Lock()
	e, stone := s.live[r.ID], s.gone[r.ID]
	s.mu.Unlock()
	ticket, reason := &s.dummy, error(ErrTicket)
	switch {
	case e != nil:
		ticket, reason = &e.ticket, nil
	case stone.reason != nil:
		ticket, reason = &stone.ticket, stone.reason
	}
	restriction, err := ticket.Verify(r.Caveats, r.Proof, r.Nonce, r.Binding)
	if err != nil {
		// Whose proof is right is never kept waiting: others may share his address.
		if !s.tries.allowed(r.Who) {
			return nil, ErrBusy
		}
		s.tries.wrong(r.Who)
		return nil, err
	}
	if reason != nil {
		return nil, reason
	}
	o := &Opening{e: e, restriction: restriction}
	if err := o.valid(); err != nil {
		return nil, err
	}
	if err := e.enter(); err != nil {
		return nil, err
	}
	return o, nil
}

// enter counts an opening, unless the surface has ended or is somebody else's.
func (e *Exposure) enter() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.reason != nil:
		return e.reason
	case e.taker != nil:
		return ErrTaken
	}
	e.pulls.Add(1)
	e.pullers++
	return nil
}

// leave takes back an enter.
func (e *Exposure) leave(o *Opening) {
	e.mu.Lock()
	e.pullers--
	taken := e.taker == o
	e.mu.Unlock()
	switch {
	case taken:
		e.store.end(e, Revoked, ErrTaken)
	case e.replica != nil:
		e.store.end(e, Revoked, ErrLeft) // unless others have it open
	}
}

// valid fails when the surface's or the ticket's time is over. The surface may not have
// ended yet: that takes a timer.
func (o *Opening) valid() error {
	now := time.Now()
	for _, at := range []time.Time{o.e.header.Expires, o.restriction.Expires} {
		if !at.IsZero() && !now.Before(at) {
			return ErrExpired
		}
	}
	return nil
}

// Close gives the surface back: a read-once surface of which this opening has read
// ends, and so does a replica that nobody else has open. It waits for nothing, and is
// idempotent.
func (o *Opening) Close() {
	o.closing.Do(func() { o.e.leave(o) })
}

// ID returns the surface's id.
func (o *Opening) ID() ID { return o.e.header.ID }

// ReadOnce reports whether each byte is given out once.
func (o *Opening) ReadOnce() bool { return o.e.readOnce }

// Restriction returns what the ticket's caveats leave of the surface.
func (o *Opening) Restriction() Restriction { return o.restriction }

// Header returns the manifest as far as it is known: without digests, and of the size that is
// known of so far.
func (o *Opening) Header() Manifest {
	o.e.mu.Lock()
	defer o.e.mu.Unlock()
	return o.e.header
}

// Manifest returns the manifest, which is shared, or nil if it is not final.
func (o *Opening) Manifest() *Manifest { return o.e.Manifest() }

// Direct reports whether Files will do: not for read-once surfaces, nor for tickets
// that open a part, because memory is passed as a whole or not at all.
func (o *Opening) Direct() bool { return !o.e.readOnce && o.restriction.Whole() }

// Files calls pass with read-only descriptors of the memory, which holds the stored
// bytes, and of the availability page: see [OpenAvailability]. They are for passing to
// other processes, and valid until pass returns. What these map outlives everything,
// and cannot be revoked. It fails with ErrState if not Direct, with what ended the
// surface or the ticket, and as pass does.
func (o *Opening) Files(pass func(memory, availability *os.File) error) error {
	if err := o.hold(); err != nil {
		return o.e.failed("map", err)
	}
	defer o.e.release()
	if !o.Direct() {
		return o.e.failed("map", fmt.Errorf("%w: it is given by copy only", ErrState))
	}
	if err := o.e.mem.Share(); err != nil {
		return o.e.failed("map", err)
	}
	o.direct.Do(func() { o.e.directs.Add(1) })
	return pass(o.e.mem.File(), o.e.page.mem.File())
}

// hold keeps the memory until e.release, or fails if nothing may be read any more.
func (o *Opening) hold() error {
	if err := o.e.hold(); err != nil {
		return err
	}
	if err := o.valid(); err != nil {
		o.e.release()
		return err
	}
	return nil
}

// ReadStored calls use with the stored bytes [off, off+n), n at least 1, of which it is
// to be known that they are there: it fails with ErrMissing if they are not yet, with
// ErrRange if they are beyond the end or belong to no chunk that the ticket opens, with
// what ended the surface or the ticket, and as use does. Of a read-once surface it fails
// with ErrGiven if some of them were given out before, and with ErrTaken if another
// opening was the first to read. The slice is the surface's memory, but for ranges with
// holes: it is not to be written to, and valid until use returns.
func (o *Opening) ReadStored(off, n int64, use func(stored []byte) error) error {
	if err := o.hold(); err != nil {
		return o.e.failed("read", err)
	}
	defer o.e.release()
	b, err := o.readStored(off, n)
	if err != nil {
		return o.e.failed("read", err)
	}
	return use(b)
}

// readStored returns what is valid while the caller holds the memory.
func (o *Opening) readStored(off, n int64) ([]byte, error) {
	header := o.Header()
	if size := header.StoredSize(); off < 0 || n <= 0 || off > size || n > size-off {
		err := ErrRange
		if off >= 0 && n > 0 && !o.e.known && o.Manifest() == nil {
			err = ErrMissing
		}
		return nil, fmt.Errorf("%w: [%d, +%d) of %d stored bytes", err, off, n, size)
	}
	first, end := off/header.StoredChunk(), (off+n-1)/header.StoredChunk()+1
	if begin, stop := header.ChunksOf(o.restriction.Range.Offset, o.restriction.Range.Length); first < begin || end > stop {
		return nil, fmt.Errorf("%w: [%d, +%d), of chunks [%d, %d), and the ticket opens chunks [%d, %d)", ErrRange, off, n, first, end, begin, stop)
	}
	if o.e.page.next(first, end, false) != end {
		return nil, fmt.Errorf("%w: chunks of [%d, +%d)", ErrMissing, off, n)
	}
	if err := o.give(off, n); err != nil {
		return nil, err
	}
	o.e.given.Add(n)
	if !o.e.sparse(first, end) {
		return o.e.mem.Bytes()[off : off+n], nil
	}
	b := make([]byte, n)
	_, err := o.e.mem.ReadAt(b, off) // touching the mapping would fill the holes
	return b, err
}

// sparse reports whether chunks [first, end), which are there, have holes.
func (e *Exposure) sparse(first, end int64) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := first; i < end && e.holes != nil; i++ {
		if e.holes[i/64]>>(i%64)&1 == 1 {
			return true
		}
	}
	return false
}

// take makes a read-once surface this opening's, which is the first to read, or fails.
func (e *Exposure) take(o *Opening) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch e.taker {
	case nil:
		e.taker = o
	case o:
	default:
		return ErrTaken
	}
	return nil
}

// give notes that stored bytes [off, off+n) of a read-once surface are given out, or
// fails if some were before.
func (o *Opening) give(off, n int64) error {
	if !o.e.readOnce {
		return nil
	}
	if err := o.e.take(o); err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	begin, end := off, off+n
	at, _ := slices.BinarySearchFunc(o.given, off, func(r Range, off int64) int { return cmp.Compare(r.Offset+r.Length, off) })
	next := at // behind those that r touches
	for ; next < len(o.given) && o.given[next].Offset <= off+n; next++ {
		r := o.given[next]
		if r.Offset < off+n && r.Offset+r.Length > off {
			return fmt.Errorf("%w: some of [%d, +%d)", ErrGiven, off, n)
		}
		begin, end = min(begin, r.Offset), max(end, r.Offset+r.Length)
	}
	if at == next && len(o.given) == maxGiven {
		return fmt.Errorf("%w: a read-once surface read in more than %d parts", ErrLimit, maxGiven)
	}
	o.given = slices.Replace(o.given, at, next, Range{begin, end - begin})
	return nil
}

// Progress is what of a surface is there.
type Progress struct {
	Sequence uint32  // counts changes of the rest
	State    State   // Open or Sealed
	Size     int64   // bytes of content, as far as is known
	Count    int64   // chunks, as far as is known
	Root     *Digest // of the manifest, once it is sealed
}

// Progress returns what holds now, or what ended the surface or the ticket.
func (o *Opening) Progress() (Progress, error) {
	o.e.mu.Lock()
	defer o.e.mu.Unlock()
	return o.progress()
}

// progress is Progress with e.mu held.
func (o *Opening) progress() (Progress, error) {
	e := o.e
	err := e.reason
	if err == nil {
		err = o.valid()
	}
	if err != nil {
		return Progress{}, e.failed("follow", err)
	}
	p := Progress{Sequence: e.page.sequence.Load(), State: e.state, Size: e.header.Size, Count: e.header.Count()}
	if e.manifest != nil {
		root := e.root
		p.Root = &root
	}
	return p, nil
}

// Wait waits until the sequence is another than seen, which an earlier Progress
// had, and returns what holds then. It fails when ctx ends, and with what ended the
// surface or the ticket.
func (o *Opening) Wait(ctx context.Context, seen uint32) (Progress, error) {
	e := o.e
	if at := o.restriction.Expires; !at.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadlineCause(ctx, at, ErrExpired)
		defer cancel()
	}
	e.mu.Lock()
	whole := e.state == Sealed && e.have == e.header.Count()
	e.mu.Unlock()
	if !whole { // else he waits for its end, and for no chunk
		e.waiting.Add(1)
		defer e.waiting.Add(-1)
	}
	for {
		e.mu.Lock()
		p, err := o.progress()
		if err != nil || p.Sequence != seen {
			e.mu.Unlock()
			return p, err
		}
		if e.changed == nil {
			e.changed = make(chan struct{})
		}
		changed := e.changed
		e.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return p, e.failed("wait for", context.Cause(ctx))
		}
	}
}

// Runs returns the runs of chunks that are there from chunk from on, in order, at
// most limit, and whether there are more. It fails with what ended the surface or the
// ticket.
func (o *Opening) Runs(from int64, limit int) (runs []Run, more bool, err error) {
	if err := o.hold(); err != nil {
		return nil, false, o.e.failed("follow", err)
	}
	defer o.e.release()
	header := o.Header()
	runs, more = o.e.page.runs(from, header.Count(), limit)
	return runs, more, nil
}

// Digests appends those of chunks [first, first+n), all of which must be there: it fails
// with ErrMissing or ErrRange, and with what ended the surface or the ticket. They are
// final once a chunk is there.
func (o *Opening) Digests(b []byte, first, n int64) ([]byte, error) {
	if err := o.hold(); err != nil {
		return b, o.e.failed("digests of", err)
	}
	defer o.e.release()
	header := o.Header()
	count := header.Count()
	if first < 0 || n < 0 || first > count || n > count-first {
		return b, o.e.failed("digests of", fmt.Errorf("%w: chunks [%d, +%d) of %d", ErrRange, first, n, count))
	}
	if m := o.Manifest(); m != nil { // a replica knows more than it has
		return appendDigests(b, m.Digests[first:first+n]), nil
	}
	if o.e.page.next(first, first+n, false) != first+n {
		return b, o.e.failed("digests of", fmt.Errorf("%w: chunks of [%d, +%d)", ErrMissing, first, n))
	}
	o.e.mu.Lock()
	defer o.e.mu.Unlock()
	return appendDigests(b, o.e.digests[first:first+n]), nil
}

func appendDigests(b []byte, digests []Digest) []byte {
	for i := range digests {
		b = append(b, digests[i][:]...)
	}
	return b
}
