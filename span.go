// SPDX-License-Identifier: Apache-2.0

package memspan

import (
	"context"
	"fmt"
	"sync"

	"github.com/memspan/memspan/wire/control"
)

// A Span is a handle to a range of bytes that the server keeps. Its methods
// may be called concurrently.
type Span struct {
	client  *Client
	handle  uint64
	info    SpanInfo
	writing chan struct{} // holds an element while a durable span is written: frames of two writes must not mix

	mu       sync.Mutex // guards what follows
	err      error      // once closed or freed: why the handle is of no use
	mappings int        // that need the handle
}

// durable reports whether the span outlives the daemon.
func (s *Span) durable() bool { return s.info.Home == Disk && s.info.Name != "" }

// ID returns the span's identity: 128 random bits in hexadecimal.
func (s *Span) ID() string { return s.info.ID }

// Name returns the span's name, "" if it has none.
func (s *Span) Name() string { return s.info.Name }

// Size returns the span's length in bytes.
func (s *Span) Size() int64 { return s.info.Size }

// Info returns what never changes about the span, and the tier that writes went
// to when it was opened: see Stat.
func (s *Span) Info() SpanInfo { return s.info }

// label is how messages name the span.
func (s *Span) label() string {
	if s.info.Name != "" {
		return s.info.Name
	}
	return s.info.ID
}

// failed gives an error its place.
func (s *Span) failed(op string, off, n int64, err error) error {
	return failed(op, s.label(), off, n, err)
}

// usable returns an error if the handle is of no use any more.
func (s *Span) usable() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// checkRange checks that bytes [off, off+n) lie in the span, without overflow.
func (s *Span) checkRange(off, n int64) error {
	if off < 0 || n < 0 || off > s.info.Size || n > s.info.Size-off {
		return &Error{Code: ErrOutOfRange, Message: fmt.Sprintf("the span has %d bytes", s.info.Size)}
	}
	return s.usable()
}

var (
	errSpanClosed = &Error{Code: ErrClosed, Message: "the span was closed: open it again"}
	errSpanFreed  = &Error{Code: ErrFreed}
)

// retire makes the handle useless for new calls. It returns false if it was
// already.
func (s *Span) retire(reason error) (drop, first bool) {
	s.mu.Lock()
	first = s.err == nil
	if first {
		s.err = reason
	}
	drop = first && s.mappings == 0
	s.mu.Unlock()
	_ = s.client.kept.drop(s) // unmapping fails for no reason that anybody could mend
	return drop, first
}

// Close gives the handle up. A span without a name is freed with its last
// handle. Mappings stay usable; the server keeps the handle until the last of
// them is gone. Close is idempotent, and does nothing after Free.
func (s *Span) Close() error {
	if drop, _ := s.retire(errSpanClosed); drop {
		return s.drop()
	}
	return nil
}

// drop tells the server that the handle is done with.
func (s *Span) drop() error {
	if s.client.Err() != nil {
		return nil // the handle went with the connection
	}
	ctx, cancel := context.WithTimeout(context.Background(), s.client.link.ioTimeout)
	defer cancel()
	_, err := ask[nothing](ctx, s.client, control.OpClose, control.Handle{Handle: s.handle})
	return s.failed("close", 0, 0, err)
}

// mapped counts a mapping that needs the handle.
func (s *Span) mapped() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.mappings++
	}
	return s.err
}

// unmapped counts a mapping less.
func (s *Span) unmapped() {
	s.mu.Lock()
	s.mappings--
	drop := s.mappings == 0 && s.err != nil
	s.mu.Unlock()
	if drop {
		_ = s.drop() // the handle ends with the connection at the latest
	}
}

// Free removes the span, for all clients, and gives its memory back. Others
// who use it get ErrFreed. Direct mappings stay
// memory, but read as zeros.
func (s *Span) Free(ctx context.Context) error {
	if err := s.usable(); err != nil {
		return s.failed("free", 0, 0, err)
	}
	if _, err := ask[nothing](ctx, s.client, control.OpFree, control.Handle{Handle: s.handle}); err != nil {
		return s.failed("free", 0, 0, err)
	}
	if drop, _ := s.retire(errSpanFreed); drop {
		_ = s.drop() // the span is gone, which is what was asked
	}
	return nil
}

// Publish lets the span be found by its name, from which moment on it stays
// until it is freed. It fails with ErrExists if another span has the name. For
// spans that were made Unpublished; others are published, or were replaced and
// have their name back if it is free.
func (s *Span) Publish(ctx context.Context) error { return s.publish(ctx, false) }

// Replace is Publish, but takes the name from the span that has it, if one has:
// that one is freed with its last handle. It is one step for others: Client.Open
// finds the old span or this one at any moment, never none.
func (s *Span) Replace(ctx context.Context) error { return s.publish(ctx, true) }

func (s *Span) publish(ctx context.Context, replace bool) error {
	_, err := askSpan[nothing](ctx, s, control.OpPublish, control.Publish{Handle: s.handle, Replace: replace})
	return s.failed("publish", 0, 0, err)
}

