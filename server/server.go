// SPDX-License-Identifier: Apache-2.0

package server

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/memspan/memspan/coherency"
	"github.com/memspan/memspan/internal/fdpass"
	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/internal/memlimit"
	"github.com/memspan/memspan/internal/tlslisten"
	"github.com/memspan/memspan/internal/unixsock"
	"github.com/memspan/memspan/span"
	"github.com/memspan/memspan/surface"
	"github.com/memspan/memspan/tier"
	"github.com/memspan/memspan/tier/disk"
	"github.com/memspan/memspan/tier/host"
	"github.com/memspan/memspan/tier/vram"
	"github.com/memspan/memspan/wire"
)

// Config says what a Server offers. The zero value is a server of RAM alone.
type Config struct {
	// VRAM starts a worker for device memory; nil: no VRAM tier. On a machine
	// without Vulkan the server goes on without it and logs why. Lost is the
	// server's own; it must be nil.
	VRAM *vram.Config
	// Vulkan lends the machine's GPUs to Vulkan applications, with or without
	// a VRAM tier; nil: it does not.
	Vulkan *VulkanConfig
	// Data is the directory of the Disk tier, where spans outlive the server;
	// empty: no Disk tier. One server at a time has it.
	Data string
	// DataBudget is the most bytes of blocks there; 0: what the file system
	// has.
	DataBudget int64
	// HostBudget is the most RAM that spans may take, in bytes; 0: half of
	// what the machine, or the control group, has.
	HostBudget int64
	// Buffers makes the server a host of shared buffers too; nil: it is none.
	Buffers *BufferConfig
	// Token must be presented by sessions over TCP that have no client
	// certificate. Without a token they are refused.
	Token string
	// Addresses are where pullers reach the server, as its tickets say: what is
	// listened on, the best first.
	Addresses []string
	// SurfaceBudget is the most RAM that surfaces may take, in bytes; 0: a
	// quarter of what the machine, or the control group, has.
	SurfaceBudget int64
	// IOTimeout ends a session whose peer makes no progress in the middle of
	// a message; 0: 30 s. A slow link that moves is not ended.
	IOTimeout time.Duration
	// Limits bound what peers may ask for.
	Limits Limits
	// Logger takes the server's log; nil: none.
	Logger *slog.Logger
}

// Limits bound what peers may ask for. Zero fields have the stated defaults.
type Limits struct {
	Sessions int   // connections at a time, beside guests; 256
	Guests   int   // connections at a time that may pull surfaces alone, a quarter of them from one address; 4096
	Spans    int   // 1048576
	SpanSize int64 // bytes; 1 TiB
	Handles  int   // of one session; 16384
	Mappings int   // of one session; 4096
	Locks    int   // of one session, waiting ones included; 4096
	Requests int   // control requests of one session under way; 256
	Map      int64 // bytes of one shadow mapping; 16 GiB
}

func (l Limits) withDefaults() Limits {
	set := func(p *int, n int) {
		if *p == 0 {
			*p = n
		}
	}
	set(&l.Sessions, 256)
	set(&l.Guests, 4096)
	set(&l.Spans, 1<<20)
	set(&l.Handles, 1<<14)
	set(&l.Mappings, 4096)
	set(&l.Locks, 4096)
	set(&l.Requests, 256)
	if l.SpanSize == 0 {
		l.SpanSize = 1 << 40
	}
	if l.Map == 0 {
		l.Map = 16 << 30
	}
	return l
}

// fallbackMemory is assumed where the system does not tell, in bytes.
const fallbackMemory = 2 << 30

// handshakeTimeout bounds the time from the connection to its first request, and
// for guests, who have proved nothing yet, to the first surface that they open.
const handshakeTimeout = 10 * time.Second

