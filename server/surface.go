// SPDX-License-Identifier: Apache-2.0

package server

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/memspan/memspan/span"
	"github.com/memspan/memspan/surface"
	"github.com/memspan/memspan/tier"
	"github.com/memspan/memspan/wire"
	"github.com/memspan/memspan/wire/control"
)

// A surfaceHandle is a surface that a session writes or has open.
type surfaceHandle struct {
	exposure  *surface.Exposure // being written, else nil
	opening   *surface.Opening  // open, else nil
	decrypter *decrypter        // of one that is opened for who reads it, else nil

	gone context.Context // ends with the handle
	end  context.CancelFunc
}

func newSurfaceHandle(e *surface.Exposure, o *surface.Opening) *surfaceHandle {
	h := &surfaceHandle{exposure: e, opening: o}
	h.gone, h.end = context.WithCancel(context.Background())
	return h
}

func (h *surfaceHandle) close() {
	h.end()
	if h.exposure != nil {
		h.exposure.Fail(errExposerGone)
	}
	if h.opening != nil {
		h.opening.Close()
	}
}

var errExposerGone = errors.New("its session ended, or gave it up")

// addSurface gives a surface a handle of this session.
func (s *session) addSurface(h *surfaceHandle) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	most := s.srv.limits.Handles
	if s.guest {
		most = min(most, guestSurfaces)
	}
	if len(s.surfaces) >= most {
		return 0, &wire.Error{Code: wire.Limit, Op: "open", Message: fmt.Sprintf("the session has %d surfaces: close some", len(s.surfaces))}
	}
	id := newHandle(s.surfaces)
	s.surfaces[id] = h
	if s.guest {
		s.idle.Stop()
	}
	return id, nil
}

// guestSurfaces is how many surfaces a guest has open at a time: a puller has one, and who
// has one ticket could otherwise fill the memory with openings of it, from all his sessions.
const guestSurfaces = 16

// surface returns what a handle means, or nil if it is none of a surface.
func (s *session) surface(handle uint64) *surfaceHandle {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.surfaces[handle]
}

// opened returns the handle of a surface that the session has open.
func (s *session) opened(handle uint64) (*surfaceHandle, error) {
	if h := s.surface(handle); h != nil && h.opening != nil {
		return h, nil
	}
	return nil, errNoSurface
}

var errNoSurface = &wire.Error{Code: wire.NotFound, Message: "the session has no such handle: open the surface first"}

// dropSurface takes a handle from the session and reports whether it was one of a
// surface.
func (s *session) dropSurface(handle uint64) bool {
	s.mu.Lock()
	h := s.surfaces[handle]
	delete(s.surfaces, handle)
	if s.guest && h != nil && len(s.surfaces) == 0 {
		s.idle.Reset(s.srv.guestTime)
	}
	s.mu.Unlock()
	if h == nil {
		return false
	}
	h.close()
	return true
}

// guestMay reports whether a session that has a ticket and no token may ask for
// op.
func guestMay(op control.Op) bool {
	return slices.Contains([]control.Op{control.OpSurfaceOpen, control.OpSurfaceWait, control.OpSurfaceDigests, control.OpClose, control.OpCancel}, op)
}

// takeExposed takes the descriptor that came with a request to expose: now, for
// what is not taken is closed before the next request is read. It is nil if there is none.
func (s *session) takeExposed(req control.Request) *os.File {
	var a control.Expose
	if s.files == nil || req.Op != control.OpExpose || decode(req.Args, &a) != nil {
		return nil
	}
	if a.Source != control.ExposeMemory && a.Source != control.ExposeFile {
		return nil
	}
	f, err := s.files.TakeRead(s.conn.Buffered())
	if err != nil {
		return nil
	}
	return f
}

// dropFiles closes the descriptors that came with frames that have been read: they
// must not be taken for another's.
func (s *session) dropFiles() {
	for s.files != nil {
		f, err := s.files.TakeRead(s.conn.Buffered())
		if err != nil {
			return
		}
		f.Close()
	}
}

