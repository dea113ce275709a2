// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"runtime"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/memspan/memspan/coherency"
	"github.com/memspan/memspan/sharedbuf"
	"github.com/memspan/memspan/sharedbuf/host"
	"github.com/memspan/memspan/span"
	"github.com/memspan/memspan/tier"
	"github.com/memspan/memspan/tier/vram"
)

// BufferConfig makes a server a host of shared buffers too, whose guests turn
// buffers into spans and back: operations ingest, export and transform.
type BufferConfig struct {
	// Host says which buffers, and whose. Its IOTimeout and Logger are the
	// server's unless they are set. Its Operations are beside the server's.
	Host host.Config
	// Kernels are SPIR-V modules that guests may name in transform, beside those
	// that they send. Kernels run where Config.VRAM says, in a worker of their own.
	Kernels map[string][]byte
	// TrustSpans lets guests have ingest and export, and by them every span, whom
	// Host.Trust alone lets in. They have proved nothing, and without it are denied
	// both.
	TrustSpans bool
}

// buffers are the server's shared buffers.
type buffers struct {
	host    *host.Host
	kernels *kernels

	ctx  context.Context // ends with Shutdown
	stop context.CancelFunc
}

// newBuffers makes the host of the server's shared buffers.
func (srv *Server) newBuffers(cfg BufferConfig, gpu *vram.Config) (*buffers, error) {
	kernels, err := newKernels(gpu, maps.Clone(cfg.Kernels), srv.log)
	if err != nil {
		return nil, err
	}
	hc := cfg.Host
	if hc.Logger == nil {
		hc.Logger = srv.log
	}
	if hc.IOTimeout == 0 {
		hc.IOTimeout = srv.ioTimeout
	}
	hc.Operations = append(slices.Clone(hc.Operations),
		host.Operation{Name: "ingest", Access: host.ReadOnly, Proven: !cfg.TrustSpans, Run: srv.ingest},
		host.Operation{Name: "export", Access: host.ReadWrite, Proven: !cfg.TrustSpans, Run: srv.export},
		host.Operation{Name: "transform", Access: host.ReadWrite, Run: kernels.transform},
	)
	b := &buffers{kernels: kernels}
	if b.host, err = host.New(hc); err != nil {
		return nil, err
	}
	b.ctx, b.stop = context.WithCancel(context.Background())
	return b, nil
}

// ServeBuffers serves guests with shared buffers, who connect to ln, until
// Shutdown is called or ctx ends, then returns nil. It owns ln. Config.Buffers
// says what they may have. It is a host's Serve: see package sharedbuf/host for
// who is let in.
func (srv *Server) ServeBuffers(ctx context.Context, ln net.Listener) error {
	if srv.buffers == nil {
		ln.Close()
		return errors.New("server: there are no shared buffers to serve: set Config.Buffers")
	}
	srv.mu.Lock()
	if srv.closing {
		srv.mu.Unlock()
		ln.Close()
		return net.ErrClosed
	}
	srv.work.Add(1)
	srv.mu.Unlock()
	defer srv.work.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(srv.buffers.ctx, cancel)
	defer stop()
	return srv.buffers.host.Serve(ctx, ln)
}

// end has all that guests asked for given up. There may be no buffers.
func (b *buffers) end() error {
	if b == nil {
		return nil
	}
	b.stop()
	return b.kernels.end()
}

// close frees what is left when nobody is served any more.
func (b *buffers) close() error {
	if b == nil {
		return nil
	}
	return errors.Join(b.host.Close(), b.kernels.close())
}

// ingest makes a span of a buffer.
func (srv *Server) ingest(c *host.Call) (_ any, err error) {
	var a sharedbuf.IngestArguments
	if err := c.Arguments(&a); err != nil {
		return nil, err
	}
	info, err := ingestInfo(a, c.Size())
	if err != nil {
		return nil, err
	}
	ctx := c.Context()
	if !a.Replace { // before the bytes are copied; publishing looks again
		if err := srv.vacant(a.Name); err != nil {
			return nil, bufferError(err)
		}
	}
	sp, copied, err := srv.draft(c, info, a.Move)
	if err != nil {
		return nil, bufferError(err)
	}
	defer func() {
		if ferr := sp.Forsake(); err == nil && ferr != nil { // frees it unless it is published
			err = bufferError(ferr)
		}
	}()
	if err := srv.store.Publish(ctx, sp, a.Replace); err != nil {
		return nil, bufferError(err)
	}
	return sharedbuf.Ingested{Span: sp.ID.String(), Bytes: sp.Size, Copied: copied}, nil
}

// draft makes a span of a buffer's bytes that nobody can find yet, and tells how
// many of them it copied.
func (srv *Server) draft(c *host.Call, info span.Info, move bool) (_ *span.Span, copied int64, err error) {
	ctx := c.Context()
	if memory := c.Memory(); move && memory != nil {
		sp, err := srv.store.Adopt(ctx, info, memory)
		if !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, tier.ErrBudget) { // copied, it need not all be in RAM
			if err == nil {
				c.Processed(sp.Size)
			}
			return sp, 0, err
		}
	}
	sp, err := srv.store.Draft(ctx, info)
	if err != nil {
		return nil, 0, err
	}
	_, err = sp.Compose(ctx, func(off int64, p []byte) error {
		_, err := c.ReadAt(p, off)
		if err == nil {
			c.Processed(int64(len(p)))
		}
		return err
	})
	if err != nil {
		return nil, 0, errors.Join(err, sp.Forsake())
	}
	return sp, sp.Size, nil
}

