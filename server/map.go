// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/memspan/memspan/span"
	"github.com/memspan/memspan/wire"
	"github.com/memspan/memspan/wire/control"
)

// mapAtOnce answers OpMap if that waits for nothing: always, unless a direct
// mapping's bytes must be brought to RAM first.
func (s *session) mapAtOnce(h wire.Header, args json.RawMessage) (done bool, err error) {
	m, err := s.newMapping(args)
	if err != nil {
		return true, s.replyError(h, err)
	}
	if !m.toBeDirect {
		return true, s.mapShadow(h, m)
	}
	s.mu.Lock()
	full := len(s.mappings) >= s.srv.limits.Mappings
	s.mu.Unlock()
	if full { // to be refused, and until then it can be stored to: ending it takes time
		return false, nil
	}
	d, ok, err := m.span.TryMapDirect(m.off, m.n, m.write, s.onFree(m))
	switch {
	case err != nil:
		return true, s.replyError(h, err)
	case ok:
		m.direct = d
		return true, s.answerDirect(context.Background(), h, m)
	}
	return false, nil
}

// mapRange answers OpMap of a direct mapping.
func (s *session) mapRange(ctx context.Context, h wire.Header, args json.RawMessage) error {
	m, err := s.newMapping(args)
	if err != nil {
		return s.replyError(h, err)
	}
	if m.direct, err = m.span.MapDirect(ctx, m.off, m.n, m.write, s.onFree(m)); err != nil {
		return s.replyError(h, err)
	}
	return s.answerDirect(ctx, h, m)
}

// newMapping checks the arguments of OpMap.
func (s *session) newMapping(args json.RawMessage) (*mapping, error) {
	var a control.Map
	if err := decode(args, &a); err != nil {
		return nil, err
	}
	sp, err := s.span(a.Handle)
	if err != nil {
		return nil, err
	}
	if !slices.Contains([]control.Mode{control.ModeRead, control.ModeWrite, control.ModeReadWrite}, a.Mode) {
		return nil, &wire.Error{Code: wire.WrongMode, Op: "map", Span: sp.Label(), Message: fmt.Sprintf("unknown mode %q", a.Mode)}
	}
	return &mapping{span: sp, off: a.Offset, n: a.Length, write: a.Mode != control.ModeRead, toBeDirect: s.direct && !a.Shadow}, nil
}

func (s *session) addMapping(m *mapping) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.mappings) >= s.srv.limits.Mappings {
		return 0, &wire.Error{Code: wire.Limit, Op: "map", Span: m.span.Label(),
			Message: fmt.Sprintf("the session has %d mappings: unmap some", len(s.mappings))}
	}
	m.id = newHandle(s.mappings)
	s.mappings[m.id] = m
	return m.id, nil
}

// answerDirect sends a direct mapping's descriptor.
func (s *session) answerDirect(ctx context.Context, h wire.Header, m *mapping) error {
	f, size, err := m.direct.File()
	if err == nil {
		defer f.Close()
		var id uint64
		if id, err = s.addMapping(m); err == nil {
			return s.passFiles(h, control.Mapped{Mapping: id, Direct: true, Size: size}, f)
		}
	}
	m.direct.Close(ctx, false)
	return s.replyError(h, err)
}

// onFree returns what a span calls when it goes, to tell m's client.
func (s *session) onFree(m *mapping) func() {
	return func() {
		select {
		case s.freed <- m:
		default: // the client has more mappings than it may: it can do without
		}
	}
}

func (s *session) mapShadow(h wire.Header, m *mapping) error {
	if m.n > s.srv.limits.Map {
		return s.replyError(h, &wire.Error{Code: wire.Limit, Op: "map", Span: m.span.Label(), Offset: m.off, Length: m.n,
			Message: fmt.Sprintf("a shadow mapping may have %d bytes: map parts of the span", s.srv.limits.Map)})
	}
	sh, err := m.span.OpenShadow(m.off, m.n, m.write, s.onFree(m))
	if err != nil {
		return s.replyError(h, err)
	}
	m.shadow = sh
	versions, err := versionRuns(m)
	var id uint64
	if err == nil {
		id, err = s.addMapping(m)
	}
	if err != nil {
		sh.Close()
		return s.replyError(h, err)
	}
	return s.reply(h, control.Mapped{Mapping: id, Versions: versions})
}

func versionRuns(m *mapping) ([]control.VersionRun, error) {
	var runs []control.VersionRun
	err := m.span.Versions(m.off, m.n, func(v uint64) {
		if last := len(runs) - 1; last >= 0 && runs[last].Version == v {
			runs[last].Count++
			return
		}
		runs = append(runs, control.VersionRun{Count: 1, Version: v})
	})
	return runs, err
}

func (s *session) versions(_ context.Context, a control.Mapping) (control.Versions, error) {
	m, err := s.mapping(a.Mapping)
	if err != nil {
		return control.Versions{}, err
	}
	runs, err := versionRuns(m)
	return control.Versions{Versions: runs}, err
}

// directRanges finds a direct mapping, and the ranges of it that are meant.
func (s *session) directRanges(op string, id uint64, ranges []control.Range) (*span.Direct, []span.Extent, error) {
	m, err := s.mapping(id)
	if err != nil {
		return nil, nil, err
	}
	if m.direct == nil {
		return nil, nil, &wire.Error{Code: wire.WrongMode, Op: op, Span: m.span.Label(), Message: "the mapping is a shadow: use data frames"}
	}
	extents := make([]span.Extent, len(ranges))
	for i, r := range ranges {
		extents[i] = span.Extent(r)
	}
	return m.direct, extents, nil
}

func (s *session) flushDirect(ctx context.Context, a control.Flush) (control.Committed, error) {
	d, extents, err := s.directRanges("flush", a.Mapping, a.Ranges)
	if err != nil {
		return control.Committed{}, err
	}
	done, err := d.Flush(ctx, extents...)
	s.bytesWritten.Add(done.Stored)
	return control.Committed{Version: done.Version, Holders: done.Holders}, err
}

func (s *session) invalidate(ctx context.Context, a control.Flush) (none, error) {
	d, extents, err := s.directRanges("invalidate", a.Mapping, a.Ranges)
	if err != nil {
		return none{}, err
	}
	return none{}, d.Invalidate(ctx, extents...)
}

// unmap ends a mapping. If what was stored through a direct one cannot be
// committed the mapping stays, for the client to try again.
func (s *session) unmap(ctx context.Context, a control.Mapping) (control.Committed, error) {
	m, err := s.mapping(a.Mapping)
	if err != nil {
		return control.Committed{}, err
	}
	var done span.Committed
	if m.direct != nil {
		done, err = m.direct.Close(ctx, false)
		s.bytesWritten.Add(done.Stored)
		if err != nil && !errors.Is(err, span.ErrDebt) && !errors.Is(err, span.ErrFreed) {
			return control.Committed{}, err
		}
	}
	s.mu.Lock()
	_, there := s.mappings[a.Mapping]
	s.countRest(a.Mapping)
	delete(s.mappings, a.Mapping)
	s.mu.Unlock()
	if there && m.shadow != nil { // else another request was faster
		m.shadow.Close()
	}
	return control.Committed{Version: done.Version, Holders: done.Holders}, err
}
