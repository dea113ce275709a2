// SPDX-License-Identifier: Apache-2.0

package span

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sync/errgroup"

	"github.com/memspan/memspan/coherency"
	"github.com/memspan/memspan/tier"
)

// Compose stores a new version of all bytes of the span: f is called for each
// block, with its offset in the span and memory to fill, which it must fill
// whole. Where the block lives in RAM that memory is the block's own, so that the
// bytes are copied once. f is called concurrently, unless the span is Atomic; its
// first error ends it. The block concerned is lost then, and others are stored:
// Compose is for spans that nobody can see yet, which are freed if it fails.
func (s *Span) Compose(ctx context.Context, f func(off int64, p []byte) error) (Done, error) {
	if s.Atomic() {
		done, err := s.composeDurably(ctx, f)
		return done, s.fail("compose", 0, s.Size, err)
	}
	res := newResult()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for b := range s.Blocks() {
		g.Go(func() error {
			n := s.blockLen(b)
			c, err := s.change(gctx, b, anyone, []Run{{0, uint32(n)}}, func(ctx context.Context, a coherency.Agent) error {
				return s.composeBlock(ctx, a, b, f)
			})
			return res.add(c, false, err)
		})
	}
	err := g.Wait()
	var half *halfDone
	if errors.As(err, &half) {
		err = half.err
	}
	done, err := res.finish(ctx, s, err)
	return done, s.fail("compose", 0, s.Size, err)
}

// Adopt is Draft for a span of RAM whose memory is that of a file, which another
// process made: a memfd sealed against shrinking and growing, of the span's size in
// whole pages. The bytes are the span's first version; none is copied but to where the
// policy wants them. Until the span is published the memory keeps them, whatever
// happens: who freed the span instead has changed nothing. What the process stores
// to it later, which it ought not to, readers see at once. It fails with errors.ErrUnsupported if the memory
// is of another kind, or the span is to live elsewhere or to be durable before it
// is in RAM.
func (st *Store) Adopt(ctx context.Context, info Info, memory *os.File) (*Span, error) {
	if info.Tier != coherency.Host || info.durable() && info.Policy != coherency.WriteBack {
		return nil, &Error{Op: "adopt", Span: info.Name, Err: fmt.Errorf("%w: its bytes are to be stored elsewhere first", errors.ErrUnsupported)}
	}
	s, err := st.alloc(ctx, info, false, memory)
	if err != nil {
		return nil, err
	}
	if _, err := s.Compose(ctx, nil); err != nil { // they are there
		return nil, errors.Join(err, s.Free())
	}
	return s, nil
}

func (s *Span) composeBlock(ctx context.Context, a coherency.Agent, b int, f func(off int64, p []byte) error) error {
	off, n := int64(b)*tier.BlockSize, s.blockLen(b)
	if a == hostAgent {
		if f == nil {
			return nil
		}
		m, err := s.host.Memory(b, 0, n)
		if err != nil {
			return err
		}
		m.Region.Populate(m.Off, m.Len)
		if err := f(off, m.Bytes()); err != nil {
			return &halfDone{err}
		}
		return nil
	}
	staging, err := s.store.Scratch(ctx)
	if err != nil {
		return err
	}
	defer s.store.PutScratch(staging)
	staging = staging.Slice(0, n)
	if err := f(off, staging.Bytes()); err != nil {
		return err
	}
	return s.spaces[a].Write(ctx, b, 0, staging)
}

// composeDurably is Compose for spans whose changes are durable as a whole.
func (s *Span) composeDurably(ctx context.Context, f func(off int64, p []byte) error) (Done, error) {
	staging, err := s.store.Scratch(ctx)
	if err != nil {
		return Done{}, err
	}
	defer s.store.PutScratch(staging)
	batch := s.Begin()
	for off := int64(0); off < s.Size; off += tier.BlockSize {
		piece := staging.Slice(0, min(tier.BlockSize, s.Size-off))
		err := f(off, piece.Bytes())
		if err == nil {
			err = batch.Write(ctx, off, piece)
		}
		if err != nil {
			batch.Discard()
			return Done{}, err
		}
	}
	c, err := batch.Commit(ctx)
	return Done{Version: c.Span, Holders: c.Holders}, err
}

// halfDone is why a block in RAM was not filled to its end: what it had is gone.
type halfDone struct{ err error }

func (e *halfDone) Error() string   { return e.err.Error() }
func (e *halfDone) Unwrap() []error { return []error{tier.ErrLost, e.err} }
