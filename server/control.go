// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/memspan/memspan/span"
	"github.com/memspan/memspan/tier"
	"github.com/memspan/memspan/wire"
	"github.com/memspan/memspan/wire/control"
)

// startControl reads a control request and carries it out in a goroutine. It
// returns an error if the connection must end.
func (s *session) startControl(ctx context.Context, h wire.Header) error {
	var req control.Request
	if err := s.readJSON(h, &req); err != nil {
		return fmt.Errorf("control request: %w", err)
	}
	if req.Op == control.OpCancel {
		return s.cancelRequest(h, req.Args)
	}
	if req.Op == control.OpVulkan {
		return s.lend(h, req.Args)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	s.mu.Lock()
	_, dup := s.cancels[h.ID]
	full := len(s.cancels) >= s.srv.limits.Requests
	if !dup && !full {
		s.cancels[h.ID] = cancel
	}
	s.mu.Unlock()
	switch {
	case dup:
		cancel(nil)
		return fmt.Errorf("request id %d is under way already", h.ID)
	case full:
		cancel(nil)
		return s.refuse(h, wire.Limit, fmt.Sprintf("%d control requests are under way already", s.srv.limits.Requests))
	}
	s.requests.Go(func() {
		defer cancel(nil)
		err := s.answerControl(ctx, h, req)
		s.mu.Lock()
		delete(s.cancels, h.ID)
		s.settle()
		s.mu.Unlock()
		if err != nil {
			// The reply could not be written: so the connection is at its end.
			s.raw.Close()
		}
	})
	return nil
}

func (s *session) cancelRequest(h wire.Header, args json.RawMessage) error {
	var c control.Cancel
	if err := decode(args, &c); err != nil {
		return s.replyError(h, err)
	}
	s.mu.Lock()
	cancel := s.cancels[c.Request]
	s.mu.Unlock()
	if cancel != nil {
		cancel(context.Canceled)
	}
	return s.reply(h, struct{}{})
}

func (s *session) answerControl(ctx context.Context, h wire.Header, req control.Request) error {
	if req.Op == control.OpMap { // its reply may carry a descriptor
		return s.mapRange(ctx, h, req.Args)
	}
	result, err := s.control(ctx, req)
	if err != nil {
		return s.replyError(h, err)
	}
	return s.reply(h, result)
}

// decode reads a request's arguments. Unknown fields are refused: a newer
// client that relies on one must not be answered as if it had not.
func decode(args json.RawMessage, v any) error {
	d := json.NewDecoder(bytes.NewReader(args))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return &wire.Error{Code: wire.Invalid, Message: "arguments: " + err.Error()}
	}
	return nil
}

// call decodes the arguments and calls f.
func call[A, R any](ctx context.Context, args json.RawMessage, f func(context.Context, A) (R, error)) (any, error) {
	var a A
	if err := decode(args, &a); err != nil {
		return nil, err
	}
	return f(ctx, a)
}

// none is the reply of operations that have nothing to say.
type none struct{}

func (s *session) control(ctx context.Context, req control.Request) (any, error) {
	switch req.Op {
	case control.OpAlloc:
		return call(ctx, req.Args, s.alloc)
	case control.OpOpen:
		return call(ctx, req.Args, s.open)
	case control.OpClose:
		return call(ctx, req.Args, s.closeHandle)
	case control.OpFree:
		return call(ctx, req.Args, s.free)
	case control.OpList:
		return call(ctx, req.Args, s.list)
	case control.OpStat:
		return call(ctx, req.Args, s.stat)
	case control.OpStats:
		return s.stats()
	case control.OpVersions:
		return call(ctx, req.Args, s.versions)
	case control.OpFlush:
		return call(ctx, req.Args, s.flushDirect)
	case control.OpInvalidate:
		return call(ctx, req.Args, s.invalidate)
	case control.OpUnmap:
		return call(ctx, req.Args, s.unmap)
	case control.OpCopy:
		return call(ctx, req.Args, s.copy)
	case control.OpFill:
		return call(ctx, req.Args, s.fill)
	case control.OpUpload:
		return call(ctx, req.Args, s.upload)
	case control.OpDownload:
		return call(ctx, req.Args, s.download)
	case control.OpSync:
		return call(ctx, req.Args, s.sync)
	case control.OpRelease:
		return call(ctx, req.Args, s.release)
	case control.OpAccept:
		return call(ctx, req.Args, s.accept)
	case control.OpLock:
		return call(ctx, req.Args, s.lock)
	case control.OpUnlock:
		return call(ctx, req.Args, s.unlock)
	}
	return nil, &wire.Error{Code: wire.Unsupported, Message: fmt.Sprintf("unknown operation %q", req.Op)}
}

