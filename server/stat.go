// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
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
	slices.SortFunc(all, func(x, y *span.Span) int { return bytes.Compare(x.ID[:], y.ID[:]) }) // as their names in hexadecimal
	next, seen := slices.BinarySearchFunc(all, a.After, func(sp *span.Span, after string) int { return cmp.Compare(sp.ID.String(), after) })
	if seen {
		next++
	}
	listed := control.Listed{Spans: []control.SpanStat{}}
	for _, sp := range all[next:] {
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
		Tiers: make(map[string]control.TierStat),
		Read:  st.Read, Written: st.Written,
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
			moved, _ := s.srv.store.Traffic(t)
			st.Budgets[t.String()] = control.Budget{Used: u.Used, Budget: u.Budget, In: moved.In, Out: moved.Out}
		}
	}
	if s.srv.vram != nil {
		done := control.VRAM(s.srv.vram.Stats())
		st.VRAM = &done
	}
	st.Vulkan = s.srv.vulkanStats()
	st.SessionList = s.srv.sessionStats()
	st.Sessions = len(st.SessionList)
	for _, other := range st.SessionList {
		st.Mappings += other.Mappings
	}
	if more := len(st.SessionList) - listedSessions; more > 0 {
		st.SessionList = st.SessionList[more:]
	}
	return st, nil
}

// listedSessions is how many sessions one answer describes: well within what
// fits into a message.
const listedSessions = 1024

// sessionStats describes the sessions that have been let in, oldest first.
func (srv *Server) sessionStats() []control.SessionStat {
	var sessions []*session
	lent := make(map[*session]bool)
	srv.mu.Lock()
	for s := range srv.sessions {
		if s.admitted {
			sessions = append(sessions, s)
		}
	}
	for s := range srv.leases {
		lent[s] = true
	}
	srv.mu.Unlock()
	list := make([]control.SessionStat, 0, len(sessions))
	for _, s := range sessions {
		st := s.describe()
		st.Vulkan = lent[s]
		list = append(list, st)
	}
	slices.SortFunc(list, func(x, y control.SessionStat) int { return cmp.Compare(x.Session, y.Session) })
	return list
}

// describe describes a session that was admitted.
func (s *session) describe() control.SessionStat {
	st := s.peer
	st.Read, st.Written = s.bytesRead.Load(), s.bytesWritten.Load()
	s.mu.Lock()
	defer s.mu.Unlock()
	st.Handles, st.Mappings, st.Locks = len(s.handles), len(s.mappings), len(s.locks)
	return st
}
