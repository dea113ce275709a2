// SPDX-License-Identifier: Apache-2.0

package memspan

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"github.com/memspan/memspan/mapping"
	"github.com/memspan/memspan/wire"
	"github.com/memspan/memspan/wire/control"
)

// A shadow is a mapping's local copy of the span's bytes and what is known of
// their versions. Whoever has the mapping's turn uses it.
type shadow struct {
	m   *Mapping
	buf *mapping.Shadow

	// base holds for each block, the first of which is number first of the
	// span, the version whose bytes were all seen here. Flushes are based on
	// it, and Invalidate fetches the blocks that have another.
	first int64
	base  []uint64

	under  []flushFrame // sent and not answered, oldest first
	last   Commit       // of the last flush that sent anything
	known  bool         // last is set
	prefix []byte       // room for a frame's
	runs   []wire.Run   // room for a frame's
}

// A flushFrame is one block's change on its way.
type flushFrame struct {
	call   *call
	change *mapping.Change
	block  int // index in base
}

// mergeWindow is how many blocks Invalidate has on their way to a merge: they
// take memory of their own meanwhile.
const mergeWindow = 4

func newShadow(m *Mapping, versions []control.VersionRun) (*shadow, error) {
	c := m.span.client
	size := c.blockSize
	first := m.off / size
	blocks := (m.off+m.n-1)/size - first + 1
	base, err := expand(versions, blocks)
	if err != nil {
		return nil, c.broken(err)
	}
	tracking := c.tracking
	if m.mode.blind() {
		tracking = mapping.Named
	}
	buf, err := mapping.NewShadow(c.pool, m.off, m.n, size, m.mode&access != ReadOnly, tracking)
	if err != nil {
		return nil, err
	}
	return &shadow{m: m, buf: buf, first: first, base: base}, nil
}

// expand lists the version of each of n blocks.
func expand(runs []control.VersionRun, n int64) ([]uint64, error) {
	versions := make([]uint64, 0, n)
	for _, r := range runs {
		if r.Count <= 0 || r.Count > n-int64(len(versions)) {
			return nil, protocolError("versions of more than the %d blocks that are mapped", n)
		}
		versions = append(versions, slices.Repeat([]uint64{r.Version}, int(r.Count))...)
	}
	if int64(len(versions)) != n {
		return nil, protocolError("versions of %d of the %d blocks that are mapped", len(versions), n)
	}
	return versions, nil
}

// broken ends the connection to a server that broke the protocol's rules.
func (c *Client) broken(err error) error {
	c.link.fail(peerLost(err))
	return c.link.lostErr()
}

// extent returns the mapped part of blocks [i, j) of base.
func (sh *shadow) extent(i, j int) (off, n int64) {
	size := sh.m.span.client.blockSize
	off = max(sh.m.off, (sh.first+int64(i))*size)
	end := min(sh.m.off+sh.m.n, (sh.first+int64(j))*size)
	return off, end - off
}

// fill receives what was ever written, and nothing else.
func (sh *shadow) fill(ctx context.Context) error {
	for i := 0; i < len(sh.base); {
		if sh.base[i] == 0 {
			i++
			continue
		}
		j := i + 1
		for j < len(sh.base) && sh.base[j] != 0 {
			j++
		}
		off, n := sh.extent(i, j)
		err := sh.buf.Fill(off, n, func(dst []byte) error {
			_, err := sh.m.span.read(ctx, dst, off)
			return err
		})
		if err != nil {
			return err
		}
		i = j
	}
	return nil
}

// A flushing is one flush under way.
type flushing struct {
	*shadow
	final   bool            // the user stores no more
	held    *mapping.Change // found, not sent: it may be the last
	sent    bool
	staged  []flushFrame // held by the server only once all of the flush is
	version uint64
	holders TierMask
	errs    []error
}

