// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"fmt"

	"github.com/memspan/memspan/coherency"
	"github.com/memspan/memspan/span"
	"github.com/memspan/memspan/wire"
	"github.com/memspan/memspan/wire/control"
)

func (s *session) advise(ctx context.Context, a control.Advise) (control.Advised, error) {
	sp, err := s.span(a.Handle)
	if err != nil {
		return control.Advised{}, err
	}
	off, n := a.Offset, a.Length
	whole := off == 0 && n == 0
	if whole {
		n = sp.Size
	}
	var follow func(context.Context, coherency.Tier, int64, int64) (span.Advised, error)
	switch a.Advice {
	case control.AdvicePrefetch:
		follow = sp.Prefetch
	case control.AdviceEvict:
		follow = sp.Evict
	case control.AdvicePin:
		follow = sp.Pin
	case control.AdviceUnpin:
		follow = sp.Unpin
	case control.AdvicePrefer:
		if !whole {
			return control.Advised{}, &wire.Error{Code: wire.Invalid, Op: "prefer", Span: sp.Label(), Offset: off, Length: n,
				Message: "a span prefers one tier for all its blocks: give no range"}
		}
		was, err := sp.Prefer(ctx, a.Tier)
		return control.Advised{Planned: []control.Move{}, Moved: []control.Move{}, Skipped: []control.Skip{}, Was: &was}, err
	default:
		return control.Advised{}, &wire.Error{Code: wire.Invalid, Op: "advise", Span: sp.Label(), Message: fmt.Sprintf("unknown advice %q", a.Advice)}
	}
	done, err := follow(ctx, a.Tier, off, n)
	return advised(done), err
}

func advised(done span.Advised) control.Advised {
	moves := func(list []span.Move) []control.Move {
		out := make([]control.Move, len(list)) // [], not null
		for i, m := range list {
			out[i] = control.Move(m)
		}
		return out
	}
	skipped := make([]control.Skip, len(done.Skipped))
	for i, skip := range done.Skipped {
		we := wireError(skip.Err)
		skipped[i] = control.Skip{Code: we.Code.String(), Message: we.Message, First: skip.First, Blocks: skip.Blocks}
	}
	return control.Advised{
		Blocks: done.Blocks, There: done.There, Changed: done.Changed, Bytes: done.Bytes,
		Planned: moves(done.Planned), Moved: moves(done.Moved), Skipped: skipped,
	}
}
