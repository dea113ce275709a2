// SPDX-License-Identifier: Apache-2.0

package span

import (
	"context"

	"github.com/memspan/memspan/coherency"
	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/tier"
	"github.com/memspan/memspan/tier/disk"
)

// A Shadow is one shadow mapping's place in the span: while it is open, commits
// are remembered so that its flushes conflict by byte, not by block.
type Shadow struct {
	span     *Span
	id       uint64 // not 0
	writable bool
	onFree   func()
}

// OpenShadow notes a shadow mapping of bytes [off, off+n). onFree is called when
// the span goes, as by MapDirect.
func (s *Span) OpenShadow(off, n int64, writable bool, onFree func()) (*Shadow, error) {
	if err := s.checkRange(off, n); err != nil {
		return nil, s.fail("map", off, n, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.freed {
		return nil, s.fail("map", off, n, ErrFreed)
	}
	s.lastShadow++
	sh := &Shadow{span: s, id: s.lastShadow, writable: writable, onFree: onFree}
	if s.shadows == nil {
		s.shadows = make(map[*Shadow]struct{})
	}
	s.shadows[sh] = struct{}{}
	if writable {
		if s.writers == 0 {
			s.history = make(map[int]*history)
		}
		s.writers++
	}
	return sh, nil
}

// Close ends the mapping. It must be called once.
func (sh *Shadow) Close() {
	s := sh.span
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.shadows, sh)
	if sh.writable {
		if s.writers--; s.writers == 0 {
			s.history = nil
		}
	}
}

// Flush stores the byte runs of block b that the mapping's user changed since
// the version base, or AnyVersion: data holds their bytes, one run after the
// other. The runs are ascending and within the block. It fails with ErrConflict
// if anybody else has changed one of the same bytes since base; nothing is
// stored then. If more of the same flush follows this is no commit of the span
// yet: the last part is, or CountCommit.
func (sh *Shadow) Flush(ctx context.Context, b int, base uint64, runs []Run, data tier.Memory, more bool) (Committed, error) {
	s := sh.span
	if b < 0 || b >= s.Blocks() || len(runs) == 0 || int64(runs[len(runs)-1].end()) > s.blockLen(b) {
		return Committed{}, s.fail("flush", int64(b)*tier.BlockSize, 0, ErrRange)
	}
	start := int64(b)*tier.BlockSize + int64(runs[0].Offset)
	hull := int64(runs[len(runs)-1].end() - runs[0].Offset)
	done, err := s.flush(ctx, b, origin{base, sh.id, !more}, runs, data)
	return done, s.fail("flush", start, hull, err)
}

func (s *Span) flush(ctx context.Context, b int, from origin, runs []Run, data tier.Memory) (Committed, error) {
	if err := s.lockBlock(ctx, b, true); err != nil {
		return Committed{}, err
	}
	defer s.unlockBlock(b, true)
	a := s.writeAgent(b)
	if a == s.store.disk {
		return s.changeAt(ctx, b, a, from, runs, func(ctx context.Context, a coherency.Agent) error {
			return s.spaces[a].(*disk.Space).WriteRuns(ctx, b, diskRuns(runs), data.Slice(0, total(runs)))
		})
	}
	if a == hostAgent || len(runs) == 1 {
		return s.changeAt(ctx, b, a, from, runs, func(ctx context.Context, a coherency.Agent) error {
			return s.writeRuns(ctx, b, s.spaces[a], runs, data)
		})
	}
	// Another tier gets one write, which is done whole or not at all: the runs
	// are patched into a copy first.
	staging, err := s.store.Scratch(ctx)
	if err != nil {
		return Committed{}, err
	}
	defer s.store.PutScratch(staging)
	if err := s.fetch(ctx, b, a); err != nil {
		return Committed{}, err
	}
	first := int64(runs[0].Offset)
	hull := staging.Slice(0, int64(runs[len(runs)-1].end())-first)
	if err := s.spaces[a].Read(ctx, b, first, hull); err != nil {
		return Committed{}, err
	}
	src, dst := data.Bytes(), hull.Bytes()
	for _, r := range runs {
		memfd.Copy(dst[int64(r.Offset)-first:], src[:r.Length])
		src = src[r.Length:]
	}
	return s.changeAt(ctx, b, a, from, runs, func(ctx context.Context, a coherency.Agent) error {
		return s.spaces[a].Write(ctx, b, first, hull)
	})
}

func (s *Span) writeRuns(ctx context.Context, b int, space tier.Space, runs []Run, data tier.Memory) error {
	from := int64(0)
	for _, r := range runs {
		if err := space.Write(ctx, b, int64(r.Offset), data.Slice(from, int64(r.Length))); err != nil {
			return err
		}
		from += int64(r.Length)
	}
	return nil
}

// Versions yields the versions of the blocks that bytes [off, off+n) touch, in
// order.
func (s *Span) Versions(off, n int64, yield func(version uint64)) error {
	if err := s.checkRange(off, n); err != nil {
		return s.fail("versions", off, n, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.freed {
		return s.fail("versions", off, n, ErrFreed)
	}
	for b := off / tier.BlockSize; b*tier.BlockSize < off+n; b++ {
		yield(s.dir.Version(int(b)))
	}
	return nil
}
