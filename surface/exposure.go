// SPDX-License-Identifier: Apache-2.0

package surface

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/memspan/memspan/internal/memfd"
)

// A Spec says what surface to make.
type Spec struct {
	Name        string    // see Manifest
	ContentType string    // see Manifest
	Size        int64     // bytes of content; -1: not known yet
	Chunk       int64     // see Manifest; 0: DefaultChunk
	Encrypted   bool      // what is brought are sealed chunks; the store never has their key
	Expires     time.Time // zero: never
	ReadOnce    bool      // for one puller, who gets each byte once, and by copy
	Sparse      bool      // only what holds data takes room, when it comes, and not all of Size at once
}

// An Exposure is a surface that a store keeps, from its exposer's side.
//
// Its methods may be called concurrently; Append, CopyFile, CopyFrom and Seal
// take turns. Once the surface has ended (Fail, Revoke, its expiry, the store's
// Close) those that bring bytes fail with what ended it.
type Exposure struct {
	store     *Store
	ticket    Ticket // the first one: it opens all; of a replica the one it is gathered by
	readOnce  bool
	known     bool      // the size is
	prepaid   bool      // room for all of it was taken at once
	described int64     // bytes of room for digests; as mem, or guarded by writing
	reserved  int64     // bytes of address space; as mem
	replica   *Manifest // whose chunks come in any order; nil: this is no replica

	mem  *memfd.Published
	page *page

	copied, given  atomic.Int64 // bytes
	pulls, directs atomic.Int64
	waiting        atomic.Int32 // now

	life context.Context // canceled when it ends
	die  context.CancelCauseFunc

	writing sync.Mutex // held by who brings bytes in order, and to freeze the memory; guards what follows
	pos     int64      // stored bytes so far
	hashed  int64      // chunks whose hashing was begun
	ready   int64      // bytes that have their pages
	hashing sync.WaitGroup

	mu       sync.Mutex // guards what follows; taken after writing
	header   Manifest   // but for its size immutable, and may be read without; without digests
	state    State
	reason   error                   // why it ended; nil while it has not
	manifest *Manifest               // once it is sealed
	root     Digest                  // its root; immutable from then on
	digests  []Digest                // by chunk; valid where the page has the chunk
	have     int64                   // chunks that are there
	changed  chan struct{}           // closed at the next change; nil if nobody waits
	holds    int                     // the store until it has ended, and operations: the last to let go frees the memory
	pullers  int                     // openings now
	charged  int64                   // bytes of the store's room
	unbacked int64                   // of them: without pages
	data     [][2]int64              // where the source had data, if sparse
	holes    []uint64                // bitmap: chunks not all of which is data; nil if none
	taker    *Opening                // of a read-once surface: the one that has read
	claims   map[int64]chan struct{} // replica: chunks being stored; closed when they are not any more
}

func newSecret() (s Secret) {
	rand.Read(s[:]) // never fails
	return s
}

// Create makes a surface whose bytes are still to come. Pullers can open it at
// once. It fails, before it takes any memory, with a *RoomError that names the limit
// that forbids it, and with ErrFormat if spec makes no sense.
func (s *Store) Create(ctx context.Context, spec Spec) (*Exposure, error) {
	e, err := s.create(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("expose %q: %w", spec.Name, err)
	}
	return e, nil
}

func (s *Store) create(ctx context.Context, spec Spec) (*Exposure, error) {
	e, err := s.newExposure(ctx, spec)
	if err != nil {
		return nil, err
	}
	limit, charge := e.header.StoredSize(), int64(0)
	switch {
	case spec.Size < 0:
		e.header.Size, e.known = 0, false
		limit = min(s.room.left(), maxStream)
		limits := memfd.ReadLimits()
		if limits.File > 0 {
			limit = min(limit, limits.File)
		}
		if limits.AddressSpace > 0 { // it is mapped twice, and is not alone
			limit = min(limit, limits.AddressSpace/4)
		}
	case !spec.Sparse:
		charge, e.prepaid = limit, true
	}
	if err := e.allocate(limit, charge); err != nil {
		return nil, err
	}
	if err := s.add(e); err != nil {
		e.release()
		return nil, err
	}
	return e, nil
}

// newExposure returns an exposure as spec wants it, without memory.
func (s *Store) newExposure(ctx context.Context, spec Spec) (*Exposure, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	id := NewID()
	e := &Exposure{
		store: s, readOnce: spec.ReadOnce, known: true, holds: 1, state: Open,
		ticket: Ticket{ID: id, Secret: newSecret()},
		header: Manifest{
			ID: id, Name: spec.Name, ContentType: spec.ContentType, Size: max(spec.Size, 0), Chunk: spec.Chunk,
			Encrypted: spec.Encrypted, Created: time.Now().Truncate(time.Millisecond).UTC(),
		},
	}
	e.life, e.die = context.WithCancelCause(context.Background())
	if spec.Chunk == 0 {
		e.header.Chunk = DefaultChunk
	}
	if !spec.Expires.IsZero() {
		e.header.Expires = spec.Expires.Truncate(time.Millisecond).UTC()
		if !e.header.Expires.After(e.header.Created) {
			return nil, fmt.Errorf("it would expire at %v: %w", spec.Expires, ErrExpired)
		}
	}
	if spec.Size < -1 {
		return nil, fmt.Errorf("size %d: %w", spec.Size, ErrFormat)
	}
	return e, e.header.check()
}

