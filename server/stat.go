// SPDX-License-Identifier: Apache-2.0

package server

import (
	"cmp"
	"context"
	"slices"

	"github.com/memspan/memspan/span"
	"github.com/memspan/memspan/wire/control"
)

// listPage is how many spans one answer to OpList describes: well within what
// fits into a message.
const listPage = 256

func (s *session) list(_ context.Context, a control.List) (control.Listed, error) {
	all := s.srv.store.List()
	slices.SortFunc(all, func(x, y *span.Span) int { return cmp.Compare(x.ID.String(), y.ID.String()) })
	listed := control.Listed{Spans: []control.SpanStat{}}
	for _, sp := range all {
		if sp.ID.String() <= a.After {
			continue
		}
		if len(listed.Spans) == listPage {
			listed.More = true
			break
		}
		if st, err := spanStat(sp); err == nil { // else it was freed meanwhile
			listed.Spans = append(listed.Spans, st)
		}
	}
	return listed, nil
}

func (s *session) stat(_ context.Context, a control.Handle) (control.SpanStat, error) {
	sp, err := s.span(a.Handle)
	if err != nil {
		return control.SpanStat{}, err
	}
	return spanStat(sp)
}

func spanStat(sp *span.Span) (control.SpanStat, error) {
	st, err := sp.Stat()
	if err != nil {
		return control.SpanStat{}, err
	}
	stat := control.SpanStat{
		SpanInfo: spanInfo(sp),
		State:    st.State, Version: st.Version, Blocks: sp.Blocks(),
		Debt: st.Debt, Lost: st.Lost, Unclean: st.Unclean,
		Tiers:  make(map[string]control.TierStat),
		Direct: st.Direct, Shadow: st.Shadow, Locks: st.Locks,
		Unpublished: st.Unpublished,
	}
	for t, ts := range st.Tiers {
		stat.Tiers[t.String()] = control.TierStat(ts)
	}
	if st.LastErr != nil {
		stat.Error = st.LastErr.Error()
	}
	return stat, nil
}

func (s *session) stats() (control.Stats, error) {
	var st control.Stats
	st.Coherency, st.Tiered = s.srv.store.Stats()
	st.Budgets = make(map[string]control.Budget)
	for t := range s.srv.store.Tiers().All() {
		if u, ok := s.srv.store.Usage(t); ok {
			st.Budgets[t.String()] = control.Budget{Used: u.Used, Budget: u.Budget}
		}
	}
	if s.srv.vram != nil {
		done := control.VRAM(s.srv.vram.Stats())
		st.VRAM = &done
	}
	st.Vulkan = s.srv.vulkanStats()
	s.srv.mu.Lock()
	sessions := make([]*session, 0, len(s.srv.sessions))
	for other := range s.srv.sessions {
		sessions = append(sessions, other)
	}
	s.srv.mu.Unlock()
	st.Sessions = len(sessions)
	for _, other := range sessions {
		other.mu.Lock()
		st.Mappings += len(other.mappings)
		other.mu.Unlock()
	}
	return st, nil
}
