// SPDX-License-Identifier: Apache-2.0

package pull

import (
	"context"
	"errors"
	"io"

	"github.com/memspan/memspan/surface"
	"github.com/memspan/memspan/wire/control"
)

type direct struct{}

func (d *direct) layout() surface.Manifest { return surface.Manifest{} }
func (d *direct) size() (int64, bool)      { return 0, false }
func (d *direct) close() error             { return nil }
func (d *direct) bring(ctx context.Context, to sink, first, end int64, have bitset) error {
	return errors.ErrUnsupported
}

func (s *Surface) openDirect(c *source, opened control.SurfaceOpened) error {
	return errors.ErrUnsupported
}

func (d *direct) copy(ctx context.Context, w io.Writer, win window) (int64, error) { return 0, nil }
func (d *direct) read(ctx context.Context, p []byte, off int64) error              { return nil }
func (d *direct) wait(ctx context.Context, w window) error                         { return nil }
func (d *direct) final(ctx context.Context) (int64, error)                         { return 0, nil }
