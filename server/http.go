// SPDX-License-Identifier: Apache-2.0

package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/memspan/memspan/surface"
	"github.com/memspan/memspan/wire"
)

// SurfacePath begins the paths that Handler serves; a ticket follows.
const SurfacePath = "/surface/"

// Handler serves surfaces over HTTP to whoever has a ticket, for programs that know
// nothing else: GET and HEAD of SurfacePath and the ticket, ranges included. A
// surface that is still being written comes as it is written, without ranges.
// Encrypted surfaces are refused: their key is not for servers. A client that takes
// nothing of an answer for Config.IOTimeout is given up, and who shows no ticket that
// opens keeps no connection.
//
// Who serves it beyond this machine has to encrypt: the path has the ticket. The
// listener is best wrapped by [Server.GuestListener].
func (srv *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+SurfacePath+"{ticket}", srv.serveSurface)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		paced := pacedWriter{w, srv.ioTimeout}
		paced.renew()
		if r.ContentLength != 0 { // nobody reads it but package http, which would wait for it
			http.NewResponseController(w).SetReadDeadline(time.Now().Add(srv.ioTimeout))
		}
		w.Header().Set("Connection", "close")
		mux.ServeHTTP(paced, r)
	})
}

// A pacedWriter gives up a client that takes nothing of a piece for a time. It hides
// what else the writer can do: that would write a whole answer as one piece.
type pacedWriter struct {
	http.ResponseWriter
	timeout time.Duration
}

func (p pacedWriter) Write(b []byte) (int, error) {
	p.renew()
	return p.ResponseWriter.Write(b)
}

func (p pacedWriter) renew() {
	// What has no deadlines, as tests' recorders, does not wait for a network.
	_ = http.NewResponseController(p.ResponseWriter).SetWriteDeadline(time.Now().Add(p.timeout))
}

// Unwrap is for http.ResponseController.
func (p pacedWriter) Unwrap() http.ResponseWriter { return p.ResponseWriter }

// httpStatus tells the status for an error's code; others are 500.
var httpStatus = map[wire.Code]int{
	wire.Invalid:         http.StatusBadRequest,
	wire.Unauthenticated: http.StatusForbidden,
	wire.Busy:            http.StatusTooManyRequests,
	wire.Expired:         http.StatusGone,
	wire.Revoked:         http.StatusGone,
	wire.Taken:           http.StatusGone,
	wire.Closed:          http.StatusServiceUnavailable,
	wire.Unsupported:     http.StatusNotImplemented,
	wire.PeerLost:        http.StatusBadGateway,
}

func (srv *Server) serveSurface(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	// What is served is somebody's bytes, and no page of ours.
	h.Set("Content-Security-Policy", "sandbox; default-src 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "private, no-store")
	o, err := srv.openTicket(r.PathValue("ticket"), cmp.Or(guestAddress(r.RemoteAddr), r.RemoteAddr))
	if err != nil {
		we := wireError(err)
		status, ok := httpStatus[we.Code]
		if !ok {
			status = http.StatusInternalServerError
		}
		http.Error(w, we.Error(), status)
		return
	}
	defer o.Close()
	h.Del("Connection")
	header := o.Header()
	if t, _, err := mime.ParseMediaType(header.ContentType); err == nil && t != "" {
		h.Set("Content-Type", header.ContentType)
	} else {
		h.Set("Content-Type", "application/octet-stream")
	}
	if header.Name != "" {
		h.Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": header.Name}))
	}
	content := &contentReader{ctx: r.Context(), o: o}
	part := o.Restriction().Range
	if p, err := o.Progress(); err == nil && p.Root != nil {
		h.Set("ETag", fmt.Sprintf("%q", p.Root))
		content.off, content.size = part.Offset, max(min(part.Length, p.Size-part.Offset), 0)
		// Of units that are not known, and where there is nothing, package http makes errors.
		if content.size == 0 || !strings.HasPrefix(r.Header.Get("Range"), "bytes=") {
			r.Header.Del("Range")
		}
		http.ServeContent(w, r, "", time.Time{}, content)
		return
	}
	content.off, content.size = part.Offset, part.Length
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return
	}
	if _, err := io.Copy(flushed{w}, content); err != nil {
		// What was sent must not look whole.
		panic(http.ErrAbortHandler)
	}
}

// flushed sends each piece of a stream as it comes.
type flushed struct{ http.ResponseWriter }

func (f flushed) Write(p []byte) (int, error) {
	n, err := f.ResponseWriter.Write(p)
	if err == nil {
		err = http.NewResponseController(f.ResponseWriter).Flush()
	}
	return n, err
}

// openTicket opens a surface of this server for who has shown the ticket itself.
func (srv *Server) openTicket(text, who string) (*surface.Opening, error) {
	t, err := surface.ParseTicket(text)
	if err != nil {
		return nil, err
	}
	o, err := openOwn(srv.surfaces, t, who)
	if err != nil {
		return nil, err
	}
	if h := o.Header(); h.Encrypted {
		o.Close()
		return nil, &wire.Error{Code: wire.Unsupported, Op: "open", Message: "the surface is encrypted, and its key is not for servers: memspan pull decrypts it"}
	}
	return o, nil
}

// A contentReader reads the content of a surface that is not encrypted, from
// byte off of it on, as it comes. Package http answers several ranges from a goroutine
// that it does not wait for, so it may be read when the opening is closed.
type contentReader struct {
	ctx  context.Context
	o    *surface.Opening
	off  int64
	size int64
	at   int64
}

var errSeek = errors.New("server: seek to a place before the beginning")

// Seek implements io.Seeker.
func (c *contentReader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += c.at
	case io.SeekEnd:
		offset += c.size
	}
	if offset < 0 {
		return 0, errSeek
	}
	c.at = offset
	return offset, nil
}

// Read implements io.Reader. It waits for chunks that are not there yet.
func (c *contentReader) Read(p []byte) (int, error) {
	for {
		progress, err := c.o.Progress()
		if err != nil {
			return 0, err
		}
		at, end := c.off+c.at, c.off+min(c.size, progress.Size-min(c.off, progress.Size))
		if at >= end && (progress.State == surface.Sealed || c.at >= c.size) {
			return 0, io.EOF
		}
		header := c.o.Header()
		// Up to the end of a chunk: others may not be there.
		if n := min(int64(len(p)), end-at, header.Chunk-at%header.Chunk); n > 0 {
			err := c.o.ReadStored(at, n, func(b []byte) error {
				copy(p, b)
				return nil
			})
			if err == nil {
				c.at += n
				return int(n), nil
			}
			if !errors.Is(err, surface.ErrMissing) {
				return 0, err
			}
		}
		if _, err := c.o.Wait(c.ctx, progress.Sequence); err != nil {
			return 0, err
		}
	}
}