// allocate makes the memory for limit stored bytes, and takes room for charge bytes.
func (e *Exposure) allocate(limit, charge int64) (err error) {
	limits := memfd.ReadLimits()
	if limits.File > 0 && limit > limits.File {
		return &RoomError{limitFile, limit, limits.File}
	}
	if limit > maxMapped {
		return &RoomError{limitOne, limit, maxMapped}
	}
	defer func() {
		if err != nil {
			e.free()
		}
	}()
	if err := e.charge(charge); err != nil {
		return err
	}
	if err := e.reserve(2 * limit); err != nil {
		return err
	}
	if e.mem, err = memfd.Publish("surface:"+e.header.Name, limit); err != nil {
		return e.noSpace(err, 2*limit, limits)
	}
	if e.known {
		if err = e.mem.Grow(limit); err == nil {
			err = e.mem.Fix()
		}
		if err != nil {
			return err
		}
	}
	return e.makePage(chunks(limit, e.header.StoredChunk()))
}

// reserve has n bytes of address space for the memory, and no more.
func (e *Exposure) reserve(n int64) error {
	err := e.store.room.reserve(n - e.reserved)
	if err == nil {
		e.reserved = n
	}
	return err
}

// freeze ends writing to the memory; e.writing is held.
func (e *Exposure) freeze() error {
	if err := e.mem.Freeze(); err != nil {
		return err
	}
	return e.reserve(e.mem.Limit())
}

func (e *Exposure) makePage(count int64) (err error) {
	if e.known {
		if err := e.describe(count); err != nil {
			return err
		}
	}
	if e.known && e.replica == nil {
		e.digests = make([]Digest, count)
	}
	if e.page, err = newPage("availability:"+e.header.Name, e.header.Chunk, count); err != nil {
		return e.noSpace(err, bitmapSize(count), memfd.ReadLimits())
	}
	if e.known {
		e.page.resize(e.header.Size, count)
	}
	return nil
}

// describe takes room for the digests of the first count chunks: of holes in small
// chunks they are most of what these take.
func (e *Exposure) describe(count int64) error {
	n := count*DigestSize - e.described
	if n <= 0 {
		return nil
	}
	if err := e.store.room.take(n); err != nil {
		return err
	}
	e.store.room.backed(n)
	e.described += n
	return nil
}

// noSpace names the limit that made a mapping of need bytes fail, if one did.
func (e *Exposure) noSpace(err error, need int64, limits memfd.Limits) error {
	if outOfFiles(err) {
		return fmt.Errorf("%w: %w", ErrLimit, err)
	}
	if !outOfMemory(err) {
		return err
	}
	return fmt.Errorf("%w: %w", &RoomError{limitSpace, need, limits.AddressSpace}, err)
}

// charge takes n bytes of the store's room.
func (e *Exposure) charge(n int64) error {
	if err := e.store.room.take(n); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.charged += n
	e.unbacked += n
	return nil
}

// refund gives back n bytes of the store's room that were charged and got no pages.
func (e *Exposure) refund(n int64) {
	e.mu.Lock()
	e.charged -= n
	e.unbacked -= n
	e.mu.Unlock()
	e.store.room.give(n, n)
}

// write stores p at off, where room was charged for its pages.
func (e *Exposure) write(p []byte, off int64) error {
	if _, err := e.mem.WriteAt(p, off); err != nil {
		if outOfMemory(err) {
			return fmt.Errorf("%w: %w", &RoomError{limitSystem, int64(len(p)), 0}, err)
		}
		return err
	}
	e.copied.Add(int64(len(p)))
	return nil
}

// backed says that [off, off+n), which were charged, have their pages.
func (e *Exposure) backed(off, n int64) {
	page := int64(os.Getpagesize())
	n = (off+n+page-1)/page*page - off/page*page
	e.mu.Lock()
	n = min(n, e.unbacked) // two ranges may share a page
	e.unbacked -= n
	e.mu.Unlock()
	e.store.room.backed(n)
}

// hold keeps the memory while an operation is under way; release ends that.
func (e *Exposure) hold() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.reason != nil {
		return e.reason
	}
	e.holds++
	return nil
}

func (e *Exposure) release() {
	e.mu.Lock()
	e.holds--
	last := e.holds == 0
	e.mu.Unlock()
	if last {
		e.free()
	}
}

