// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/memspan/memspan/coherency"
	"github.com/memspan/memspan/span"
	"github.com/memspan/memspan/tier"
	"github.com/memspan/memspan/wire"
)

// vkSuccess is the VkResult of a request that was carried out.
const vkSuccess = 0

// inlineData is the most bytes of a data request that the reading goroutine
// carries out itself whatever it asks for: handing it over would cost more than
// it overlaps.
const inlineData = 16 << 10

// A dataJob is one data frame, received and checked.
type dataJob struct {
	header  wire.Header
	command wire.MemoryCommand // Transfer, Read
	flush   wire.Flush
	data    tier.Memory // staging memory, whole; none for Read
	queue   bool        // the answer may wait for the next
}

// startData receives a data frame and carries it out, here or on the lane. It
// returns an error if the connection must end.
func (s *session) startData(ctx context.Context, h wire.Header) error {
	j := &dataJob{header: h}
	s.prefix = slices.Grow(s.prefix[:0], int(h.Prefix))
	prefix, err := s.conn.ReadPrefix(s.prefix)
	if err != nil {
		return err
	}
	size := uint64(h.Raw)
	switch h.Kind {
	case wire.KindTransfer:
		if j.command, err = wire.ParseTransfer(prefix); err == nil && j.command.Size != size {
			err = fmt.Errorf("size %d, but %d bytes of data", j.command.Size, size)
		}
	case wire.KindRead:
		if j.command, err = wire.ParseRead(prefix); err == nil && size != 0 {
			err = fmt.Errorf("%d bytes of data with a read", size)
		}
		size = j.command.Size
	case wire.KindFlush:
		if j.flush, err = wire.ParseFlush(prefix, nil); err == nil && uint64(j.flush.DataLen()) != size {
			err = fmt.Errorf("runs of %d bytes, but %d bytes of data", j.flush.DataLen(), size)
		}
	}
	tooLarge := errors.Is(err, wire.ErrTooLarge)
	if err != nil && !tooLarge {
		// The frame is whole, so the stream is in step; its sender is not.
		return fmt.Errorf("frame of kind %v: %w", h.Kind, err)
	}
	if size == 0 || tooLarge {
		if err := s.conn.Discard(); err != nil {
			return err
		}
		return s.failData(j, &wire.Error{Code: wire.Invalid, Message: fmt.Sprintf(
			"%d bytes at once: want 1 to %d; ask for larger ranges in pieces", size, wire.MaxData)})
	}
	if h.Kind != wire.KindRead {
		if err := s.takeStaging(ctx, j); err != nil {
			return err
		}
		if err := s.conn.ReadData(j.data.Bytes()[:size]); err != nil {
			s.putStaging(j)
			return err
		}
	} else if err := s.conn.Discard(); err != nil {
		return err
	}
	if s.queued.Add(1) == 1 && (size <= inlineData || s.storesToRAM(j)) {
		if size <= inlineData {
			// If the next request is here already its answer goes with this one.
			j.queue = s.conn.FrameReceived()
		}
		err := s.carryOut(ctx, j)
		s.jobDone(nil)
		return err
	}
	s.lane <- j
	return nil
}

// takeStaging takes memory to receive a job's data into, once few enough others
// wait to be stored.
func (s *session) takeStaging(ctx context.Context, j *dataJob) (err error) {
	select {
	case s.stores <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if j.data, err = s.srv.store.Scratch(ctx); err != nil {
		<-s.stores
	}
	return err
}

func (s *session) putStaging(j *dataJob) {
	s.srv.store.PutScratch(j.data)
	<-s.stores
}

// storesToRAM reports whether a job copies what was received to RAM and waits
// for no device. The reading goroutine does that best: the bytes are in its
// processor's cache, and on two processors the other is busy sending.
func (s *session) storesToRAM(j *dataJob) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	var sp *span.Span
	switch j.header.Kind {
	case wire.KindTransfer:
		sp = s.handles[j.command.Memory]
	case wire.KindFlush:
		if m := s.mappings[j.flush.Mapping]; m != nil {
			sp = m.span
		}
	}
	return sp != nil && sp.Home == coherency.Host && sp.Preferred() == coherency.Host
}

