// SPDX-License-Identifier: Apache-2.0

//go:build !windows

package bell

import (
	"context"
	"sync/atomic"

	"github.com/memspan/memspan/internal/futex"
)

// A Bell is the side that rings. Its methods may be called concurrently.
type Bell struct{ word *atomic.Uint32 }

// Hang makes the bell of a number in shared memory. The IDSize bytes at id are
// left as they are. The caller closes it while the memory is still there.
func Hang(word *atomic.Uint32, id []byte) (*Bell, error) { return &Bell{word}, nil }

// Ring adds one to the number and wakes all who wait.
func (b *Bell) Ring() {
	b.word.Add(1)
	futex.Wake(b.word)
}

// Close does nothing: who waits goes on waiting. It is idempotent.
func (b *Bell) Close() error { return nil }

// Wait returns when the number is not seen any more. It fails when ctx ends, with
// its cause.
func Wait(ctx context.Context, word *atomic.Uint32, id []byte, seen uint32) error {
	for word.Load() == seen {
		if err := futex.Wait(ctx, word, seen); err != nil {
			return err
		}
	}
	return nil
}