func (e *Exposure) free() {
	var errs []error
	if e.mem != nil {
		errs = append(errs, e.mem.Close())
	}
	if e.page != nil {
		errs = append(errs, e.page.close())
	}
	if err := errors.Join(errs...); err != nil {
		e.store.log.Error("surface: giving memory back failed", "surface", e.header.ID, "error", err)
	}
	e.mu.Lock()
	charged, unbacked := e.charged, e.unbacked
	e.charged, e.unbacked = 0, 0
	e.mu.Unlock()
	e.store.room.give(charged+e.described, unbacked)
	e.described = 0
	_ = e.reserve(0) // less than before
}

// begin begins an operation that brings bytes; the caller calls done.
func (e *Exposure) begin() error {
	if err := e.store.begin(); err != nil {
		return err
	}
	if err := e.hold(); err != nil {
		e.store.ops.Done()
		return err
	}
	return nil
}

func (e *Exposure) done() {
	e.release()
	e.store.ops.Done()
}

// end says why there is nothing more to come; false: it had ended before, or does
// not for this reason. The store's hold is the caller's to release.
func (e *Exposure) end(state State, reason error) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.reason != nil:
		return false
	case state == Failed && e.state == Sealed && e.have == e.header.Count():
		return false
	case reason == ErrLeft && e.pullers > 0:
		return false
	}
	e.state, e.reason = state, reason
	e.tell()
	e.die(reason)
	return true
}

// ended returns why it did, or nil.
func (e *Exposure) ended() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.reason
}

// stopped returns why there is no use in going on: the surface has ended, or, before
// the store knows of it, the store was closed.
func (e *Exposure) stopped() error {
	select {
	case <-e.store.stop:
		return ErrClosed
	default:
		return e.ended()
	}
}

// tell tells who waits that something changed; e.mu is held, and the memory too.
func (e *Exposure) tell() {
	e.page.state.Store(uint32(e.state))
	e.page.changed()
	if e.changed != nil {
		close(e.changed)
		e.changed = nil
	}
}

// publish makes the chunks from first on, of these digests, available.
func (e *Exposure) publish(first int64, digests ...Digest) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if end := first + int64(len(digests)); e.replica == nil {
		for int64(len(e.digests)) < end { // of a size that is not known
			e.digests = append(e.digests, Digest{})
		}
		copy(e.digests[first:end], digests)
	}
	for i := range digests {
		if i := first + int64(i); !e.page.has(i) {
			e.page.set(i)
			e.have++
		}
	}
	e.tell()
}

// Fail ends a surface that is not finished: who waits for chunks, and who opens it
// from now on, is told ErrFailed and err. It does nothing to one that is
// sealed and whole, or has ended.
func (e *Exposure) Fail(err error) {
	e.store.end(e, Failed, fmt.Errorf("%w: %w", ErrFailed, err))
}

// Context returns a context that is canceled when the surface ends; the cause says why.
func (e *Exposure) Context() context.Context { return e.life }

func (e *Exposure) failed(op string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s surface %v: %w", op, e.header.ID, err)
}

// ID returns the surface's id.
func (e *Exposure) ID() ID { return e.header.ID }

// String names the surface.
func (e *Exposure) String() string { return "surface " + e.header.ID.String() }

// Ticket returns a ticket that opens the surface, without addresses and key. It
// has the manifest's root once the surface is sealed.
func (e *Exposure) Ticket() *Ticket {
	t, err := e.ticket.Derive() // a copy
	if err != nil {
		panic(err) // it has no more caveats than before
	}
	if e.Manifest() != nil {
		root := e.root
		t.Root = &root
	}
	return t
}

// Manifest returns the manifest, which is shared, or nil if it is not final.
func (e *Exposure) Manifest() *Manifest {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.manifest
}

// A Stat describes a surface.
type Stat struct {
	Manifest       // without digests; Size as far as it is known
	State    State // Open or Sealed; Failed if it did lately
	Reason   error // why it failed
	Chunks   int64 // so far
	Have     int64 // of them: there
	Replica  bool  // gathered from other stores
	ReadOnce bool  // see Spec
	Pullers  int   // that have it open
	Waiting  int   // of them: that wait for chunks
	Pulls    int64 // openings since it was made
	Direct   int64 // of them: that got the memory itself
	Given    int64 // bytes that were read
	Copied   int64 // bytes that exposing took copying
	Memory   int64 // bytes of RAM
}

// Stat returns what holds now.
func (e *Exposure) Stat() Stat {
	e.mu.Lock()
	defer e.mu.Unlock()
	st := Stat{
		Manifest: e.header, State: e.state, Have: e.have, Replica: e.replica != nil, ReadOnce: e.readOnce,
		Pullers: e.pullers, Waiting: int(e.waiting.Load()), Pulls: e.pulls.Load(),
		Direct: e.directs.Load(), Given: e.given.Load(), Copied: e.copied.Load(),
	}
	st.Chunks = st.Count()
	if st.State == Failed {
		st.Reason = e.reason
	}
	if e.holds > 0 {
		if n, err := e.mem.Resident(); err == nil {
			st.Memory = n
		}
	}
	return st
}
