// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/memspan/memspan/span"
	"github.com/memspan/memspan/tier"
	"github.com/memspan/memspan/wire"
	"github.com/memspan/memspan/wire/control"
)

// startControl reads a control request and carries it out: here if that waits
// for nothing, so that it is done before what follows is looked at, otherwise
// in a goroutine. It returns an error if the connection must end.
func (s *session) startControl(ctx context.Context, h wire.Header) error {
	var req control.Request
	if err := s.readJSON(h, &req); err != nil {
		return fmt.Errorf("control request: %w", err)
	}
	if req.Op != control.OpSurfaceOpen || s.frames > 1 { // the first is over before another could begin
		s.yield()
	}
	s.mu.Lock()
	_, dup := s.cancels[h.ID]
	s.mu.Unlock()
	if dup {
		return fmt.Errorf("request id %d is under way already", h.ID)
	}
	if s.guest && !guestMay(req.Op) {
		return s.refuse(h, wire.Unauthenticated, fmt.Sprintf("%s is not for guests, who may pull surfaces and nothing else: dial with a token", req.Op))
	}
	if req.Op == control.OpCancel {
		return s.cancelRequest(h, req.Args)
	}
	if s.immediate(req) {
		err := s.answerControl(ctx, h, req, nil)
		s.mu.Lock()
		s.settle()
		s.mu.Unlock()
		return err
	}
	if req.Op == control.OpMap {
		if done, err := s.mapAtOnce(h, req.Args); done {
			return err
		}
	}
	if req.Op == control.OpVulkan {
		return s.lendGPU(h, req.Args)
	}
	if req.Op == control.OpSurfaceOpen {
		return s.openSurface(h, req.Args)
	}
	file := s.takeExposed(req)
	ctx, cancel := context.WithCancelCause(ctx)
	s.mu.Lock()
	full := len(s.cancels) >= s.srv.limits.Requests
	if !full {
		s.cancels[h.ID] = cancel
	}
	if !full && waitsForOthers(req.Op) {
		if s.waits[h.ID] = cancel; s.draining {
			cancel(errStopping)
		}
	}
	s.mu.Unlock()
	if full {
		cancel(nil)
		file.Close()
		return s.refuse(h, wire.Limit, fmt.Sprintf("%d control requests are under way already", s.srv.limits.Requests))
	}
	s.requests.Go(func() {
		defer cancel(nil)
		defer file.Close()
		err := s.answerControl(ctx, h, req, file)
		s.mu.Lock()
		delete(s.cancels, h.ID)
		delete(s.waits, h.ID)
		s.settle()
		s.mu.Unlock()
		if err != nil {
			// The reply could not be written: so the connection is at its end.
			s.raw.Close()
		}
	})
	return nil
}

// waitsForOthers reports whether a request may wait for as long as another client, or
// server, likes.
func waitsForOthers(op control.Op) bool {
	return op == control.OpSurfaceWait || op == control.OpPull || op == control.OpLock
}

// immediate reports whether a request waits for nothing.
func (s *session) immediate(req control.Request) bool {
	switch req.Op {
	case control.OpVersions:
		return true
	case control.OpUnmap: // unless what was stored is to be committed
		var a control.Mapping
		if decode(req.Args, &a) != nil {
			return true
		}
		m, err := s.mapping(a.Mapping)
		return err != nil || m.direct == nil || !m.write
	}
	return false
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

// answerControl carries out a request, with the file that came with it or nil.
func (s *session) answerControl(ctx context.Context, h wire.Header, req control.Request, file *os.File) error {
	switch req.Op { // whose replies may carry descriptors
	case control.OpMap:
		return s.mapRange(ctx, h, req.Args)
	case control.OpPull:
		return s.pull(ctx, h, req.Args)
	}
	result, err := s.control(ctx, req, file)
	made, exposed := result.(control.Exposed)
	exposed = exposed && err == nil && req.Op == control.OpExpose
	if exposed && ctx.Err() != nil { // nobody waits for it any more
		s.unexpose(made)
		err = context.Cause(ctx)
	}
	if err != nil {
		return s.replyError(h, err)
	}
	if err = s.reply(h, result); err != nil && exposed {
		s.unexpose(made)
	}
	return err
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

// orNothing returns the arguments of an operation that may have none.
func orNothing(args json.RawMessage) json.RawMessage {
	if len(args) == 0 {
		return json.RawMessage("{}")
	}
	return args
}

// none is the reply of operations that have nothing to say.
type none struct{}

func (s *session) control(ctx context.Context, req control.Request, file *os.File) (any, error) {
	switch req.Op {
	case control.OpAlloc:
		return call(ctx, req.Args, s.alloc)
	case control.OpOpen:
		return call(ctx, req.Args, s.open)
	case control.OpPublish:
		return call(ctx, req.Args, s.publish)
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
	case control.OpAdvise:
		return call(ctx, req.Args, s.advise)
	case control.OpCheck:
		return call(ctx, req.Args, s.check)
	case control.OpLock:
		return call(ctx, req.Args, s.lock)
	case control.OpUnlock:
		return call(ctx, req.Args, s.unlock)
	case control.OpExpose:
		return call(ctx, req.Args, func(ctx context.Context, a control.Expose) (control.Exposed, error) { return s.expose(ctx, a, file) })
	case control.OpSeal:
		return call(ctx, req.Args, s.seal)
	case control.OpSurfaces:
		return call(ctx, orNothing(req.Args), s.listSurfaces)
	case control.OpRevoke:
		return call(ctx, req.Args, s.revoke)
	case control.OpSurfaceWait:
		return call(ctx, req.Args, s.waitSurface)
	case control.OpSurfaceDigests:
		return call(ctx, req.Args, s.surfaceDigests)
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
	create := s.srv.store.Alloc
	if a.Unpublished {
		create = s.srv.store.Draft
	}
	sp, err := create(ctx, span.Info{
		Name: a.Name, Size: a.Size, Tier: a.Tier, Home: a.Home, Policy: a.Policy, Placement: placement,
	})
	if err != nil {
		return control.Opened{}, err
	}
	opened, err := s.addHandle(sp)
	if err != nil { // nobody would know of a span with a name
		return control.Opened{}, errors.Join(err, sp.Free())
	}
	return opened, sp.Forsake() // the handle is a user now
}

func (s *session) open(_ context.Context, a control.Open) (control.Opened, error) {
	sp, err := s.srv.store.Open(a.Name)
	if err != nil {
		return control.Opened{}, err
	}
	opened, err := s.addHandle(sp)
	return opened, errors.Join(err, sp.Forsake()) // the handle is a user now, if there is one
}

func (s *session) publish(ctx context.Context, a control.Publish) (none, error) {
	sp, err := s.span(a.Handle)
	if err != nil {
		return none{}, err
	}
	return none{}, s.srv.store.Publish(ctx, sp, a.Replace)
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
		Tier: sp.Preferred(), Home: sp.Home, Policy: sp.Policy, Created: sp.Created,
	}
	for name, p := range placements {
		if p == sp.Placement {
			info.Placement = name
		}
	}
	return info
}

func (s *session) closeHandle(_ context.Context, a control.Handle) (none, error) {
	if s.dropSurface(a.Handle) {
		return none{}, nil
	}
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
