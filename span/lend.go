// SPDX-License-Identifier: Apache-2.0

package span

import (
	"context"
	"slices"

	"github.com/memspan/memspan/tier"
)

// A loan is a reader that uses a block's memory for longer than a copy takes.
type loan struct{ recall func() }

// recall asks for the block back. The caller holds the span's mu.
func (l *blockLock) recall() {
	for _, lent := range l.loans {
		lent.recall()
	}
}

// Lend calls use with bytes [off, off+n) themselves, where Read would copy
// them. They do not change before use returns. When somebody waits to change
// them, or the span is freed, recall is called, once or more often: use must
// then return soon, whatever it waits for. Recall is called by whoever waits
// and must itself wait for nothing, nor call the span; it is not called after
// Lend has returned. Bytes that were read so are counted by CountLent.
//
// Lend returns false without calling use if the bytes cannot be lent: if they
// are of more than one block or not in RAM, if somebody is waiting for the
// block already, or if another process may store to them.
func (s *Span) Lend(ctx context.Context, off, n int64, recall func(), use func(p []byte)) (bool, error) {
	if err := s.checkRange(off, n); err != nil {
		return false, s.fail("read", off, n, err)
	}
	b, blockOff := int(off/tier.BlockSize), off%tier.BlockSize
	if n > tier.BlockSize-blockOff {
		return false, nil
	}
	if err := s.lockBlock(ctx, b, false); err != nil {
		return false, s.fail("read", off, n, err)
	}
	defer s.unlockBlock(b, false)
	lent := &loan{recall}
	if !s.lendBlock(b, lent) {
		return false, nil
	}
	defer s.takeBack(b, lent)
	s.used(hostAgent, b)
	m, err := s.host.Memory(b, blockOff, n)
	if err != nil {
		return false, s.fail("read", off, n, err)
	}
	use(m.Bytes())
	return true, nil
}

// lendBlock notes a loan of block b, whose lock the caller holds, if it can be
// lent.
func (s *Span) lendBlock(b int, lent *loan) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, err := s.source(b)
	l := s.busy[b]
	if err != nil || a != hostAgent || l.writers > 0 || s.freed || s.exposed(b) || s.host.Storable() {
		return false
	}
	l.loans = append(l.loans, lent)
	return true
}

func (s *Span) takeBack(b int, lent *loan) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.busy[b]
	l.loans = slices.DeleteFunc(l.loans, func(o *loan) bool { return o == lent })
}
