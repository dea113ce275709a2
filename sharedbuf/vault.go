// SPDX-License-Identifier: Apache-2.0

package sharedbuf

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"sync"

	"github.com/memspan/memspan/internal/blocks"
	"github.com/memspan/memspan/internal/private"
	"github.com/memspan/memspan/internal/sealed"
)

// A vault is the guest's side of an encrypted buffer: the memory that the caller
// sees is private, and what changed of it is sealed in what both sides share. It
// belongs to whoever has the hand-off, of which there is one at a time.
type vault struct {
	mem  []byte // the buffer
	box  *sealed.Box
	key  Secret       // in base64
	sums *blocks.Sums // of what is sealed
	help *blocks.Helpers

	all  bool   // what is sealed cannot be relied on: next time all of it is sealed
	turn uint64 // of the hand-off

	mu    sync.Mutex
	reply *Reply // to the hand-off; nil: none came
}

// answered notes the answer, if there was one.
func (v *vault) answered(reply *Reply) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.reply = reply
}

// newVault makes a vault whose sealed bytes are in shared.
func newVault(shared []byte, id uint32, size int64, help *blocks.Helpers) (*vault, error) {
	key := make([]byte, sealed.KeySize)
	rand.Read(key) // it never fails
	box, err := sealed.New(shared, key, id, size)
	if err != nil {
		return nil, err
	}
	mem, err := private.Alloc(size)
	if err != nil {
		return nil, err
	}
	return &vault{mem: mem, box: box, key: Secret(base64.StdEncoding.EncodeToString(key)), sums: blocks.NewSums(size), help: help}, nil
}

// seal begins a hand-off.
func (v *vault) seal(ctx context.Context, turn uint64) error {
	v.answered(nil)
	v.turn = turn
	if v.all {
		v.sums.Zero()
	}
	err := v.help.Each(ctx, blocks.Count(int64(len(v.mem))), func(i int) error {
		block := blocks.Of(v.mem, i)
		if changed := v.sums.Update(i, block); !changed && (!v.all || v.box.Fresh(i)) {
			return nil
		}
		return v.box.Seal(i, block, turn)
	})
	if ctx.Err() != nil {
		return &Error{Code: ErrCanceled, Err: context.Cause(ctx)}
	}
	if err != nil {
		return sealedError(err)
	}
	if err := v.box.SealTable(turn); err != nil {
		return sealedError(err)
	}
	v.all = false
	return nil
}

// takeBack ends a hand-off: it opens what the host has sealed. Without an answer
// it is not known what that is.
func (v *vault) takeBack() error {
	v.mu.Lock()
	reply := v.reply
	v.mu.Unlock()
	switch {
	case reply == nil || reply.Failure() != nil && reply.Sealed == 0:
		v.all = true
		return nil
	case reply.Sealed == 0:
		return nil
	case reply.Sealed != v.turn+1:
		v.all = true
		return &Error{Code: ErrPeerLost, Message: fmt.Sprintf("the host broke the protocol: it sealed in turn %d, not %d", reply.Sealed, v.turn+1)}
	}
	news, err := v.box.OpenTable(reply.Sealed)
	if err == nil {
		// To its end: what the host wrote is there whole, or it is known that it is not.
		err = v.help.Each(context.Background(), len(news), func(at int) error {
			i := news[at]
			block := blocks.Of(v.mem, i)
			if err := v.box.Open(i, block); err != nil {
				return err
			}
			v.sums.Update(i, block)
			return nil
		})
	}
	if err != nil {
		v.all = true
		return sealedError(err)
	}
	return nil
}

// sealedError gives an error of a box its code.
func sealedError(err error) error {
	if errors.Is(err, sealed.ErrCorrupt) {
		return &Error{Code: ErrCorrupt, Message: "the buffer's sealed bytes", Err: err}
	}
	return &Error{Code: ErrTruncated, Message: "the buffer's memory went away: its file was cut short", Err: err}
}