// ingestInfo says what span is asked for.
func ingestInfo(a sharedbuf.IngestArguments, size int64) (span.Info, error) {
	invalid := func(what, value, want string) (span.Info, error) {
		return span.Info{}, &sharedbuf.Error{Code: sharedbuf.ErrInvalid, Message: fmt.Sprintf("%s %q; want %s", what, value, want)}
	}
	const tiers = "vram, host or disk"
	if a.Name == "" {
		return invalid("name", a.Name, "that of a span")
	}
	info := span.Info{Name: a.Name, Size: size, Tier: coherency.Host}
	if a.Tier != "" {
		if err := info.Tier.UnmarshalText([]byte(a.Tier)); err != nil {
			return invalid("tier", a.Tier, tiers)
		}
	}
	info.Home = info.Tier
	if a.Home != "" {
		if err := info.Home.UnmarshalText([]byte(a.Home)); err != nil {
			return invalid("home", a.Home, tiers)
		}
	}
	if a.Policy != "" {
		if err := info.Policy.UnmarshalText([]byte(a.Policy)); err != nil {
			return invalid("policy", a.Policy, "write-back, write-through or write-all")
		}
	}
	return info, nil
}

// vacant returns ErrExists if a span has the name.
func (srv *Server) vacant(name string) error {
	sp, err := srv.store.Open(name)
	switch {
	case errors.Is(err, span.ErrNotFound):
		return nil
	case err != nil:
		return err
	}
	return errors.Join(&span.Error{Op: "ingest", Span: name, Err: span.ErrExists}, sp.Forsake())
}

// export copies a span to a buffer.
func (srv *Server) export(c *host.Call) (_ any, err error) {
	var a sharedbuf.ExportArguments
	if err := c.Arguments(&a); err != nil {
		return nil, err
	}
	sp, err := srv.store.Open(a.Name)
	if err != nil {
		return nil, bufferError(err)
	}
	defer func() {
		if ferr := sp.Forsake(); err == nil && ferr != nil {
			err = bufferError(ferr)
		}
	}()
	if sp.Size != c.Size() {
		return nil, &sharedbuf.Error{Code: sharedbuf.ErrSize,
			Message: fmt.Sprintf("span %q has %d bytes and the buffer %d; they must have the same size", sp.Label(), sp.Size, c.Size())}
	}
	g, ctx := errgroup.WithContext(c.Context())
	g.SetLimit(runtime.GOMAXPROCS(0))
	for off := int64(0); off < sp.Size; off += tier.BlockSize {
		g.Go(func() error { return srv.exportBlock(ctx, c, sp, off) })
	}
	return nil, bufferError(g.Wait())
}

// exportBlock copies a block: from RAM where it is, else through memory that all
// tiers can reach. A buffer that is itself on disk is not waited for while
// somebody may want to write the block.
func (srv *Server) exportBlock(ctx context.Context, c *host.Call, sp *span.Span, off int64) error {
	n := min(tier.BlockSize, sp.Size-off)
	var err error
	put := func(p []byte) { _, err = c.WriteAt(p, off) }
	lent := false
	if c.InMemory() {
		var lerr error
		if lent, lerr = sp.Lend(ctx, off, n, func() {}, put); lerr != nil { // a block is copied soon enough
			return lerr
		}
	}
	if lent {
		sp.CountLent(n)
	} else {
		m, serr := srv.store.Scratch(ctx)
		if serr != nil {
			return serr
		}
		defer srv.store.PutScratch(m)
		if err := sp.Read(ctx, off, m.Slice(0, n)); err != nil {
			return err
		}
		put(m.Bytes()[:n])
	}
	if err == nil {
		c.Processed(n)
	}
	return err
}

// bufferCodes tells a guest what kind of error it is. The first match counts.
var bufferCodes = [...]struct {
	err  error
	code sharedbuf.Code
}{
	{vram.ErrKernel, sharedbuf.ErrInvalid},
	{span.ErrNotFound, sharedbuf.ErrNotFound},
	{span.ErrFreed, sharedbuf.ErrNotFound},
	{span.ErrExists, sharedbuf.ErrExists},
	{span.ErrInvalid, sharedbuf.ErrInvalid},
	{span.ErrLimit, sharedbuf.ErrLimit},
	{tier.ErrBudget, sharedbuf.ErrNoSpace},
	{tier.ErrAbsent, sharedbuf.ErrUnsupported},
	{tier.ErrLost, sharedbuf.ErrDeviceLost},
	{os.ErrClosed, sharedbuf.ErrClosed},
	{context.Canceled, sharedbuf.ErrCanceled},
}

// bufferError turns an error of spans into one of shared buffers.
func bufferError(err error) error {
	var known *sharedbuf.Error
	if err == nil || errors.As(err, &known) {
		return err
	}
	for _, c := range bufferCodes {
		if errors.Is(err, c.err) {
			return &sharedbuf.Error{Code: c.code, Err: err}
		}
	}
	return &sharedbuf.Error{Code: sharedbuf.ErrFailed, Err: err}
}