// flush sends what was stored to the ranges. All frames of a flush but the
// last say that more follow, so one change is held back until the next is
// found.
//
// Last says that the user stores no more.
func (sh *shadow) flush(ctx context.Context, ranges []Range, last bool) error {
	if err := sh.settle(ctx, 0, nil); err != nil { // left by a flush that was canceled
		return err
	}
	f := &flushing{shadow: sh, final: last, holders: sh.m.span.client.tiers}
	err := f.collect(ctx, join(ranges))
	if err == nil && f.held != nil {
		err = f.send(ctx, false)
	}
	if f.held != nil {
		sh.buf.Nack(f.held)
	}
	if serr := sh.settle(ctx, 0, f); err == nil {
		err = serr
	}
	if serr := f.finish(ctx, err == nil && f.fatal() == nil); err == nil {
		err = serr
	}
	if f.sent {
		sh.last = Commit{Version: f.version, Holders: f.holders}
		sh.known = err == nil && len(f.errs) == 0 // else not all is answered
	}
	if err != nil {
		return err
	}
	if len(f.errs) == 1 {
		return f.errs[0]
	}
	return errors.Join(f.errs...)
}

// join sorts ranges and joins those that overlap or touch.
func join(ranges []Range) []Range {
	if len(ranges) < 2 {
		return ranges
	}
	ranges = slices.Clone(ranges)
	slices.SortFunc(ranges, func(a, b Range) int { return cmp.Compare(a.Offset, b.Offset) })
	out := ranges[:1]
	for _, r := range ranges[1:] {
		last := &out[len(out)-1]
		if r.Offset > last.Offset+last.Length {
			out = append(out, r)
			continue
		}
		last.Length = max(last.Length, r.Offset+r.Length-last.Offset)
	}
	return out
}

// collect sends all changes but the last, which it leaves in f.held.
func (f *flushing) collect(ctx context.Context, ranges []Range) error {
	yield := func(c *mapping.Change) error {
		if f.held != nil {
			if err := f.send(ctx, true); err != nil {
				return err
			}
		}
		f.held = c
		return nil
	}
	if f.m.mode.blind() {
		collect := f.buf.CollectNamed
		if f.final {
			collect = f.buf.CollectLast
		}
		for _, r := range ranges {
			if err := collect(ctx, r.Offset, r.Length, yield); err != nil {
				return err
			}
		}
		return nil
	}
	ranges, err := f.trim(ctx, ranges)
	if err != nil {
		return err
	}
	for i, r := range ranges {
		if err := f.buf.Collect(ctx, r.Offset, r.Length, yield); err != nil {
			return err
		}
		if i == len(ranges)-1 {
			break
		}
		// The next Collect would take what is not settled for not applied.
		if f.held != nil {
			if err := f.send(ctx, true); err != nil {
				return err
			}
		}
		if err := f.settle(ctx, 0, f); err != nil {
			return err
		}
	}
	return nil
}

// trim takes off the ranges at the end in which nothing was stored, so that
// the last change of the last range is the flush's last.
func (f *flushing) trim(ctx context.Context, ranges []Range) ([]Range, error) {
	found := errors.New("found")
	for len(ranges) > 1 {
		r := ranges[len(ranges)-1]
		err := f.buf.Collect(ctx, r.Offset, r.Length, func(*mapping.Change) error { return found })
		if errors.Is(err, found) {
			break
		}
		if err != nil {
			return nil, err
		}
		ranges = ranges[:len(ranges)-1]
	}
	return ranges, nil
}

// send sends the change that was held back.
func (f *flushing) send(ctx context.Context, more bool) error {
	if room := f.room(); len(f.under) > room {
		if room == smallFrames-1 {
			room /= 2 // many frames leave together, and so do their answers
		}
		if err := f.settle(ctx, room, f); err != nil {
			return err
		}
	}
	if err := f.fatal(); err != nil {
		return err
	}
	flags := partFlags(!f.sent, more)
	change := f.held
	block := int(change.Block - f.first)
	base := f.base[block]
	if f.m.mode&LastWriterWins != 0 || f.m.mode.blind() {
		base = wire.AnyVersion
	}
	f.runs = f.runs[:0]
	for _, r := range change.Runs {
		f.runs = append(f.runs, wire.Run(r))
	}
	f.prefix = wire.AppendFlush(f.prefix[:0], wire.Flush{Mapping: f.m.id, Block: uint64(change.Block), Base: base, Runs: f.runs})
	l := f.m.span.client.link
	c := l.newCall(wire.KindFlush)
	send := l.send
	if more {
		send = l.queue
	}
	if err := send(c, flags, f.prefix, change.Data); err != nil {
		l.release(c)
		return err
	}
	f.under = append(f.under, flushFrame{c, change, block})
	f.held, f.sent = nil, true
	return nil
}

