// SPDX-License-Identifier: Apache-2.0

package surface

import (
	"context"
	"fmt"
	"os"
)

const (
	inline = 64 << 10 // bytes that are hashed at once rather than by others
	batch  = 1 << 20  // bytes of small chunks that are one piece of work
)

// Append brings the next stored bytes. Each chunk is there for pullers as soon as
// it is whole and hashed. When ctx ends, or there is no room, what was
// brought stays, and the error does not say how much: fail the surface, or
// let [Exposure.Appended] tell where to go on.
func (e *Exposure) Append(ctx context.Context, p []byte) error {
	return e.failed("append to", e.append(ctx, p))
}

func (e *Exposure) append(ctx context.Context, p []byte) error {
	if err := e.begin(); err != nil {
		return err
	}
	defer e.done()
	e.writing.Lock()
	defer e.writing.Unlock()
	if err := e.open(); err != nil {
		return err
	}
	for len(p) > 0 {
		n := min(int64(len(p)), batch)
		if err := e.prepare(e.pos, n); err != nil {
			return err
		}
		if err := e.write(p[:n], e.pos); err != nil {
			return err
		}
		e.pos += n
		p = p[n:]
		if err := e.hash(ctx, e.pos/e.header.StoredChunk()); err != nil {
			return err
		}
	}
	return nil
}

// Appended returns the number of stored bytes that were brought.
func (e *Exposure) Appended() int64 {
	e.writing.Lock()
	defer e.writing.Unlock()
	return e.pos
}

// open fails unless bytes can be brought in order; e.writing is held.
func (e *Exposure) open() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.reason != nil:
		return e.reason
	case e.state != Open || e.replica != nil:
		return fmt.Errorf("%w: it is sealed", ErrState)
	}
	return nil
}

// prepare has room for the stored bytes [off, off+n), which follow those there are, and
// are stored next.
func (e *Exposure) prepare(off, n int64) error {
	end := off + n
	if end > e.mem.Limit() {
		if !e.known {
			return &RoomError{limitStream, end, e.mem.Limit()}
		}
		return fmt.Errorf("%w: %d bytes, and the surface was to store %d", ErrRange, end, e.mem.Limit())
	}
	if !e.known {
		if err := e.describe(chunks(end, e.header.StoredChunk())); err != nil {
			return err
		}
	}
	page := int64(os.Getpagesize())
	if ready := (end + page - 1) / page * page; ready > e.ready {
		if !e.prepaid {
			if err := e.charge(ready - e.ready); err != nil {
				return err
			}
		}
		e.backed(e.ready, ready-e.ready)
		e.ready = ready
	}
	if !e.known { // the file ends where its bytes do
		return e.mem.Grow(end)
	}
	return nil
}

// hash has the whole chunks before end hashed, and published.
func (e *Exposure) hash(ctx context.Context, end int64) error {
	chunk := e.header.StoredChunk()
	if !e.known && end > e.hashed {
		e.mu.Lock()
		e.header.Size = end * e.header.Chunk
		e.page.resize(e.header.Size, end)
		e.mu.Unlock()
	}
	for e.hashed < end {
		first, stop := e.hashed, min(end, e.hashed+max(1, batch/chunk))
		if (stop-first)*chunk <= inline {
			e.hashed = stop
			e.hashChunks(first, stop)
			continue
		}
		if err := e.store.slot(ctx); err != nil {
			return err
		}
		e.hashed = stop
		e.mu.Lock()
		e.holds++ // beside the operation's, which ends sooner
		e.mu.Unlock()
		e.store.ops.Add(1)
		e.hashing.Add(1)
		go func() { // Seal waits for it, and the store's Close
			e.hashChunks(first, stop)
			<-e.store.slots
			e.release() // before Seal returns, so that nothing holds what is sealed but who knows it
			e.hashing.Done()
			e.store.ops.Done()
		}()
	}
	return nil
}

func (e *Exposure) hashChunks(first, stop int64) {
	chunk := e.header.StoredChunk()
	digests := make([]Digest, 0, stop-first)
	for i := first; i < stop; i++ {
		digests = append(digests, Sum(e.mem.Bytes()[i*chunk:(i+1)*chunk]))
	}
	e.publish(first, digests...)
}

// Seal ends bringing: there is a last chunk, the memory can be changed by nobody any
// more, and the manifest is final. It fails with ErrState if bytes are missing. It is
// idempotent.
func (e *Exposure) Seal(ctx context.Context) (*Manifest, error) {
	m, err := e.seal(ctx)
	return m, e.failed("seal", err)
}

func (e *Exposure) seal(ctx context.Context) (*Manifest, error) {
	if err := e.begin(); err != nil {
		return nil, err
	}
	defer e.done()
	e.writing.Lock()
	defer e.writing.Unlock()
	if m := e.Manifest(); m != nil {
		return m, nil
	}
	if err := e.open(); err != nil {
		return nil, err
	}
	if e.known && e.pos != e.mem.Limit() {
		return nil, fmt.Errorf("%w: %d of %d bytes are missing", ErrState, e.mem.Limit()-e.pos, e.mem.Limit())
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err := e.sealLast(); err != nil {
		return nil, err
	}
	e.hashing.Wait()
	if err := e.freeze(); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.reason != nil {
		return nil, e.reason
	}
	return e.final(), nil
}

// final makes the manifest; e.mu is held, and all chunks are there.
func (e *Exposure) final() *Manifest {
	m := e.header
	m.Digests = e.digests
	e.manifest, e.root, e.state = &m, m.Root(), Sealed
	e.tell()
	return &m
}

// sealLast hashes the chunk that is not whole, if there is one.
func (e *Exposure) sealLast() error {
	chunk := e.header.StoredChunk()
	whole, rest := e.pos/chunk, e.pos%chunk
	if rest == 0 || e.hashed > whole {
		return nil
	}
	content := rest - (chunk - e.header.Chunk)
	if content <= 0 {
		return fmt.Errorf("%w: the last chunk has %d bytes, too few for a sealed one", ErrFormat, rest)
	}
	if !e.known {
		e.mu.Lock()
		e.header.Size = whole*e.header.Chunk + content
		e.page.resize(e.header.Size, whole+1)
		e.mu.Unlock()
	}
	e.hashed = whole + 1
	e.publish(whole, Sum(e.mem.Bytes()[whole*chunk:e.pos]))
	return nil
}
