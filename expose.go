// SPDX-License-Identifier: Apache-2.0

package memspan

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/surface"
	"github.com/memspan/memspan/wire/control"
)

// SurfaceStat describes a surface now.
type SurfaceStat = control.SurfaceStat

// ExposeOptions say what a surface is called, and for whom and how long it is
// there. The zero value is usable.
type ExposeOptions struct {
	Name        string        // for people and pullers; at most 255 bytes
	ContentType string        // as in HTTP; at most 255 bytes
	Chunk       int64         // bytes that are verified, and waited for, together: a power of two from 4 KiB to 64 MiB; 0: 1 MiB
	Lifetime    time.Duration // after which nobody gets it any more, rounded up to milliseconds; 0: until it is revoked
	ReadOnce    bool          // one puller gets it, each byte once, and then it is gone
	// Encrypt seals what is stored, chunk by chunk, with a key that is in the
	// ticket alone: the server cannot read it, nor can those who pass it on. It
	// costs the direct map: pullers decrypt to memory of their own.
	Encrypt bool
}

// An Exposed is a surface that was made.
type Exposed struct {
	// Ticket opens it. Whoever has the ticket can read it, and nobody else.
	Ticket *surface.Ticket
	Size   int64 // bytes
	Copied int64 // bytes that were copied to make it
	Memory int64 // bytes of RAM that it takes on the server; holes take none
}

// ExposeBytes makes a surface of a copy of p: later changes of p do not show. On
// the server's machine it is the only copy, handed over as memory.
func (c *Client) ExposeBytes(ctx context.Context, p []byte, o ExposeOptions) (*Exposed, error) {
	if c.link.fds != nil && !o.Encrypt {
		e, err := c.exposeMemory(ctx, p, o)
		return e, failed("expose", o.Name, 0, 0, err)
	}
	return c.exposeWritten(ctx, int64(len(p)), o, func(w *ExposeWriter) error {
		_, err := w.Write(p)
		return err
	})
}

// exposeMemory copies p to memory that is then closed to writers, and hands it
// over.
func (c *Client) exposeMemory(ctx context.Context, p []byte, o ExposeOptions) (*Exposed, error) {
	f, err := memfd.Blank("memspan-surface")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// Written, not stored to: a page that is written whole is not zeroed first.
	if _, err := f.Write(p); err != nil {
		return nil, err
	}
	if err := memfd.Freeze(f); err != nil {
		return nil, err
	}
	e, err := c.exposeFile(ctx, f, control.ExposeMemory, int64(len(p)), o)
	if err == nil {
		e.Copied = int64(len(p))
	}
	return e, err
}

// ExposeFile makes a surface of the file's bytes as they are now, from the
// beginning. It fails if the file changes meanwhile. On the server's machine the
// server copies them; a memfd that nobody can write, shrink or grow any more is
// taken as it is, without a copy.
func (c *Client) ExposeFile(ctx context.Context, f *os.File, o ExposeOptions) (*Exposed, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, failed("expose", o.Name, 0, 0, &Error{Code: ErrInvalid, Err: err})
	}
	if !info.Mode().IsRegular() {
		return nil, failed("expose", o.Name, 0, 0, &Error{Code: ErrInvalid, Message: f.Name() + " is no plain file: write it to what Expose returns"})
	}
	if c.link.fds != nil && !o.Encrypt {
		if memfd.Frozen(f) {
			e, err := c.exposeFile(ctx, f, control.ExposeMemory, info.Size(), o)
			if !errors.Is(err, ErrUnsupported) { // else it is of pages that cannot be taken
				return e, failed("expose", o.Name, 0, 0, err)
			}
		}
		e, err := c.exposeFile(ctx, f, control.ExposeFile, info.Size(), o)
		return e, failed("expose", o.Name, 0, 0, err)
	}
	size, unchanged, err := surface.Settled(ctx, f)
	if err != nil {
		return nil, failed("expose", o.Name, 0, 0, sourceError(f, err))
	}
	return c.exposeWritten(ctx, size, o, func(w *ExposeWriter) error {
		err := w.from(f, size)
		if errors.Is(err, io.EOF) {
			err = surface.ErrChanged // cut short
		} else if err == nil {
			err = unchanged()
		}
		return sourceError(f, err)
	})
}

// sourceError is err as it is told of a file that was to be exposed.
func sourceError(f *os.File, err error) error {
	if errors.Is(err, surface.ErrChanged) {
		return &Error{Code: ErrConflict, Message: f.Name() + " changed while it was exposed", Err: err}
	}
	return err
}