var placements = map[control.Placement]tier.Placement{
	control.AnyMemory:   tier.AnyMemory,
	control.HostVisible: tier.HostVisible,
	control.DeviceLocal: tier.DeviceLocal,
}

func (s *session) alloc(ctx context.Context, a control.Alloc) (control.Opened, error) {
	placement, ok := placements[a.Placement]
	if !ok {
		return control.Opened{}, &wire.Error{Code: wire.Invalid, Op: "alloc", Span: a.Name, Message: fmt.Sprintf("unknown placement %q", a.Placement)}
	}
	sp, err := s.srv.store.Alloc(ctx, span.Info{
		Name: a.Name, Size: a.Size, Tier: a.Tier, Home: a.Home, Policy: a.Policy, Placement: placement,
	})
	if err != nil {
		return control.Opened{}, err
	}
	opened, err := s.addHandle(sp)
	// The handle has the span retained, or nothing has.
	return opened, errors.Join(err, sp.Forsake())
}

func (s *session) open(_ context.Context, a control.Open) (control.Opened, error) {
	sp, err := s.srv.store.Open(a.Name)
	if err != nil {
		return control.Opened{}, err
	}
	return s.addHandle(sp)
}

func (s *session) addHandle(sp *span.Span) (control.Opened, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.handles) >= s.srv.limits.Handles {
		return control.Opened{}, &wire.Error{Code: wire.Limit, Op: "open", Span: sp.Label(),
			Message: fmt.Sprintf("the session has %d handles: close some", len(s.handles))}
	}
	if err := sp.Retain(); err != nil {
		return control.Opened{}, err
	}
	h := newHandle(s.handles)
	s.handles[h] = sp
	return control.Opened{Handle: h, Span: spanInfo(sp)}, nil
}

func spanInfo(sp *span.Span) control.SpanInfo {
	info := control.SpanInfo{
		ID: sp.ID.String(), Name: sp.Name, Size: sp.Size,
		Tier: sp.Tier, Home: sp.Home, Policy: sp.Policy, Created: sp.Created,
	}
	for name, p := range placements {
		if p == sp.Placement {
			info.Placement = name
		}
	}
	return info
}

func (s *session) closeHandle(_ context.Context, a control.Handle) (none, error) {
	s.mu.Lock()
	sp := s.handles[a.Handle]
	s.countRest(a.Handle)
	delete(s.handles, a.Handle)
	s.mu.Unlock()
	if sp == nil {
		_, err := s.span(a.Handle)
		return none{}, err
	}
	return none{}, sp.Forsake()
}

func (s *session) free(_ context.Context, a control.Handle) (none, error) {
	sp, err := s.span(a.Handle)
	if err != nil {
		return none{}, err
	}
	s.mu.Lock()
	s.countRest(a.Handle)
	s.mu.Unlock()
	// The handle stays: later uses of it learn that the span was freed.
	return none{}, sp.Free()
}

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

