// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package futex

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
)

// Wait fails on this system.
func Wait(context.Context, *atomic.Uint32, uint32) error {
	return fmt.Errorf("futex: waiting for shared memory needs Linux: %w", errors.ErrUnsupported)
}

// Wake does nothing: nobody waits.
func Wake(*atomic.Uint32) {}