func (c *Client) exposeFile(ctx context.Context, f *os.File, source control.ExposeSource, size int64, o ExposeOptions) (*Exposed, error) {
	data, err := c.link.controlFile(ctx, f, control.OpExpose, o.request(source, size), nil)
	if err != nil {
		return nil, err
	}
	done, err := c.exposed(data)
	if err != nil {
		return nil, err
	}
	return done.result(nil)
}

// Expose makes a surface of the span's bytes as they are now, block by block.
func (s *Span) Expose(ctx context.Context, o ExposeOptions) (*Exposed, error) {
	if o.Encrypt {
		return s.client.exposeWritten(ctx, s.info.Size, o, func(w *ExposeWriter) error { return w.from(spanReader{ctx, s}, s.info.Size) })
	}
	request := o.request(control.ExposeSpan, s.info.Size)
	request.Handle = s.handle
	done, err := ask[control.Exposed](ctx, s.client, control.OpExpose, request)
	if err != nil {
		return nil, s.failed("expose", 0, 0, err)
	}
	e, err := exposed(done).result(nil)
	return e, s.failed("expose", 0, 0, err)
}

// A spanReader is a span as an io.ReaderAt.
type spanReader struct {
	ctx  context.Context
	span *Span
}

func (r spanReader) ReadAt(p []byte, off int64) (int, error) { return r.span.ReadAt(r.ctx, p, off) }

func (o ExposeOptions) request(source control.ExposeSource, size int64) control.Expose {
	return control.Expose{
		Source: source, Name: o.Name, ContentType: o.ContentType, Size: size, Chunk: o.Chunk,
		Lifetime: int64((o.Lifetime + time.Millisecond - 1) / time.Millisecond), ReadOnce: o.ReadOnce, Encrypted: o.Encrypt,
	}
}

// exposed is the server's answer.
type exposed control.Exposed

func (c *Client) exposed(data []byte) (e exposed, err error) {
	if err := json.Unmarshal(data, &e); err != nil {
		c.link.fail(peerLost(protocolError("answer to expose: %w", err)))
		return e, c.link.lostErr()
	}
	return e, nil
}

// result is what the user gets, with the key that the server does not have.
func (e exposed) result(key *surface.Key) (*Exposed, error) {
	ticket, err := surface.ParseTicket(e.Ticket)
	if err != nil {
		return nil, peerLost(protocolError("ticket: %w", err))
	}
	ticket.Key = key
	return &Exposed{Ticket: ticket, Size: e.Size, Copied: e.Copied, Memory: e.Memory}, nil
}

// An ExposeWriter is a surface that is being written. What was written can be
// pulled at once, chunk by chunk. Unless it is sealed the surface fails, for
// those who wait for the rest too, when the writer is closed or the client's
// connection ends. Its methods must not be called concurrently.
type ExposeWriter struct {
	client *Client
	ctx    context.Context
	name   string
	handle uint64
	ticket *surface.Ticket
	size   int64 // that it is to have; -1: any

	off    int64           // stored bytes sent
	chunk  int64           // content bytes
	sealer *surface.Sealer // of an encrypted surface, else nil
	plain  []byte          // of it: the chunk that is being filled
	sealed []byte          // the same, encrypted; reused
	count  int64           // chunks sealed
	wrote  int64           // content bytes

	closeOnce sync.Once
}

// Expose begins a surface that the caller writes: exactly size bytes, or as many as
// it likes if size is -1. ctx bounds the writing too.
func (c *Client) Expose(ctx context.Context, size int64, o ExposeOptions) (*ExposeWriter, error) {
	w, err := c.expose(ctx, size, o)
	return w, failed("expose", o.Name, 0, 0, err)
}

func (c *Client) expose(ctx context.Context, size int64, o ExposeOptions) (*ExposeWriter, error) {
	w := &ExposeWriter{client: c, ctx: ctx, name: o.Name, size: size, chunk: o.Chunk}
	if w.chunk == 0 {
		w.chunk = surface.DefaultChunk
	}
	request := o.request(control.ExposeWritten, size)
	request.Chunk = w.chunk
	var key *surface.Key
	if o.Encrypt {
		k := surface.NewKey()
		key = &k
	}
	answer, err := ask[control.Exposed](ctx, c, control.OpExpose, request)
	if err != nil {
		return nil, err
	}
	w.handle = answer.Handle
	e, err := exposed(answer).result(key)
	if err != nil {
		return nil, err
	}
	w.ticket = e.Ticket
	if key != nil {
		w.sealer = surface.NewSealer(*key, w.ticket.ID)
		w.plain = make([]byte, 0, w.chunk)
	}
	return w, nil
}

