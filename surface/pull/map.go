// SPDX-License-Identifier: Apache-2.0

package pull

import (
	"context"
	"errors"
	"fmt"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/surface"
)

// Map returns all that the ticket opens as a memory, once the surface is sealed and
// all there:
// the surface's own where that is on this machine, of which no byte is copied, else one
// that ToMemory fills. It is independent of the surface, which may be closed.
func (s *Surface) Map(ctx context.Context) (*Memory, error) {
	if s.direct == nil || s.direct.header.Encrypted {
		return s.ToMemory(ctx, surface.Range{})
	}
	m, err := s.direct.share(ctx)
	return m, s.failed("map", window{open: true}, err)
}

// share maps the surface's memory once more.
func (d *direct) share(ctx context.Context) (*Memory, error) {
	size, err := d.final(ctx)
	if err != nil {
		return nil, err
	}
	m := d.layout()
	if err := d.awaitAll(ctx, 0, m.Count()); err != nil {
		return nil, err
	}
	file, err := memfd.Duplicate(d.file)
	if err != nil {
		return nil, err
	}
	shared := &Memory{file: file}
	if size > 0 {
		if shared.mem, err = memfd.MapRange(file, 0, size, false); err != nil {
			return nil, errors.Join(err, file.Close())
		}
	}
	return shared, nil
}

// Populate maps all pages now, so that no access waits for one later. (Linux)
func (m *Memory) Populate() error {
	if err := memfd.Populate(m.mem); err != nil {
		return fmt.Errorf("populate %d bytes: %w", len(m.mem), err)
	}
	return nil
}

// Lock keeps all pages in RAM until Close. It fails where the system does not allow
// so many: RLIMIT_MEMLOCK. (Linux)
func (m *Memory) Lock() error { return memfd.Lock(m.mem) }