// A Server keeps spans and serves them to sessions. Its methods may be called
// concurrently.
type Server struct {
	limits    Limits
	ioTimeout time.Duration
	guestTime time.Duration // for which a guest may have no surface open
	token     [sha256.Size]byte
	hasToken  bool
	log       *slog.Logger

	store *span.Store
	host  *host.Tier
	vram  *vram.Tier // nil: absent
	disk  *disk.Tier // nil: absent
	data  string     // its directory

	surfaces      *surface.Store
	replicas      replicas
	surfaceBudget int64    // bytes
	addresses     []string // in tickets
	machine       surface.Machine

	vulkan  *VulkanConfig // with its defaults; nil: no GPU is lent
	buffers *buffers      // nil: the server hosts none

	nextOwner atomic.Uint64
	work      sync.WaitGroup // sessions and listeners

	mu        sync.Mutex            // guards what follows
	sessions  map[*session]struct{} // those that are shaking hands too
	shaking   int                   // of them, those
	admitted  int                   // of them, those that are not, and no guests
	guests    guests                // of them, those that are guests, and GuestListener's
	leases    map[*session]*lease   // those that have become Vulkan applications'
	lent      int                   // of them, and those to come
	listeners map[net.Listener]struct{}
	closing   bool
}

// New starts a server without listeners. Shutdown ends it.
func New(ctx context.Context, cfg Config) (*Server, error) {
	if cfg.IOTimeout == 0 {
		cfg.IOTimeout = 30 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.HostBudget == 0 {
		cfg.HostBudget = cmp.Or(memlimit.System().Usable(), fallbackMemory) / 2
	}
	vulkan, err := cfg.Vulkan.withDefaults(cfg.Logger)
	if err != nil {
		return nil, err
	}
	srv := &Server{
		vulkan:    vulkan,
		limits:    cfg.Limits.withDefaults(),
		ioTimeout: cfg.IOTimeout,
		guestTime: handshakeTimeout,
		token:     sha256.Sum256([]byte(cfg.Token)),
		hasToken:  cfg.Token != "",
		log:       cfg.Logger,
		sessions:  make(map[*session]struct{}),
		guests:    guests{from: make(map[string]int)},
		leases:    make(map[*session]*lease),
		listeners: make(map[net.Listener]struct{}),
	}
	var others []tier.Tier
	forget := func(*memfd.Region) {}
	ready := make(chan struct{}) // closed when store is set
	if cfg.VRAM != nil {
		vc := *cfg.VRAM
		vc.Lost = func() {
			<-ready
			if srv.store != nil {
				srv.store.Lose(coherency.VRAM)
			}
		}
		if vc.Logger == nil {
			vc.Logger = cfg.Logger
		}
		t, err := vram.Start(ctx, vc)
		switch {
		case err == nil:
			srv.vram = t
			others = append(others, t)
			forget = t.Forget
		case errors.Is(err, tier.ErrAbsent):
			srv.log.Warn("no VRAM tier", "reason", err)
		default:
			return nil, fmt.Errorf("server: VRAM tier: %w", err)
		}
	}
	srv.host = host.New(cfg.HostBudget, forget)
	if cfg.Data != "" {
		if srv.data, err = filepath.Abs(cfg.Data); err != nil {
			srv.data = cfg.Data
		}
		srv.disk, err = disk.Open(ctx, disk.Config{Dir: cfg.Data, Budget: cfg.DataBudget, Logger: cfg.Logger})
		if err != nil {
			close(ready)
			return nil, errors.Join(fmt.Errorf("server: Disk tier: %w", err), srv.closeTiers())
		}
	}
	store, err := span.NewStore(span.Config{
		Host:     srv.host,
		Others:   others,
		Disk:     srv.disk,
		MaxSpans: srv.limits.Spans,
		MaxSize:  srv.limits.SpanSize,
		Forget:   forget,
		Staging:  srv.limits.Sessions * stagingPerSession,
		Logger:   cfg.Logger,
	})
	srv.store = store
	close(ready)
	srv.surfaceBudget = cmp.Or(cfg.SurfaceBudget, cmp.Or(memlimit.Read(os.DirFS("/")).Usable(), fallbackMemory)/4)
	srv.surfaces = surface.NewStore(surface.Config{Budget: srv.surfaceBudget, Logger: cfg.Logger})
	srv.replicas = replicas{store: srv.surfaces, begun: make(map[surface.ID]chan struct{})}
	srv.addresses = cfg.Addresses
	srv.machine, _ = surface.ThisMachine() // without, nobody takes its unix sockets for this machine's
	if srv.disk != nil {
		debug.FreeOSMemory() // reading a large index takes more than keeping it
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("server: %w", err), srv.surfaces.Close(), srv.closeTiers())
	}
	if cfg.Buffers != nil {
		gpu := cfg.VRAM
		if srv.vram == nil {
			gpu = nil
		}
		if srv.buffers, err = srv.newBuffers(*cfg.Buffers, gpu); err != nil {
			return nil, errors.Join(fmt.Errorf("server: shared buffers: %w", err), srv.surfaces.Close(), store.Close(), srv.closeTiers())
		}
	}
	return srv, nil
}