// carryOut does what a data frame asks for and answers it.
func (s *session) carryOut(ctx context.Context, j *dataJob) error {
	if j.header.Kind == wire.KindRead {
		return s.read(ctx, j)
	}
	defer s.putStaging(j)
	if j.header.Kind == wire.KindTransfer {
		return s.transfer(ctx, j)
	}
	return s.flush(ctx, j)
}

func (s *session) answer(j *dataJob, prefix []byte, data ...[]byte) error {
	write := s.conn.WriteFrame
	if j.queue {
		write = s.conn.QueueFrame
	}
	return write(wire.Header{Kind: j.header.Kind, Flags: wire.FlagReply, ID: j.header.ID}, prefix, data...)
}

// failData answers a data frame with an error. It returns an error of its own
// if the connection must end.
func (s *session) failData(j *dataJob, err error) error { return s.replyError(j.header, err) }

func (s *session) read(ctx context.Context, j *dataJob) error {
	if h := s.surface(j.command.Memory); h != nil && h.opening != nil {
		return s.readSurface(j, h)
	}
	sp, err := s.span(j.command.Memory)
	if err != nil {
		return s.failData(j, err)
	}
	off, n, err := inBlock(j.command)
	if err != nil {
		return s.failData(j, err)
	}
	data, err := s.srv.store.Scratch(ctx)
	if err != nil {
		return err
	}
	if n > inlineData {
		if answered, err := s.lend(ctx, j, sp, data); answered {
			s.srv.store.PutScratch(data)
			return err
		}
	}
	if err := sp.Read(ctx, off, data.Slice(0, n)); err != nil {
		s.srv.store.PutScratch(data)
		return s.failData(j, err)
	}
	s.bytesRead.Add(n)
	j.data = data
	if n <= inlineData {
		return s.answerRead(j)
	}
	// The next block is copied while this one is sent.
	s.queued.Add(1)
	s.replies <- j
	return nil
}

// answerRead sends what read has brought to staging memory.
func (s *session) answerRead(j *dataJob) error {
	defer s.srv.store.PutScratch(j.data)
	return s.answer(j, wire.AppendResult(nil, vkSuccess), j.data.Bytes()[:j.command.Size])
}

// signed turns a command's range into a span's. What does not fit is outside
// of every span.
func signed(c wire.MemoryCommand) (off, n int64, err error) {
	if c.Offset > 1<<62 || c.Size > 1<<62 {
		return 0, 0, &wire.Error{Code: wire.OutOfRange, Message: fmt.Sprintf("offset %d, size %d", c.Offset, c.Size)}
	}
	return int64(c.Offset), int64(c.Size), nil
}

// inBlock is signed for commands to a span, which stay within one of its blocks: so that
// no reader finds a part of what a frame has brought, nor a writer's in what he reads.
func inBlock(c wire.MemoryCommand) (off, n int64, err error) {
	off, n, err = signed(c)
	if err == nil && off%tier.BlockSize+n > tier.BlockSize {
		err = &wire.Error{Code: wire.Invalid, Offset: off, Length: n, Message: fmt.Sprintf(
			"one frame's bytes lie in one block, and these cross a multiple of %d: send a frame for each block", tier.BlockSize)}
	}
	return off, n, err
}

func (s *session) transfer(ctx context.Context, j *dataJob) error {
	if h := s.surface(j.command.Memory); h != nil && h.exposure != nil {
		return s.appendSurface(ctx, j, h.exposure)
	}
	sp, err := s.span(j.command.Memory)
	if err != nil {
		return s.failData(j, err)
	}
	id := j.command.Memory
	more := j.header.Flags&wire.FlagMore != 0
	off, n, err := inBlock(j.command)
	if err != nil {
		return s.failData(j, err)
	}
	if b := s.joinBatch(id, j.header, sp, sp.Begin); b != nil {
		_, _, err = s.carryBatch(ctx, id, j.header, b, func(t *span.Batch) error { return t.Write(ctx, off, j.data.Slice(0, n)) })
	} else {
		var changed bool
		changed, err = sp.Write(ctx, off, j.data.Slice(0, n), more)
		s.count(id, sp, more, changed)
	}
	if err == nil || errors.Is(err, span.ErrDebt) {
		s.bytesWritten.Add(n)
	}
	if err != nil {
		return s.failData(j, err)
	}
	return s.answer(j, wire.AppendResult(nil, vkSuccess))
}