// expose makes a surface. The file that came with the request stays the caller's.
func (s *session) expose(ctx context.Context, a control.Expose, file *os.File) (control.Exposed, error) {
	spec := surface.Spec{
		Name: a.Name, ContentType: a.ContentType, Chunk: a.Chunk, Size: a.Size,
		Encrypted: a.Encrypted, ReadOnce: a.ReadOnce,
	}
	if a.Lifetime < 0 || a.Lifetime > int64(maxLifetime/time.Millisecond) {
		return control.Exposed{}, &wire.Error{Code: wire.Invalid, Op: "expose", Message: fmt.Sprintf("a lifetime of %d ms: want 0 to %d", a.Lifetime, int64(maxLifetime/time.Millisecond))}
	}
	if a.Lifetime > 0 {
		spec.Expires = time.Now().Add(time.Duration(a.Lifetime) * time.Millisecond)
	}
	switch a.Source {
	case control.ExposeMemory, control.ExposeFile:
		if file == nil {
			return control.Exposed{}, &wire.Error{Code: wire.Unsupported, Op: "expose", Message: "no file came with the request; files are handed over on unix sockets alone: elsewhere write the bytes"}
		}
		if a.Source == control.ExposeMemory {
			e, err := s.srv.surfaces.Take(ctx, spec, file)
			if err != nil {
				return control.Exposed{}, err
			}
			return s.srv.exposed(e)
		}
		spec.Sparse = true
		return s.exposeWhole(ctx, spec, func(e *surface.Exposure) error { return e.CopyFile(ctx, file) })
	case control.ExposeSpan:
		sp, err := s.span(a.Handle)
		if err != nil {
			return control.Exposed{}, err
		}
		spec.Size = sp.Size
		return s.exposeWhole(ctx, spec, func(e *surface.Exposure) error { return s.copySpan(ctx, e, sp) })
	case control.ExposeWritten:
		e, err := s.srv.surfaces.Create(ctx, spec)
		if err != nil {
			return control.Exposed{}, err
		}
		h := newSurfaceHandle(e, nil)
		reply, err := s.srv.exposed(e)
		if err == nil {
			reply.Handle, err = s.addSurface(h)
		}
		if err != nil {
			h.close()
			return control.Exposed{}, err
		}
		return reply, nil
	}
	return control.Exposed{}, &wire.Error{Code: wire.Invalid, Op: "expose", Message: fmt.Sprintf("unknown source %q", a.Source)}
}

// unexpose takes back a surface that its exposer was not told of.
func (s *session) unexpose(e control.Exposed) {
	if id, err := surface.ParseID(e.ID); err == nil {
		_ = s.srv.surfaces.Revoke(id) // it may have ended by itself
	}
	s.dropSurface(e.Handle)
}

// maxLifetime bounds what a lifetime may be, so that the time it ends can be
// written down.
const maxLifetime = 100 * 365 * 24 * time.Hour

// exposeWhole makes a surface that fill copies.
func (s *session) exposeWhole(ctx context.Context, spec surface.Spec, fill func(*surface.Exposure) error) (control.Exposed, error) {
	e, err := s.srv.surfaces.Create(ctx, spec)
	if err != nil {
		return control.Exposed{}, err
	}
	if err = fill(e); err == nil {
		_, err = e.Seal(ctx)
	}
	if err != nil {
		e.Fail(err)
		return control.Exposed{}, err
	}
	return s.srv.exposed(e)
}

// seal ends the writing of a surface.
func (s *session) seal(ctx context.Context, a control.Handle) (control.Exposed, error) {
	h := s.surface(a.Handle)
	if h == nil || h.exposure == nil {
		return control.Exposed{}, &wire.Error{Code: wire.NotFound, Op: "seal", Message: "the session writes no such surface"}
	}
	if _, err := h.exposure.Seal(ctx); err != nil {
		return control.Exposed{}, err
	}
	s.mu.Lock()
	delete(s.surfaces, a.Handle)
	s.mu.Unlock()
	return s.srv.exposed(h.exposure)
}

// exposed describes a surface that this server's user has exposed.
func (srv *Server) exposed(e *surface.Exposure) (control.Exposed, error) {
	t := e.Ticket()
	t.Addresses = srv.addresses
	t.Machine = srv.machine
	text, err := t.Text()
	if err != nil {
		return control.Exposed{}, err
	}
	st := e.Stat()
	return control.Exposed{ID: e.ID().String(), Ticket: text, Size: st.Size, Copied: st.Copied, Memory: st.Memory}, nil
}

// copySpan copies a span's bytes to a surface, block by block. Blocks that were
// never written take no memory.
func (s *session) copySpan(ctx context.Context, e *surface.Exposure, sp *span.Span) error {
	data, err := written(sp)
	if err != nil {
		return err
	}
	return e.CopyFrom(ctx, data, func(p []byte, off int64) error {
		scratch, err := s.srv.store.Scratch(ctx)
		if err != nil {
			return err
		}
		defer s.srv.store.PutScratch(scratch)
		for len(p) > 0 {
			n := min(int64(len(p)), tier.BlockSize-off%tier.BlockSize)
			if err := sp.Read(ctx, off, scratch.Slice(0, n)); err != nil {
				return err
			}
			copy(p, scratch.Bytes()[:n])
			p, off = p[n:], off+n
		}
		return nil
	})
}

