// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/memspan/memspan/internal/blocks"
	"github.com/memspan/memspan/internal/private"
	"github.com/memspan/memspan/internal/sealed"
	"github.com/memspan/memspan/sharedbuf"
)

// keyOf returns the key that came with a request; nil: none did.
func (c *conn) keyOf(r *sharedbuf.Request) ([]byte, error) {
	if r.Key == "" {
		return nil, nil
	}
	if !c.guest.secure {
		return nil, &sharedbuf.Error{Code: sharedbuf.ErrDenied, Message: "a key came over a connection that others may read: use a unix socket or TLS, and another key"}
	}
	key, err := base64.StdEncoding.DecodeString(string(r.Key))
	if err != nil || len(key) != sealed.KeySize { // the error may show some of it
		return nil, &sharedbuf.Error{Code: sharedbuf.ErrInvalid, Message: fmt.Sprintf("the key is not %d bytes in base64", sealed.KeySize)}
	}
	if r.Generation == 0 {
		return nil, &sharedbuf.Error{Code: sharedbuf.ErrInvalid, Message: "a key, and no generation that the buffer was sealed in"}
	}
	return key, nil
}

// sharedSize returns how many bytes of shared memory the buffer takes.
func (w *work) sharedSize() int64 {
	if w.key != nil {
		return sealed.Size(w.request.Size)
	}
	return w.request.Size
}

// unseal opens the buffer that is sealed in shared. What the chain has written is
// sealed by done.
func (w *work) unseal(ctx context.Context, shared []byte) (mem []byte, done func() error, err error) {
	size, turn := w.request.Size, w.request.Generation
	box, err := sealed.New(shared, w.key, uint32(w.request.BufferID), size)
	if err != nil {
		return nil, nil, err
	}
	if mem, err = w.memory.alloc(size); err != nil {
		return nil, nil, err
	}
	free := func() error { return w.memory.free(mem) }
	var sums *blocks.Sums // of what came, if it may change
	if w.write {
		sums = blocks.NewSums(size)
	}
	err = func() error {
		news, err := box.OpenTable(turn)
		if err != nil {
			return sealedError(err)
		}
		if err := w.help.Each(ctx, len(news), func(at int) error {
			i := news[at]
			block := blocks.Of(mem, i)
			if err := box.Open(i, block); err != nil {
				return sealedError(err)
			}
			if sums != nil {
				sums.Update(i, block)
			}
			return nil
		}); err != nil {
			return err
		}
		if sums == nil {
			return private.Protect(mem, false)
		}
		return nil
	}()
	if err != nil {
		return nil, nil, errors.Join(err, free())
	}
	if sums == nil {
		return mem, free, nil
	}
	return mem, func() error { return errors.Join(w.seal(ctx, box, mem, sums), free()) }, nil
}

// seal seals what changed, unless the guest has given up: then he may be sealing
// himself.
func (w *work) seal(ctx context.Context, box *sealed.Box, mem []byte, sums *blocks.Sums) error {
	turn := w.request.Generation + 1
	var changed atomic.Bool
	if err := w.help.Each(ctx, blocks.Count(int64(len(mem))), func(i int) error {
		block := blocks.Of(mem, i)
		if !sums.Update(i, block) {
			return nil
		}
		changed.Store(true)
		if err := box.Seal(i, block, turn); err != nil {
			return sealedError(err)
		}
		return nil
	}); err != nil || !changed.Load() {
		return err
	}
	if err := box.SealTable(turn); err != nil {
		return sealedError(err)
	}
	w.sealed = turn
	return nil
}

// sealedError gives an error of a box its code.
func sealedError(err error) error {
	if errors.Is(err, sealed.ErrCorrupt) {
		return &sharedbuf.Error{Code: sharedbuf.ErrCorrupt, Message: "the buffer's sealed bytes", Err: err}
	}
	return &sharedbuf.Error{Code: sharedbuf.ErrTruncated, Message: "the buffer's memory went away: its file was cut short", Err: err}
}
