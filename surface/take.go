// SPDX-License-Identifier: Apache-2.0

package surface

import (
	"context"
	"fmt"
	"os"

	"github.com/memspan/memspan/internal/memfd"
)

// Take makes a surface of a memfd as it is, without copying it: one whose owner
// has sealed it against writing, shrinking and growing. Its size is Spec.Size,
// as it is stored, or more; if Spec.Size is -1 all of it. It is hashed before Take returns,
// and there is nothing more to do with the exposure. file stays the caller's.
func (s *Store) Take(ctx context.Context, spec Spec, file *os.File) (*Exposure, error) {
	e, err := s.take(ctx, spec, file)
	if err != nil {
		return nil, fmt.Errorf("expose memory %q: %w", spec.Name, err)
	}
	return e, nil
}

func (s *Store) take(ctx context.Context, spec Spec, file *os.File) (*Exposure, error) {
	if err := s.begin(); err != nil {
		return nil, err
	}
	defer s.ops.Done()
	e, err := s.newExposure(ctx, spec)
	if err != nil {
		return nil, err
	}
	if err := e.adopt(ctx, spec, file); err != nil {
		e.free()
		return nil, err
	}
	if err := s.add(e); err != nil {
		e.release()
		return nil, err
	}
	return e, nil
}

func (e *Exposure) adopt(ctx context.Context, spec Spec, file *os.File) (err error) {
	size, err := memfd.Size(file)
	if err != nil {
		return err
	}
	if err := e.reserve(size); err != nil {
		return err
	}
	if e.mem, err = memfd.Adopt(file); err != nil {
		if outOfFiles(err) || outOfMemory(err) {
			return e.noSpace(err, size, memfd.ReadLimits())
		}
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	if e.mem.Limit() != size { // which it cannot any more
		return ErrChanged
	}
	limit, chunk := e.mem.Limit(), e.header.StoredChunk()
	if spec.Size < 0 {
		e.header.Size = limit - chunks(limit, chunk)*(chunk-e.header.Chunk)
	}
	if e.header.Size < 0 || e.header.StoredSize() > limit || spec.Size < 0 && e.header.StoredSize() != limit {
		return fmt.Errorf("%w: memory of %d bytes for a surface of %d", ErrFormat, limit, e.header.Size)
	}
	resident, err := e.mem.Resident()
	if err != nil {
		return err
	}
	if err := e.charge(resident); err != nil {
		return err
	}
	e.mu.Lock()
	e.unbacked = 0
	e.mu.Unlock()
	e.store.room.backed(resident)
	if err := e.makePage(e.header.Count()); err != nil {
		return err
	}
	data, err := memfd.Data(e.mem.File(), e.header.StoredSize(), maxExtents)
	if err != nil {
		return err
	}
	e.setData(data)
	memory := e.mem.Bytes()
	err = e.eachChunk(ctx, func() stored {
		return func(off, end int64) ([]byte, error) { return memory[off:end], nil }
	})
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.final()
	return nil
}
