// SPDX-License-Identifier: Apache-2.0

package memspan

import (
	"context"

	"github.com/memspan/memspan/wire/control"
)

// A CheckReport is what a check of a data directory has found.
type CheckReport = control.Checked

// A Fault is damage in a data directory.
type Fault = control.Fault

// Check reads and verifies all that the server's data directory holds, while it
// is in use; it takes as long as reading that. It repairs nothing. Directory, a
// path on the server's machine, must be that one: else it fails with
// ErrNotFound, or with ErrTierAbsent if the server keeps none.
func (c *Client) Check(ctx context.Context, directory string) (CheckReport, error) {
	r, err := ask[CheckReport](ctx, c, control.OpCheck, control.Check{Directory: directory})
	return r, failed("check", "", 0, 0, err)
}