// Device describes the GPU behind the VRAM tier; ok is false without one.
func (srv *Server) Device() (info vram.DeviceInfo, ok bool) {
	if srv.vram == nil {
		return vram.DeviceInfo{}, false
	}
	return srv.vram.Device(), true
}

// Tiers returns the tiers that spans can live on.
func (srv *Server) Tiers() coherency.TierMask { return srv.store.Tiers() }

// Serve accepts sessions from ln until Shutdown is called or ctx ends, then
// returns nil. It owns ln.
//
// A unix listener serves this process's user (and root), told by peer
// credentials, and passes descriptors. A TCP listener must be wrapped by
// TLSListener unless it listens on a loopback address; on either kind a
// session needs the token, or over TLS a client certificate.
func (srv *Server) Serve(ctx context.Context, ln net.Listener) error {
	if err := srv.admissible(ln); err != nil {
		ln.Close()
		return err
	}
	if u, ok := ln.(*net.UnixListener); ok {
		l, err := unixsock.Listen(u)
		if err != nil {
			ln.Close()
			return fmt.Errorf("server: %v: %w", ln.Addr(), err)
		}
		ln = l
	}
	srv.mu.Lock()
	if srv.closing {
		srv.mu.Unlock()
		ln.Close()
		return net.ErrClosed
	}
	srv.listeners[ln] = struct{}{}
	srv.work.Add(1)
	srv.mu.Unlock()
	defer srv.work.Done()
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	a := acceptor{srv: srv, ln: ln, ended: make(chan struct{})}
	go a.run(ctx)
	<-a.ended
	srv.mu.Lock()
	delete(srv.listeners, ln)
	srv.mu.Unlock()
	return nil
}

// An acceptor accepts the connections of a listener. Who has accepted one serves it,
// and has another go on with accepting: before he waits for more than a moment, or
// does more than to answer what has come with the connection. So a question that comes with a
// connection is answered by the thread that the connection woke, before it wakes others.
type acceptor struct {
	srv   *Server
	ln    net.Listener
	ended chan struct{} // closed when the listener is
}