// written returns the parts of a span that were ever written, whole blocks.
func written(sp *span.Span) ([][2]int64, error) {
	data := [][2]int64{} // not nil: that would be all of it
	at := int64(0)
	err := sp.Versions(0, sp.Size, func(v uint64) {
		end := min(at+tier.BlockSize, sp.Size)
		if last := len(data) - 1; v != 0 && last >= 0 && data[last][1] == at {
			data[last][1] = end
		} else if v != 0 {
			data = append(data, [2]int64{at, end})
		}
		at = end
	})
	return data, err
}

// appendSurface stores what a transfer frame brings of a surface that is being written.
func (s *session) appendSurface(ctx context.Context, j *dataJob, e *surface.Exposure) error {
	off, n, err := signed(j.command)
	if err == nil && off != e.Appended() {
		err = &wire.Error{Code: wire.WrongState, Op: "write", Offset: off, Length: n,
			Message: fmt.Sprintf("a surface is written from its beginning on, without gaps: byte %d is next", e.Appended())}
	}
	if err == nil {
		err = e.Append(ctx, j.data.Bytes()[:n])
	}
	if err != nil {
		return s.failData(j, err)
	}
	s.bytesWritten.Add(n)
	return s.answer(j, wire.AppendResult(nil, vkSuccess))
}

// readSurface answers a read frame from a surface's memory.
func (s *session) readSurface(j *dataJob, h *surfaceHandle) error {
	off, n, err := signed(j.command)
	if err != nil {
		return s.failData(j, err)
	}
	read := h.opening.ReadStored
	if h.decrypter != nil {
		read = h.decrypter.read
	}
	var unsent error // that the answer could not be written ends the connection
	err = read(off, n, func(data []byte) error {
		s.bytesRead.Add(n)
		unsent = s.answer(j, wire.AppendResult(nil, vkSuccess), data)
		return nil
	})
	if err != nil {
		return s.failData(j, err)
	}
	return unsent
}

// maxRuns is how many runs of chunks one answer has.
const maxRuns = 4096

// surfaceState tells what is there, from a chunk on, with its first digests unless the
// memory is handed over.
func surfaceState(o *surface.Opening, p surface.Progress, from int64, direct bool) (control.SurfaceState, error) {
	runs, more, err := o.Runs(from, maxRuns)
	st := control.SurfaceState{Sequence: p.Sequence, Sealed: p.State == surface.Sealed, Size: p.Size, Count: p.Count, More: more}
	for _, r := range runs {
		st.Have = append(st.Have, control.ChunkRun(r))
	}
	if p.Root != nil {
		st.Root = p.Root[:]
	}
	// Whoever learns of a chunk asks for its digest next.
	if err == nil && !direct && len(runs) > 0 && runs[0].First == from {
		st.Digests, err = o.Digests(nil, from, min(runs[0].Count, maxUnasked))
	}
	return st, err
}

// maxUnasked is how many digests are told with the chunks that are there.
const maxUnasked = 64

// openSurface answers OpSurfaceOpen.
func (s *session) openSurface(h wire.Header, args json.RawMessage) error {
	var a control.SurfaceOpen
	if err := decode(args, &a); err != nil {
		return s.replyError(h, err)
	}
	id, err := surface.ParseID(a.ID)
	var proof surface.Proof
	if err == nil && len(a.Proof) != len(proof) {
		err = &wire.Error{Code: wire.Invalid, Op: "open", Message: fmt.Sprintf("a proof of %d bytes, want %d", len(a.Proof), len(proof))}
	}
	var o *surface.Opening
	if err == nil {
		copy(proof[:], a.Proof)
		o, err = s.srv.surfaces.Open(surface.Request{
			Who: s.who(), ID: id, Caveats: a.Caveats, Proof: proof, Nonce: s.nonce, Binding: s.binding,
		})
	}
	if err != nil {
		return s.replyError(h, err)
	}
	return s.answerOpened(h, newSurfaceHandle(nil, o), a.Direct)
}

// who names who asks, for counting how often he was wrong: a machine, or its network.
func (s *session) who() string { return cmp.Or(guestAddress(s.peer.Peer), here) }