// smallFrames is how many flush frames may be under way if they are small:
// what a sparse flush has to wait for is answers, not the link.
const (
	smallFrames = 8 * window
	smallData   = 1 << 20 // bytes of all of them
)

// room is how many frames may be under way beside the one to be sent.
func (f *flushing) room() int {
	data := len(f.held.Data)
	for _, frame := range f.under {
		data += len(frame.change.Data)
	}
	if data <= smallData {
		return smallFrames - 1
	}
	return window - 1
}

// fatal returns the first error that keeps further blocks from being sent. A
// conflict concerns its block alone, and a debt is a change that is stored.
func (f *flushing) fatal() error {
	for _, err := range f.errs {
		if !errors.Is(err, ErrConflict) && !errors.Is(err, ErrDebt) {
			return err
		}
	}
	return nil
}

// settle takes in answers until at most keep frames are not answered. If ctx
// ends before, they stay for whoever uses the shadow next. What the answers
// say goes to f; it is nil if the flush they belong to has returned.
func (sh *shadow) settle(ctx context.Context, keep int, f *flushing) error {
	l := sh.m.span.client.link
	if len(sh.under) > keep {
		l.push()
	}
	for len(sh.under) > keep {
		frame := sh.under[0]
		if !l.wait(ctx, frame.call) {
			return canceled(ctx)
		}
		sh.under = slices.Delete(sh.under, 0, 1)
		err := frame.call.err
		var reply wire.FlushReply
		if err == nil {
			if reply, err = wire.ParseFlushReply(frame.call.prefix); err != nil {
				err = sh.m.span.client.broken(protocolError("answer to a flush: %w", err))
			}
		}
		l.release(frame.call)
		sh.answered(frame, reply, err, f)
	}
	return nil
}

// answered takes in one answer.
func (sh *shadow) answered(frame flushFrame, reply wire.FlushReply, err error, f *flushing) {
	var e *Error
	switch {
	case err == nil && reply.Block == 0: // it waits for the flush's last frame
		if f != nil {
			f.staged = append(f.staged, frame)
		} else {
			sh.buf.Nack(frame.change)
		}
		return
	case err == nil:
		sh.buf.Ack(frame.change)
		sh.saw(frame.block, reply.Block)
		if f != nil {
			f.version = reply.Span
			f.holders = f.holders.Intersect(TierMask(reply.Holders))
		}
		return
	case errors.As(err, &e) && e.Code == ErrDebt: // stored all the same
		sh.buf.Ack(frame.change)
		sh.saw(frame.block, e.Version)
	default:
		sh.buf.Nack(frame.change)
	}
	if f != nil {
		f.errs = append(f.errs, err)
	}
}

// finish settles the changes that the server holds only if all of the flush was
// stored, and asks for the versions that they made.
func (f *flushing) finish(ctx context.Context, stored bool) error {
	if len(f.staged) == 0 {
		return nil
	}
	for _, err := range f.errs {
		stored = stored && errors.Is(err, ErrDebt)
	}
	for _, frame := range f.staged {
		if stored {
			f.buf.Ack(frame.change)
		} else {
			f.buf.Nack(frame.change)
		}
	}
	if !stored {
		return nil
	}
	c := f.m.span.client
	answer, err := ask[control.Versions](ctx, c, control.OpVersions, control.Mapping{Mapping: f.m.id})
	if err != nil {
		return err
	}
	now, err := expand(answer.Versions, int64(len(f.base)))
	if err != nil {
		return c.broken(err)
	}
	for _, frame := range f.staged {
		f.saw(frame.block, now[frame.block])
	}
	return nil
}

// saw notes the version that a flush made. If it is the one after the last
// that was seen whole, it is seen whole too. Otherwise others committed in
// between, and their bytes are still to be fetched.
func (sh *shadow) saw(block int, version uint64) {
	if version == sh.base[block]+1 {
		sh.base[block] = version
	}
}