// run accepts until a connection is to be served, which it does to its end.
func (a *acceptor) run(ctx context.Context) {
	growStack()
	for wait := time.Duration(0); ; {
		yield := sync.OnceFunc(func() { go a.run(ctx) })
		var nc net.Conn
		var err error
		if ln, ok := a.ln.(*unixsock.Listener); ok {
			nc, err = ln.AcceptConn(yield)
		} else {
			nc, err = a.ln.Accept()
		}
		if err == nil {
			wait = 0
			if s := a.srv.begin(nc); s != nil {
				a.serve(ctx, s, yield)
				return
			}
			continue
		}
		if errors.Is(err, net.ErrClosed) {
			close(a.ended)
			return
		}
		// Out of descriptors, or a connection that broke before it began: no
		// reason to take the spans down.
		wait = min(max(2*wait, 5*time.Millisecond), time.Second)
		a.srv.log.Error("accept", "listener", a.ln.Addr(), "error", err, "retry", wait)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

// growStack gives the goroutine the stack that a session needs, before somebody waits for
// it: it would be copied several times as it grows.
//
//go:noinline
func growStack() {
	var room [16 << 10]byte
	runtime.KeepAlive(&room)
}

func (a *acceptor) serve(ctx context.Context, s *session, yield func()) {
	defer a.srv.work.Done()
	defer yield() // first: Shutdown waits for work to end, not for who accepts
	if _, ok := a.ln.(*unixsock.Listener); !ok {
		yield() // the handshake waits
	}
	s.serve(ctx, yield)
}

// admissible refuses listeners that would put spans on a network unguarded.
func (srv *Server) admissible(ln net.Listener) error {
	addr, ok := ln.Addr().(*net.TCPAddr)
	if !ok {
		return nil
	}
	tl, encrypted := ln.(*tlslisten.Listener)
	switch {
	case !encrypted && !addr.IP.IsLoopback():
		return fmt.Errorf("server: %v is not a loopback address: serve it with TLS", addr)
	case !srv.hasToken && !(encrypted && tl.Config.ClientAuth == tls.RequireAndVerifyClientCert):
		return fmt.Errorf("server: %v: sessions over TCP need a token or client certificates", addr)
	}
	return nil
}

// begin returns a session for nc, which is counted as work, unless too many are shaking
// hands: strangers must not be able to lock anybody out for longer than that takes.
func (srv *Server) begin(nc net.Conn) *session {
	s := newSession(srv, nc)
	srv.mu.Lock()
	full := srv.shaking >= srv.limits.Sessions+srv.limits.Guests
	if !srv.closing && !full {
		srv.sessions[s] = struct{}{}
		srv.shaking++
		srv.work.Add(1)
		srv.mu.Unlock()
		return s
	}
	srv.mu.Unlock()
	// Nothing is said: a peer that has not proved anything yet must not cost a
	// write that may block.
	srv.log.Warn("connection refused", "peer", nc.RemoteAddr(), "closing", !full)
	nc.Close()
	return nil
}

var errStopping = &wire.Error{Code: wire.Closed, Message: "the server is stopping"}

// admit counts a session that has proved who it is. It returns the error to
// tell the client if there are too many.
func (srv *Server) admit(s *session) error {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	switch {
	case srv.closing:
		return errStopping
	case !s.guest && srv.admitted >= srv.limits.Sessions:
		return &wire.Error{Code: wire.Limit, Op: "dial", Message: fmt.Sprintf("the server has %d sessions", srv.admitted)}
	}
	if s.guest {
		if err := srv.admitGuest(guestAddress(s.peer.Peer)); err != nil {
			return err
		}
	} else {
		srv.admitted++
	}
	s.admitted = true
	srv.shaking--
	return nil
}

func (srv *Server) dismiss(s *session) {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	delete(srv.sessions, s)
	switch {
	case !s.admitted:
		srv.shaking--
	case s.guest:
		srv.dismissGuest(guestAddress(s.peer.Peer))
	default:
		srv.admitted--
	}
}

// Shutdown stops accepting, tells sessions that the server is closing, lets
// work in flight end and mappings be flushed until ctx ends, closes all
// sessions and frees all spans. It must be called once.
func (srv *Server) Shutdown(ctx context.Context) error {
	srv.mu.Lock()
	srv.closing = true
	for ln := range srv.listeners {
		ln.Close()
	}
	var draining sync.WaitGroup
	for s := range srv.sessions {
		draining.Go(func() { s.drain(ctx) })
	}
	srv.mu.Unlock()
	err := srv.buffers.end()
	draining.Wait()
	srv.work.Wait()
	err = errors.Join(err, srv.surfaces.Close()) // which ends gatherings
	srv.replicas.work.Wait()
	return errors.Join(err, srv.buffers.close(), srv.store.Close(), srv.closeTiers())
}

func (srv *Server) closeTiers() error {
	err := srv.host.Close()
	if srv.vram != nil {
		err = errors.Join(err, srv.vram.Close())
	}
	if srv.disk != nil {
		err = errors.Join(err, srv.disk.Close())
	}
	return err
}

// sameUser returns the process of a peer on a unix socket, or why it may not use this
// server.
func sameUser(conn fdpass.Socket) (pid int, err error) {
	uid, _, pid, err := fdpass.PeerCred(conn)
	if err != nil {
		return 0, fmt.Errorf("peer credentials: %w", err)
	}
	if int(uid) != os.Getuid() && uid != 0 {
		return 0, fmt.Errorf("process %d runs as user %d, this server serves user %d only", pid, uid, os.Getuid())
	}
	return pid, nil
}
