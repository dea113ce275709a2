// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"context"
	"errors"
)

// Abandon ends the tier as the end of its process would: nothing is written.
func (t *Tier) Abandon() error {
	t.stop()
	t.work.Wait()
	closed := errClosed
	t.failed.CompareAndSwap(nil, &closed)
	return errors.Join(t.closeFiles(), t.lock.Close())
}

// Checkpoint makes a checkpoint now.
func (t *Tier) Checkpoint() error { return t.checkpoint(context.Background()) }
