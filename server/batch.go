// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"fmt"

	"github.com/memspan/memspan/span"
	"github.com/memspan/memspan/wire"
)

// A batch is a write or flush of several frames that becomes durable as a whole,
// with its last frame.
type batch struct {
	*span.Batch
	err error // why it will not; its remaining frames are told
}

// joinBatch returns the batch that a data frame, sent for a handle or a mapping,
// belongs to, or nil: then it is carried out by itself. It is called by whoever
// carries out the session's data frames, one at a time.
func (s *session) joinBatch(id uint64, h wire.Header, sp *span.Span, begin func() *span.Batch) *batch {
	if h.Flags&wire.FlagFirst != 0 {
		s.dropBatch(id) // of a write that the client gave up
		if h.Flags&wire.FlagMore != 0 && sp.Atomic() {
			b := &batch{Batch: begin()}
			if len(s.batches) >= maxBatches {
				s.dropOrphans()
			}
			if len(s.batches) >= maxBatches {
				b.err = &wire.Error{Code: wire.Limit, Span: sp.Label(), Message: fmt.Sprintf("%d writes of the session are half done: finish one", maxBatches)}
			}
			s.batches[id] = b
		}
	}
	return s.batches[id]
}

// maxBatches is how many writes and flushes of a session may be half done: each
// has up to a block in memory.
const maxBatches = 16

// dropOrphans drops batches whose handle or mapping was closed.
func (s *session) dropOrphans() {
	for id := range s.batches {
		s.mu.Lock()
		known := s.handles[id] != nil || s.mappings[id] != nil
		s.mu.Unlock()
		if !known {
			s.dropBatch(id)
		}
	}
}

func (s *session) dropBatch(id uint64) {
	if b := s.batches[id]; b != nil {
		delete(s.batches, id)
		b.Discard()
	}
}

// carryBatch adds a frame's piece to a batch, and commits it if the piece is
// the last. Staged says that the piece waits for the last one.
func (s *session) carryBatch(ctx context.Context, id uint64, h wire.Header, b *batch, add func(*span.Batch) error) (done span.Committed, staged bool, err error) {
	more := h.Flags&wire.FlagMore != 0
	if b.err == nil {
		if b.err = add(b.Batch); b.err != nil {
			b.Discard() // now: it holds staging memory
		}
	}
	if more {
		return span.Committed{}, true, b.err
	}
	delete(s.batches, id)
	if b.err != nil {
		return span.Committed{}, false, b.err
	}
	done, err = b.Commit(ctx)
	return done, false, err
}