// answerOpened gives an opening a handle, and the client what it needs.
func (s *session) answerOpened(h wire.Header, sh *surfaceHandle, direct bool) error {
	o := sh.opening
	direct = direct && s.direct && o.Direct()
	p, err := o.Progress()
	var st control.SurfaceState
	if err == nil {
		st, err = surfaceState(o, p, 0, direct)
	}
	header := o.Header()
	reply := control.SurfaceOpened{
		Direct: direct, ReadOnce: o.ReadOnce(),
		Header: header.AppendHeader(nil),
		State:  st,
	}
	if err == nil {
		reply.Handle, err = s.addSurface(sh)
	}
	if err != nil {
		sh.close()
		return s.replyError(h, err)
	}
	if !reply.Direct {
		return s.reply(h, reply)
	}
	var unsent error // that the answer could not be written ends the connection
	err = o.Files(func(memory, page *os.File) error {
		unsent = s.passFiles(h, reply, memory, page)
		return nil
	})
	if err != nil { // it has just ended
		s.dropSurface(reply.Handle)
		return s.replyError(h, err)
	}
	return unsent
}

// waitSurface answers when a surface is not as the client knows it any more.
func (s *session) waitSurface(ctx context.Context, a control.SurfaceWait) (control.SurfaceState, error) {
	h, err := s.opened(a.Handle)
	if err != nil {
		return control.SurfaceState{}, err
	}
	if a.From < 0 {
		return control.SurfaceState{}, &wire.Error{Code: wire.Invalid, Op: "wait", Message: fmt.Sprintf("from chunk %d", a.From)}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(h.gone, func() { cancel(errNoSurface) })()
	p, err := h.opening.Wait(ctx, a.Sequence)
	if err != nil {
		return control.SurfaceState{}, err
	}
	return surfaceState(h.opening, p, a.From, false)
}

// maxDigests is how many digests one answer has.
const maxDigests = 8192

func (s *session) surfaceDigests(_ context.Context, a control.SurfaceDigests) (control.Digests, error) {
	h, err := s.opened(a.Handle)
	if err != nil {
		return control.Digests{}, err
	}
	if a.Count < 0 || a.Count > maxDigests {
		return control.Digests{}, &wire.Error{Code: wire.Limit, Op: "digests", Message: fmt.Sprintf("%d chunks at once: want at most %d", a.Count, maxDigests)}
	}
	var d control.Digests
	d.Digests, err = h.opening.Digests(nil, a.First, a.Count)
	return d, err
}

func (s *session) listSurfaces(_ context.Context, a control.SurfaceList) (control.Surfaces, error) {
	type placed struct {
		place string
		surface.Stat
	}
	var all []placed
	for _, st := range s.srv.surfaces.List() {
		if place := listPlace(st); place > a.After {
			all = append(all, placed{place, st})
		}
	}
	slices.SortFunc(all, func(x, y placed) int { return cmp.Compare(x.place, y.place) })
	list := control.Surfaces{Surfaces: []control.SurfaceStat{}}
	size := 0
	for i, st := range all {
		if size > maxListed {
			list.More = all[i-1].place
			break
		}
		one := control.SurfaceStat{
			ID: st.ID.String(), Name: st.Name, ContentType: st.ContentType, Size: st.Size, Chunk: st.Chunk,
			Chunks: st.Chunks, Have: st.Have, Sealed: st.State == surface.Sealed, Replica: st.Replica,
			ReadOnce: st.ReadOnce, Encrypted: st.Encrypted, Created: st.Created, Expires: st.Expires,
			Pullers: st.Pullers, Pulls: st.Pulls, Direct: st.Direct, Given: st.Given, Waiting: st.Waiting,
			Memory: st.Memory,
		}
		if st.Reason != nil {
			one.Error = st.Reason.Error()
			one.Error = one.Error[:min(len(one.Error), maxReason)]
		}
		text, err := json.Marshal(one)
		if err != nil {
			return list, err
		}
		size += len(text)
		list.Surfaces = append(list.Surfaces, one)
	}
	return list, nil
}

// listPlace returns where in the list a surface stands, as text that can be compared:
// those that have not failed come first, then by their time of creation.
func listPlace(st surface.Stat) string {
	failed := 0
	if st.State == surface.Failed {
		failed = 1
	}
	return fmt.Sprintf("%d %020d %v", failed, st.Created.UnixNano(), st.ID)
}

// What one answer describes is bounded so that it fits into a message, whatever is
// in names and errors: each byte may take six.
const (
	maxListed = 768 << 10 // bytes, but for the last surface
	maxReason = 512       // bytes of why one failed
)

func (s *session) revoke(_ context.Context, a control.SurfaceID) (none, error) {
	id, err := surface.ParseID(a.ID)
	if err != nil {
		return none{}, err
	}
	return none{}, s.srv.surfaces.Revoke(id)
}
