// SPDX-License-Identifier: Apache-2.0

package pull

import (
	"cmp"
	"context"
	"runtime"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/surface"
	"github.com/memspan/memspan/wire"
	"github.com/memspan/memspan/wire/control"
)

// Verify hashes all of a surface that is Direct, once it is sealed, and compares
// with its manifest: with the ticket's root if it has one. Who maps a memory trusts the server
// on his machine with it unless he does this. What is pulled chunk by chunk is
// verified as it comes; for that Verify does nothing.
func (s *Surface) Verify(ctx context.Context) error {
	if s.direct == nil {
		return nil
	}
	return s.failed("verify", window{open: true}, s.direct.verify(ctx))
}

func (d *direct) verify(ctx context.Context) error {
	if _, err := d.final(ctx); err != nil {
		return err
	}
	m := d.layout()
	count := m.Count()
	if has, err := memfd.Size(d.file); err != nil || has < m.StoredSize() {
		return cmp.Or(err, lying("its memory has %d bytes, and its size is %d", has, m.Size))
	}
	m.Digests = make([]surface.Digest, count)
	var next atomic.Int64
	var work errgroup.Group
	for range runtime.GOMAXPROCS(0) {
		work.Go(func() error {
			var buf []byte
			for i := next.Add(1) - 1; i < count && ctx.Err() == nil; i = next.Add(1) - 1 {
				b, err := d.stored(&m, i, &buf)
				if err != nil {
					return err
				}
				m.Digests[i] = surface.Sum(b)
			}
			return nil
		})
	}
	if err := work.Wait(); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return &wire.Error{Code: wire.Canceled, Err: context.Cause(ctx)}
	}
	root := cmp.Or(d.s.ticket.Root, d.root)
	if root == nil {
		d.source.listen()
		var state control.SurfaceState
		if err := d.source.control(ctx, control.OpSurfaceWait, control.SurfaceWait{Handle: d.source.handle, Sequence: d.sequence() - 1, From: count}, &state); err != nil {
			return err
		}
		if len(state.Root) != surface.DigestSize {
			return broken("it is sealed and has no root")
		}
		root = (*surface.Digest)(state.Root)
	}
	if m.Root() != *root {
		return lying("its bytes are not those that were exposed")
	}
	return nil
}
