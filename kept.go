// SPDX-License-Identifier: Apache-2.0

package memspan

import (
	"errors"
	"os"
	"slices"
	"sync"

	"github.com/memspan/memspan/mapping"
)

// keptMost is how many direct maps a client keeps. They take address space and
// page tables; the pages are the span's.
const keptMost = 8

// A keeper has the direct maps of mappings that have ended, for those who map
// the same bytes again: the processor finds the pages in its tables then, while
// a new map meets each of them by a fault.
type keeper struct {
	mu     sync.Mutex // guards what follows
	maps   []kept     // longest kept first
	closed bool
}

type kept struct {
	span   *Span
	direct *mapping.Direct
}

// take returns a map of bytes [off, off+n) of f, which it takes over: one that
// was kept, or a new one.
func (k *keeper) take(s *Span, f *os.File, size, off, n int64, writable bool) (*mapping.Direct, error) {
	k.mu.Lock()
	i := slices.IndexFunc(k.maps, func(m kept) bool { return m.span == s && m.direct.Maps(f, off, n, writable) })
	if i < 0 {
		k.mu.Unlock()
		return mapping.NewDirect(f, size, off, n, writable)
	}
	d := k.maps[i].direct
	k.maps = slices.Delete(k.maps, i, i+1)
	k.mu.Unlock()
	return d, f.Close()
}

// keep takes over the map of a mapping that has ended.
func (k *keeper) keep(s *Span, d *mapping.Direct) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed || s.usable() != nil {
		return d.Close()
	}
	k.maps = append(k.maps, kept{s, d})
	if len(k.maps) <= keptMost {
		return nil
	}
	oldest := k.maps[0].direct
	k.maps = slices.Delete(k.maps, 0, 1)
	return oldest.Close()
}

// drop gives up what is kept of a span, whose handle is of no more use, or of
// all if s is nil, for good.
func (k *keeper) drop(s *Span) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.closed = k.closed || s == nil
	var errs []error
	k.maps = slices.DeleteFunc(k.maps, func(m kept) bool {
		if s != nil && m.span != s {
			return false
		}
		errs = append(errs, m.direct.Close())
		return true
	})
	return errors.Join(errs...)
}