// exposeWritten exposes what fill writes.
func (c *Client) exposeWritten(ctx context.Context, size int64, o ExposeOptions, fill func(w *ExposeWriter) error) (*Exposed, error) {
	w, err := c.expose(ctx, size, o)
	if err != nil {
		return nil, failed("expose", o.Name, 0, 0, err)
	}
	defer w.Close()
	if err := fill(w); err != nil {
		return nil, failed("expose", o.Name, 0, 0, err)
	}
	return w.Seal()
}

// Ticket opens the surface already. It lacks the root of what is written, which
// the one that Seal returns has: with this one a puller has to believe the
// server.
func (w *ExposeWriter) Ticket() *surface.Ticket { return w.ticket }

// exposePiece is how much of a source is in this process's memory at a time.
const exposePiece = 4 << 20

// from writes size bytes of src.
func (w *ExposeWriter) from(src interface {
	ReadAt(p []byte, off int64) (int, error)
}, size int64) error {
	buf := make([]byte, min(exposePiece, size))
	for off := int64(0); off < size; {
		n, err := src.ReadAt(buf[:min(int64(len(buf)), size-off)], off)
		if n == 0 && err != nil {
			return err
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}

// Write appends p to the surface. When it returns, the server has all of it.
func (w *ExposeWriter) Write(p []byte) (n int, err error) {
	if w.size >= 0 && int64(len(p)) > w.size-w.wrote {
		return 0, failed("write", w.name, w.wrote, int64(len(p)), &Error{Code: ErrOutOfRange, Message: fmt.Sprintf("the surface was to have %d bytes", w.size)})
	}
	if w.sealer == nil {
		n, err = w.send(p)
		w.wrote += int64(n)
		return n, failed("write", w.name, w.wrote, int64(len(p)), err)
	}
	for n < len(p) {
		room := min(len(p)-n, int(w.chunk)-len(w.plain))
		w.plain = append(w.plain, p[n:n+room]...)
		if int64(len(w.plain)) == w.chunk {
			if err := w.sealChunk(); err != nil {
				return n, failed("write", w.name, w.wrote, int64(len(p)), err)
			}
		}
		n += room
		w.wrote += int64(room)
	}
	return n, nil
}

// sealChunk encrypts and sends what is in plain.
func (w *ExposeWriter) sealChunk() error {
	w.sealed = w.sealer.Seal(w.sealed[:0], w.count, w.plain)
	w.count++
	w.plain = w.plain[:0]
	_, err := w.send(w.sealed)
	return err
}

// send stores p behind what was stored before.
func (w *ExposeWriter) send(p []byte) (int, error) {
	n, err := w.client.write(w.ctx, w.handle, p, w.off)
	w.off += int64(len(p)) // after an error nothing more is taken
	return n, err
}

// Seal ends the surface: it is whole, and never changes again.
func (w *ExposeWriter) Seal() (*Exposed, error) {
	if len(w.plain) > 0 {
		if err := w.sealChunk(); err != nil {
			return nil, failed("seal", w.name, 0, 0, err)
		}
	}
	answer, err := ask[control.Exposed](w.ctx, w.client, control.OpSeal, control.Handle{Handle: w.handle})
	if err != nil {
		return nil, failed("seal", w.name, 0, 0, err)
	}
	e, err := exposed(answer).result(w.ticket.Key)
	if err != nil {
		return nil, failed("seal", w.name, 0, 0, err)
	}
	w.ticket = e.Ticket
	return e, nil
}

// Close ends the writing. A surface that is not sealed is lost. It is
// idempotent.
func (w *ExposeWriter) Close() error {
	w.closeOnce.Do(func() { w.client.link.notify(control.OpClose, control.Handle{Handle: w.handle}) })
	return nil
}

// Surfaces describes all surfaces of the server, in the order of creation.
func (c *Client) Surfaces(ctx context.Context) ([]SurfaceStat, error) {
	var list []SurfaceStat
	for after, more := "", true; more; {
		page, err := ask[control.Surfaces](ctx, c, control.OpSurfaces, control.SurfaceList{After: after})
		if err != nil {
			return nil, failed("surfaces", "", 0, 0, err)
		}
		list = append(list, page.Surfaces...)
		after, more = page.More, page.More != "" && len(page.Surfaces) > 0
	}
	slices.SortStableFunc(list, func(a, b SurfaceStat) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID))
	})
	return slices.CompactFunc(list, func(a, b SurfaceStat) bool { return a.ID == b.ID }), nil
}

// Revoke takes a surface back: nobody opens it any more, and who has it open over
// a network reads no more of it. Memory that pullers have mapped stays theirs until
// they let go.
func (c *Client) Revoke(ctx context.Context, id surface.ID) error {
	_, err := ask[nothing](ctx, c, control.OpRevoke, control.SurfaceID{ID: id.String()})
	return failed("revoke", id.String(), 0, 0, err)
}