// lastCommit returns what is known of the span's last commit.
func (sh *shadow) lastCommit(ctx context.Context) (Commit, error) {
	if sh.known {
		return sh.last, nil
	}
	s := sh.m.span
	st, err := ask[SpanStat](ctx, s.client, control.OpStat, control.Handle{Handle: s.handle})
	if err != nil {
		return Commit{}, err
	}
	sh.last, sh.known = Commit{Version: st.Version}, true
	for t := range s.client.tiers.All() {
		if st.Tiers[t.String()].Current == st.Blocks {
			sh.last.Holders.Add(t)
		}
	}
	return sh.last, nil
}

// invalidate fetches the blocks of the ranges that have another version, and
// merges them. The version is asked for before the bytes, so that what is
// noted is never newer than what was seen.
func (sh *shadow) invalidate(ctx context.Context, ranges []Range) error {
	if err := sh.settle(ctx, 0, nil); err != nil {
		return err
	}
	c := sh.m.span.client
	answer, err := ask[control.Versions](ctx, c, control.OpVersions, control.Mapping{Mapping: sh.m.id})
	if err != nil {
		return err
	}
	now, err := expand(answer.Versions, int64(len(sh.base)))
	if err != nil {
		return c.broken(err)
	}
	f := fetching{shadow: sh, now: now}
	err = f.blocks(ctx, join(ranges))
	f.abandon()
	return err
}

// A fetching is one invalidate under way.
type fetching struct {
	*shadow
	now   []uint64
	under flight
	which [window]fetched // beside under
}

// A fetched is a block on its way.
type fetched struct {
	block int
	room  *[]byte
}

func (f *fetching) blocks(ctx context.Context, ranges []Range) error {
	size := f.m.span.client.blockSize
	next := 0 // blocks before it have been looked at
	for _, r := range ranges {
		end := int((r.Offset+r.Length-1)/size-f.first) + 1
		for i := max(next, int(r.Offset/size-f.first)); i < end; i++ {
			if f.now[i] == f.base[i] {
				continue
			}
			if f.under.n == mergeWindow {
				if err := f.merge(ctx); err != nil {
					return err
				}
			}
			if err := f.ask(i); err != nil {
				return err
			}
		}
		next = max(next, end)
	}
	for f.under.n > 0 {
		if err := f.merge(ctx); err != nil {
			return err
		}
	}
	return nil
}

// ask asks for block i.
func (f *fetching) ask(i int) error {
	client := f.m.span.client
	off, n := f.extent(i, i+1)
	room := client.blocks.Get().(*[]byte)
	c := client.link.newCall(wire.KindRead)
	c.data = (*room)[:n]
	if err := client.link.sendRead(c, f.m.span.handle, off); err != nil {
		client.link.release(c)
		client.blocks.Put(room)
		return err
	}
	f.which[(f.under.head+f.under.n)%window] = fetched{i, room}
	f.under.push(c)
	return nil
}

// merge waits for the oldest block and merges it.
func (f *fetching) merge(ctx context.Context) error {
	client := f.m.span.client
	b := f.which[f.under.head]
	c := f.under.pop()
	defer client.blocks.Put(b.room)
	defer client.link.release(c)
	if err := client.link.await(ctx, c); err != nil {
		return err
	}
	off, _ := f.extent(b.block, b.block+1)
	if err := f.buf.Merge(off, c.data); err != nil {
		return err
	}
	f.base[b.block] = f.now[b.block]
	return nil
}

// abandon gives up what is still on its way.
func (f *fetching) abandon() {
	client := f.m.span.client
	for f.under.n > 0 {
		b := f.which[f.under.head]
		c := f.under.pop()
		client.link.abandon(c)
		client.link.release(c)
		client.blocks.Put(b.room)
	}
}

// close gives up what is on its way and returns the memory to the pool.
func (sh *shadow) close() error {
	l := sh.m.span.client.link
	for _, frame := range sh.under {
		l.abandon(frame.call)
		l.release(frame.call)
	}
	sh.under = nil
	return sh.buf.Close()
}