// count notes whether a frame, sent for a handle or a mapping, changed its
// span. All frames of one write or flush are one commit, which the span counts
// with the last, if that changes anything.
func (s *session) count(id uint64, sp *span.Span, more, changed bool) {
	s.mu.Lock()
	_, before := s.pending[id]
	if more && (changed || before) {
		s.pending[id] = sp
	} else {
		delete(s.pending, id)
	}
	s.mu.Unlock()
	if before && !more && !changed {
		sp.CountCommit()
	}
}

// countRest counts what frames changed for a handle or a mapping that is going
// away. The caller holds mu.
func (s *session) countRest(id uint64) {
	if sp := s.pending[id]; sp != nil {
		delete(s.pending, id)
		sp.CountCommit()
	}
}

func (s *session) flush(ctx context.Context, j *dataJob) error {
	m, err := s.mapping(j.flush.Mapping)
	if err != nil {
		return s.failData(j, err)
	}
	runs, err := m.checkFlush(j.flush)
	if err != nil {
		return s.failData(j, err)
	}
	id, block, data := j.flush.Mapping, int(j.flush.Block), j.data.Slice(0, int64(j.flush.DataLen()))
	// wire.AnyVersion and span.AnyVersion are one number.
	var done span.Committed
	if b := s.joinBatch(id, j.header, m.span, m.shadow.Begin); b != nil {
		var staged bool
		done, staged, err = s.carryBatch(ctx, id, j.header, b, func(t *span.Batch) error {
			return t.Flush(ctx, block, j.flush.Base, runs, data)
		})
		if staged && err == nil {
			s.bytesWritten.Add(data.Len)
			return s.answer(j, wire.FlushReply{Span: m.span.Version()}.Append(nil))
		}
	} else {
		more := j.header.Flags&wire.FlagMore != 0
		done, err = m.shadow.Flush(ctx, block, j.flush.Base, runs, data, more)
		s.count(id, m.span, more, err == nil || errors.Is(err, span.ErrDebt))
	}
	if err == nil || errors.Is(err, span.ErrDebt) {
		s.bytesWritten.Add(data.Len)
	}
	if err != nil {
		we := wireError(err)
		if we.Code == wire.Debt { // committed: the next flush is based on it
			we.Version = done.Version
		}
		return s.failData(j, we)
	}
	return s.answer(j, wire.FlushReply{Block: done.Version, Span: done.Span, Holders: uint32(done.Holders)}.Append(nil))
}

// checkFlush checks that a flush stays within a mapping that may be written,
// and returns its runs.
func (m *mapping) checkFlush(f wire.Flush) ([]span.Run, error) {
	fail := func(code wire.Code, message string) ([]span.Run, error) {
		return nil, &wire.Error{Code: code, Op: "flush", Span: m.span.Label(), Message: message}
	}
	switch {
	case !m.write:
		return fail(wire.WrongMode, "the mapping is read-only")
	case m.shadow == nil:
		return fail(wire.WrongMode, "the mapping is direct: flush it with a control request")
	case len(f.Runs) == 0:
		return fail(wire.Invalid, "no runs")
	case f.Block >= uint64(m.span.Blocks()):
		return fail(wire.OutOfRange, fmt.Sprintf("block %d of %d", f.Block, m.span.Blocks()))
	}
	start := int64(f.Block) * tier.BlockSize
	last := f.Runs[len(f.Runs)-1]
	first, end := start+int64(f.Runs[0].Offset), start+int64(last.Offset)+int64(last.Length)
	if first < m.off || end > m.off+m.n {
		return fail(wire.OutOfRange, fmt.Sprintf("bytes [%d, %d) are outside the mapping [%d, %d)", first, end, m.off, m.off+m.n))
	}
	runs := make([]span.Run, len(f.Runs))
	for i, r := range f.Runs {
		runs[i] = span.Run(r)
	}
	return runs, nil
}

func (s *session) span(handle uint64) (*span.Span, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sp := s.handles[handle]; sp != nil {
		return sp, nil
	}
	return nil, &wire.Error{Code: wire.NotFound, Message: "the session has no such handle: open the span first"}
}

func (s *session) mapping(id uint64) (*mapping, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m := s.mappings[id]; m != nil {
		return m, nil
	}
	return nil, &wire.Error{Code: wire.NotMapped, Message: "the session has no such mapping: it was unmapped, or never mapped"}
}
