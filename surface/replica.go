// SPDX-License-Identifier: Apache-2.0

package surface

import (
	"context"
	"fmt"
)

// Replica makes a surface of somebody else's, whose chunks come in any order by
// Put, and which is served on from then on: to who has ticket, or one
// derived from it, and to nobody else. It ends when the last opening of it is closed.
// Chunks of zeros are there at once. The manifest is kept, and not to be changed.
//
// It fails with ErrExists if the store has it, with ErrCorrupt if the manifest is not the
// ticket's, with ErrExpired, and with a *RoomError.
func (s *Store) Replica(ctx context.Context, manifest *Manifest, ticket *Ticket) (*Exposure, error) {
	e, err := s.newReplica(ctx, manifest, ticket)
	if err != nil {
		return nil, fmt.Errorf("replica of surface %v: %w", manifest.ID, err)
	}
	return e, nil
}

func (s *Store) newReplica(ctx context.Context, m *Manifest, t *Ticket) (*Exposure, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err := m.check(); err != nil {
		return nil, err
	}
	root := m.Root()
	if t.ID != m.ID || int64(len(m.Digests)) != m.Count() || t.Root != nil && *t.Root != root {
		return nil, fmt.Errorf("%w: it is not the manifest of this ticket", ErrCorrupt)
	}
	if _, err := s.Lookup(m.ID); err == nil {
		return nil, ErrExists
	}
	e := &Exposure{
		store: s, known: true, holds: 1, state: Sealed, replica: m, manifest: m, root: root,
		ticket: Ticket{ID: t.ID, Secret: t.Secret, Caveats: t.Caveats},
		header: *m, claims: make(map[int64]chan struct{}),
	}
	e.header.Digests = nil
	e.life, e.die = context.WithCancelCause(context.Background())
	if err := (&Opening{e: e, restriction: t.Restriction()}).valid(); err != nil {
		return nil, err
	}
	count := m.Count()
	opens := t.Restriction().Range
	first, end := m.ChunksOf(opens.Offset, opens.Length)
	e.holes = make([]uint64, (count+63)/64)
	charge := int64(0)
	for i := range count {
		if s.zeros.Zero(m, i) {
			e.holes[i/64] |= 1 << (i % 64)
		} else if i >= first && i < end { // the others are not to be had
			_, n := m.StoredRange(i)
			charge += n
		}
	}
	if err := e.allocate(m.StoredSize(), charge); err != nil {
		return nil, err
	}
	e.mu.Lock()
	for i := range count {
		if e.holes[i/64]>>(i%64)&1 == 1 {
			e.page.set(i)
			e.have++
		}
	}
	e.tell()
	e.mu.Unlock()
	err := e.whole()
	if err == nil {
		err = s.add(e)
	}
	if err != nil {
		e.release()
		return nil, err
	}
	return e, nil
}

// Put brings chunk i of a replica, which is kept if it is the manifest's. It returns nil if
// the chunk is there, and waits while another Put brings it. It fails with ErrCorrupt if
// it is another chunk, with ErrRange, when ctx ends, and with what ended the surface.
func (e *Exposure) Put(ctx context.Context, i int64, c Chunk) error {
	return e.failed("put a chunk of", e.put(ctx, i, c))
}

func (e *Exposure) put(ctx context.Context, i int64, c Chunk) error {
	if e.replica == nil {
		return fmt.Errorf("%w: it is not a replica", ErrState)
	}
	if i < 0 || i >= e.replica.Count() {
		return fmt.Errorf("%w: chunk %d of %d", ErrRange, i, e.replica.Count())
	}
	off, n := e.replica.StoredRange(i)
	if int64(len(c.stored)) != n || c.digest != e.replica.Digests[i] {
		return fmt.Errorf("%w: chunk %d", ErrCorrupt, i)
	}
	if err := e.begin(); err != nil {
		return err
	}
	defer e.done()
	if there, err := e.claimChunk(ctx, i); there || err != nil {
		return err
	}
	err := e.write(c.stored, off)
	if err == nil {
		e.backed(off, n)
		e.publish(i, c.digest)
	}
	e.mu.Lock()
	close(e.claims[i])
	delete(e.claims, i)
	e.mu.Unlock()
	if err != nil {
		return err
	}
	return e.whole()
}

// claimChunk waits until nobody else brings chunk i; there: it is.
func (e *Exposure) claimChunk(ctx context.Context, i int64) (there bool, err error) {
	for {
		e.mu.Lock()
		claim := e.claims[i]
		there := e.page.has(i)
		if !there && claim == nil {
			e.claims[i] = make(chan struct{})
		}
		e.mu.Unlock()
		if there || claim == nil {
			return there, nil
		}
		select {
		case <-claim:
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
}

// whole freezes the memory of a replica that has all chunks.
func (e *Exposure) whole() error {
	e.mu.Lock()
	whole := e.have == e.replica.Count()
	e.mu.Unlock()
	if !whole {
		return nil
	}
	e.writing.Lock()
	defer e.writing.Unlock()
	return e.freeze()
}

// Has reports whether chunk i, of those there are, is there.
func (e *Exposure) Has(i int64) bool {
	if e.hold() != nil {
		return false
	}
	defer e.release()
	return e.page.has(i)
}
