// SPDX-License-Identifier: Apache-2.0

package memspan_test

import (
	"errors"
	"testing"

	"github.com/memspan/memspan"
)

// Drafts that cannot be are refused before a byte of them is stored to.
func TestDraftRefuses(t *testing.T) {
	for size, want := range map[int64]error{
		-1: memspan.ErrInvalid, 0: memspan.ErrInvalid, 1 << 45: memspan.ErrBudget, 1 << 62: memspan.ErrBudget,
	} {
		if _, err := memspan.NewDraft(size); !errors.Is(err, want) {
			t.Errorf("%d bytes: error %v, want %v", size, err, want)
		}
	}
}
