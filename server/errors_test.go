// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/memspan/memspan/coherency"
	"github.com/memspan/memspan/span"
	"github.com/memspan/memspan/tier"
	"github.com/memspan/memspan/wire"
)

// Every error that packages below name has a code of its own, and is told
// without saying twice what the code says.
func TestErrorsCrossAsTheirCode(t *testing.T) {
	for err, code := range map[error]wire.Code{
		span.ErrNotFound: wire.NotFound, span.ErrExists: wire.Exists, span.ErrRange: wire.OutOfRange,
		span.ErrInvalid: wire.Invalid, span.ErrFreed: wire.Freed, span.ErrLimit: wire.Limit,
		span.ErrNotHeld: wire.NotHeld, span.ErrNotMapped: wire.NotMapped, span.ErrDebt: wire.Debt,
		coherency.ErrConflict: wire.Conflict, coherency.ErrLastCopy: wire.LastCopy, coherency.ErrPinned: wire.Pinned,
		coherency.ErrBusy: wire.Busy, coherency.ErrState: wire.WrongState,
		&coherency.DataLossError{Block: 1, Lost: 2}: wire.DataLoss,
		tier.ErrAbsent: wire.TierAbsent, tier.ErrBudget: wire.Budget, tier.ErrLost: wire.DataLoss,
		os.ErrClosed: wire.Closed, context.Canceled: wire.Canceled,
		errors.New("a surprise"): wire.Internal,
	} {
		for form, err := range map[string]error{
			"alone":  err,
			"before": fmt.Errorf("%w: so many of them", err),
			"after":  fmt.Errorf("this and that: %w", err),
			"within": fmt.Errorf("this: %w", fmt.Errorf("%w: that", err)),
		} {
			placed := &span.Error{Op: "write", Span: "s", Offset: 1, Length: 2, Err: err}
			we := wireError(placed)
			if we.Code != code || we.Op != "write" || we.Span != "s" || we.Offset != 1 || we.Length != 2 {
				t.Errorf("%v crosses as %+v, want code %v", err, we, code)
			}
			words := strings.ReplaceAll(code.String(), "-", " ")
			if said := strings.TrimPrefix(we.Error(), `write span "s" [1,+2): `+code.String()+": "); strings.Contains(said, words) || said == "" {
				t.Errorf("%s: %q says %q twice", form, we, words)
			}
			if form != "alone" && !strings.Contains(we.Message, "this") && !strings.Contains(we.Message, "so many") {
				t.Errorf("%s: %q has lost its reason", form, we)
			}
		}
	}
}