// askSpan sends a control request about the span.
func askSpan[R any](ctx context.Context, s *Span, op control.Op, args any) (reply R, err error) {
	if err := s.usable(); err != nil {
		return reply, err
	}
	return ask[R](ctx, s.client, op, args)
}

// commit sends a control request that changes bytes [off, off+n) of the span,
// or all of it.
func (s *Span) commit(ctx context.Context, op control.Op, off, n int64, args any) (Commit, error) {
	done, err := askSpan[control.Committed](ctx, s, op, args)
	return Commit(done), s.failed(string(op), off, n, err)
}

// Copy stores bytes [srcOff, srcOff+n) of src at off. It is done where the
// bytes are: on the GPU's queue if both are in its memory. The ranges may be
// of one span, but must not overlap then.
func (s *Span) Copy(ctx context.Context, off int64, src *Span, srcOff, n int64) (Commit, error) {
	err := s.checkRange(off, n)
	if err == nil && src.client != s.client {
		err = &Error{Code: ErrInvalid, Message: "source and destination were opened by different clients"}
	}
	if err != nil {
		return Commit{}, s.failed("copy", off, n, err)
	}
	if err := src.checkRange(srcOff, n); err != nil {
		return Commit{}, src.failed("copy", srcOff, n, err)
	}
	return s.commit(ctx, control.OpCopy, off, n, control.Copy{
		Handle: s.handle, Offset: off, Source: src.handle, SourceOffset: srcOff, Length: n,
	})
}

// Fill stores pattern at bytes [off, off+n), repeated: little-endian, its
// lowest byte first at off. It is done where the bytes are.
func (s *Span) Fill(ctx context.Context, off, n int64, pattern uint32) (Commit, error) {
	if err := s.checkRange(off, n); err != nil {
		return Commit{}, s.failed("fill", off, n, err)
	}
	return s.commit(ctx, control.OpFill, off, n, control.Fill{Handle: s.handle, Offset: off, Length: n, Pattern: pattern})
}

// Stat describes the span now.
func (s *Span) Stat(ctx context.Context) (SpanStat, error) {
	st, err := askSpan[SpanStat](ctx, s, control.OpStat, control.Handle{Handle: s.handle})
	return st, s.failed("stat", 0, 0, err)
}

// State returns the two-sided state of the span now: RAM against the GPU.
func (s *Span) State(ctx context.Context) (State, error) {
	st, err := askSpan[SpanStat](ctx, s, control.OpStat, control.Handle{Handle: s.handle})
	return st.State, s.failed("state", 0, 0, err)
}

// Upload brings the GPU's copy up to date. Where the GPU has changes that the
// host has not seen it fails with ErrConflict and does nothing. On a server
// without a GPU it fails with ErrTierAbsent.
func (s *Span) Upload(ctx context.Context) (Commit, error) {
	return s.commit(ctx, control.OpUpload, 0, 0, control.Transfer{Handle: s.handle})
}

// ForceUpload is Upload, but where the GPU has changes that the host has not
// seen they are lost: the host's bytes become the new version.
func (s *Span) ForceUpload(ctx context.Context) (Commit, error) {
	return s.commit(ctx, control.OpUpload, 0, 0, control.Transfer{Handle: s.handle, Force: true})
}

// Download brings the host's copy up to date. Where the host has changes that
// the GPU has not seen it fails with ErrConflict and does nothing. On a server
// without a GPU it fails with ErrTierAbsent.
func (s *Span) Download(ctx context.Context) (Commit, error) {
	return s.commit(ctx, control.OpDownload, 0, 0, control.Transfer{Handle: s.handle})
}

// ForceDownload is Download, but where the host has changes that the GPU has
// not seen they are lost: the GPU's bytes become the new version.
func (s *Span) ForceDownload(ctx context.Context) (Commit, error) {
	return s.commit(ctx, control.OpDownload, 0, 0, control.Transfer{Handle: s.handle, Force: true})
}

// Sync is a barrier: when it returns, every stale copy of the span is up to
// date, and its home is. It returns the epoch that ended.
func (s *Span) Sync(ctx context.Context) (epoch uint64, err error) {
	done, err := askSpan[control.Synced](ctx, s, control.OpSync, control.Sync{Handle: s.handle})
	return done.Epoch, s.failed("sync", 0, 0, err)
}

// Release gives the GPU's memory back. What only the GPU has is written to the
// span's home or to RAM first; if that fails the GPU keeps it. On a server
// without a GPU it fails with ErrTierAbsent.
func (s *Span) Release(ctx context.Context) error {
	_, err := askSpan[nothing](ctx, s, control.OpRelease, control.Handle{Handle: s.handle})
	return s.failed("release", 0, 0, err)
}

// Accept ends ErrDataLoss: for each block whose current version is lost the
// newest surviving bytes, or zeros, become the current version.
func (s *Span) Accept(ctx context.Context) (Commit, error) {
	return s.commit(ctx, control.OpAccept, 0, 0, control.Handle{Handle: s.handle})
}
