// SPDX-License-Identifier: Apache-2.0

package mapping

import (
	"fmt"
	"os"
	"sync"

	"github.com/memspan/memspan/internal/memfd"
)

// A Direct is a mapping of the very pages that the daemon holds: no bytes
// move, and stores are visible at once to all who map them. Its methods may be
// called concurrently; Close must come last.
type Direct struct {
	mem   []byte // whole pages
	bytes []byte

	file     os.FileInfo // what is mapped
	off      int64
	writable bool

	closeOnce sync.Once
	closeErr  error
}

// NewDirect maps bytes [off, off+n) of f, a memfd of at least size bytes that
// came from the daemon. It refuses one that is not sealed against shrinking,
// whose owner could raise SIGBUS here, and one that is shorter than size. f is
// closed in every case: the mapping does not need it. If writable is false,
// storing to the mapping is a fault. On systems other than Linux NewDirect
// fails with errors.ErrUnsupported.
func NewDirect(f *os.File, size int64, off, n int64, writable bool) (*Direct, error) {
	defer f.Close()
	if off < 0 || n <= 0 || off > size || n > size-off {
		return nil, fmt.Errorf("mapping: direct map of [%d, +%d) in a span of %d bytes: not a range of it", off, n, size)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("mapping: direct map: %w", err)
	}
	if info.Size() < size {
		return nil, fmt.Errorf("mapping: direct map: the descriptor holds %d bytes, the span has %d", info.Size(), size)
	}
	mem, err := memfd.MapRange(f, off, n, writable)
	if err != nil {
		return nil, fmt.Errorf("mapping: direct map of [%d, +%d): %w", off, n, err)
	}
	lead := off % pageSize
	return &Direct{mem: mem, bytes: mem[lead : lead+n : lead+n], file: info, off: off, writable: writable}, nil
}

// Maps reports whether d maps just what NewDirect would map with these
// arguments, so that d can serve in its place. f stays open.
func (d *Direct) Maps(f *os.File, off, n int64, writable bool) bool {
	if d.off != off || int64(len(d.bytes)) != n || d.writable != writable {
		return false
	}
	info, err := f.Stat()
	return err == nil && os.SameFile(info, d.file)
}

// Bytes returns exactly the mapped range. It must not be touched after Close.
func (d *Direct) Bytes() []byte { return d.bytes }

// Close unmaps the range; what was stored stays. Close is idempotent.
func (d *Direct) Close() error {
	d.closeOnce.Do(func() { d.closeErr = memfd.Unmap(d.mem) })
	return d.closeErr
}