// mapRange answers OpMap.
func (s *session) mapRange(ctx context.Context, h wire.Header, args json.RawMessage) error {
	var a control.Map
	if err := decode(args, &a); err != nil {
		return s.replyError(h, err)
	}
	sp, err := s.span(a.Handle)
	if err != nil {
		return s.replyError(h, err)
	}
	if !slices.Contains([]control.Mode{control.ModeRead, control.ModeWrite, control.ModeReadWrite}, a.Mode) {
		return s.replyError(h, &wire.Error{Code: wire.WrongMode, Op: "map", Span: sp.Label(), Message: fmt.Sprintf("unknown mode %q", a.Mode)})
	}
	m := &mapping{span: sp, off: a.Offset, n: a.Length, write: a.Mode != control.ModeRead}
	if s.direct && !a.Shadow {
		return s.mapDirect(ctx, h, m)
	}
	return s.mapShadow(h, m)
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

func (s *session) mapDirect(ctx context.Context, h wire.Header, m *mapping) error {
	d, err := m.span.MapDirect(ctx, m.off, m.n, m.write, s.onFree(m))
	if err != nil {
		return s.replyError(h, err)
	}
	m.direct = d
	f, size, err := d.File()
	if err == nil {
		defer f.Close()
		var id uint64
		if id, err = s.addMapping(m); err == nil {
			return s.passFile(h, control.Mapped{Mapping: id, Direct: true, Size: size}, f)
		}
	}
	d.Close(ctx, false)
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

func (s *session) copy(ctx context.Context, a control.Copy) (control.Committed, error) {
	dst, err := s.span(a.Handle)
	if err != nil {
		return control.Committed{}, err
	}
	src, err := s.span(a.Source)
	if err != nil {
		return control.Committed{}, err
	}
	return committed(dst.Copy(ctx, a.Offset, src, a.SourceOffset, a.Length))
}

func (s *session) fill(ctx context.Context, a control.Fill) (control.Committed, error) {
	sp, err := s.span(a.Handle)
	if err != nil {
		return control.Committed{}, err
	}
	return committed(sp.Fill(ctx, a.Offset, a.Length, a.Pattern))
}

func committed(done span.Done, err error) (control.Committed, error) {
	return control.Committed{Version: done.Version, Holders: done.Holders, Device: done.Device}, err
}

func (s *session) upload(ctx context.Context, a control.Transfer) (control.Committed, error) {
	sp, err := s.span(a.Handle)
	if err != nil {
		return control.Committed{}, err
	}
	done, err := sp.Upload(ctx, a.Force)
	return control.Committed{Version: done.Version, Holders: done.Holders}, err
}

func (s *session) download(ctx context.Context, a control.Transfer) (control.Committed, error) {
	sp, err := s.span(a.Handle)
	if err != nil {
		return control.Committed{}, err
	}
	done, err := sp.Download(ctx, a.Force)
	return control.Committed{Version: done.Version, Holders: done.Holders}, err
}

func (s *session) sync(ctx context.Context, a control.Sync) (control.Synced, error) {
	if a.Handle == 0 {
		epoch, err := s.srv.store.Sync(ctx)
		return control.Synced{Epoch: epoch}, err
	}
	sp, err := s.span(a.Handle)
	if err != nil {
		return control.Synced{}, err
	}
	epoch, err := sp.Sync(ctx)
	return control.Synced{Epoch: epoch}, err
}

func (s *session) release(ctx context.Context, a control.Handle) (none, error) {
	sp, err := s.span(a.Handle)
	if err != nil {
		return none{}, err
	}
	return none{}, sp.Release(ctx)
}

func (s *session) accept(ctx context.Context, a control.Handle) (control.Committed, error) {
	sp, err := s.span(a.Handle)
	if err != nil {
		return control.Committed{}, err
	}
	done, err := sp.Accept(ctx)
	return control.Committed{Version: done.Version, Holders: done.Holders}, err
}

func (s *session) lock(ctx context.Context, a control.Lock) (control.Locked, error) {
	sp, err := s.span(a.Handle)
	if err != nil {
		return control.Locked{}, err
	}
	s.mu.Lock()
	full := len(s.locks)+s.waiting >= s.srv.limits.Locks
	if !full {
		s.waiting++
	}
	s.mu.Unlock()
	if full {
		return control.Locked{}, &wire.Error{Code: wire.Limit, Op: "lock", Span: sp.Label(), Message: "the session has too many locks"}
	}
	id, abandoned, err := sp.Lock(ctx, s.owner, a.Offset, a.Length, a.Exclusive)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting--
	if err != nil {
		return control.Locked{}, err
	}
	h := newHandle(s.locks)
	s.locks[h] = heldLock{sp, id}
	return control.Locked{Lock: h, Abandoned: abandoned}, nil
}

func (s *session) unlock(_ context.Context, a control.Unlock) (none, error) {
	s.mu.Lock()
	l, ok := s.locks[a.Lock]
	delete(s.locks, a.Lock)
	s.mu.Unlock()
	if !ok {
		return none{}, &wire.Error{Code: wire.NotHeld, Op: "unlock", Message: "the session does not hold this lock"}
	}
	return none{}, l.span.Unlock(s.owner, l.id)
}
