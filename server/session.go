// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/memspan/memspan/internal/fdpass"
	"github.com/memspan/memspan/internal/tlslisten"
	"github.com/memspan/memspan/span"
	"github.com/memspan/memspan/tier"
	"github.com/memspan/memspan/wire"
	"github.com/memspan/memspan/wire/control"
)

// A session is one connection's handles, mappings and locks; all of it goes
// when the connection goes.
//
// The goroutine of serve reads frames. Data frames are carried out in order:
// small ones and stores to RAM there, others on the lane, so that the next is
// received while one is stored. Each control request has a goroutine. Until its first
// request is answered the session holds up who accepts connections: see acceptor.
type session struct {
	srv   *Server
	raw   net.Conn // as accepted
	owner span.Owner
	log   *slog.Logger

	yield func() // has another accept connections: at the latest before anything that may wait

	// Set by the handshake, immutable once established is closed.
	established chan struct{}
	admitted    bool                // guarded by the server's mu
	peer        control.SessionStat // who it is; immutable once admitted
	ended       chan struct{}       // closed when serve returns
	conn        *wire.Conn
	files       *fdpass.Conn // of a unix socket; else nil
	guest       bool         // may pull surfaces, and nothing else
	nonce       [32]byte     // of proofs
	binding     [32]byte     // of proofs to the TLS connection; zeros without
	direct      bool
	compress    bool

	bytesRead, bytesWritten atomic.Int64 // bytes of spans, by data frames and direct mappings' releases

	frames  int    // received; readFrames' own
	prefix  []byte // of the data frame being received; readFrames' own
	lane    chan *dataJob
	stores  chan struct{}     // an element for each block received and not yet stored
	replies chan *dataJob     // large answers to reads
	queued  atomic.Int32      // data jobs under way
	batches map[uint64]*batch // by handle or mapping; its own who carries out data jobs
	freed   chan *mapping     // whose span was freed

	requests sync.WaitGroup // control goroutines

	laneStarted         bool // readFrames' own
	laneWork, replyWork sync.WaitGroup

	mu       sync.Mutex // guards what follows
	handles  map[uint64]*span.Span
	mappings map[uint64]*mapping
	locks    map[uint64]heldLock
	surfaces map[uint64]*surfaceHandle
	waiting  int                                // for locks
	cancels  map[uint64]context.CancelCauseFunc // control requests under way, by request id
	waits    map[uint64]context.CancelCauseFunc // of them, those that wait for others
	idle     *time.Timer                        // of a guest: ends the session unless it has a surface open
	pending  map[uint64]*span.Span              // by handle or mapping: changed by frames of a write whose last is to come
	draining bool
	quiet    chan struct{} // closed when draining and nothing is left to wait for
}

// A mapping is what a client has mapped.
type mapping struct {
	id     uint64 // guarded by the session's mu; 0 until it is known to the client
	span   *span.Span
	off, n int64
	direct *span.Direct // or nil
	shadow *span.Shadow // or nil
	write  bool

	toBeDirect bool
}

// A heldLock is a lock of the session.
type heldLock struct {
	span *span.Span
	id   span.LockID
}

// stagingPerSession bounds the blocks that a session has between its
// connection and a tier: those received and not yet stored, one being read, one
// being sent, one waiting for that, and what operations may need beside them.
const (
	laneLength        = 16 // requests: a client's whole window, which hold no memory while they wait if they read
	maxReceived       = 4
	stagingPerSession = maxReceived + 4
)

func newSession(srv *Server, nc net.Conn) *session {
	owner := span.Owner(srv.nextOwner.Add(1))
	return &session{
		srv:         srv,
		raw:         nc,
		owner:       owner,
		log:         srv.log.With("session", uint64(owner)),
		lane:        make(chan *dataJob, laneLength),
		stores:      make(chan struct{}, maxReceived),
		replies:     make(chan *dataJob),
		handles:     make(map[uint64]*span.Span),
		mappings:    make(map[uint64]*mapping),
		locks:       make(map[uint64]heldLock),
		surfaces:    make(map[uint64]*surfaceHandle),
		cancels:     make(map[uint64]context.CancelCauseFunc),
		waits:       make(map[uint64]context.CancelCauseFunc),
		pending:     make(map[uint64]*span.Span),
		batches:     make(map[uint64]*batch),
		quiet:       make(chan struct{}),
		established: make(chan struct{}),
		ended:       make(chan struct{}),
	}
}

// serve runs the session to its end. It calls yield when what it does next may take
// its time.
func (s *session) serve(ctx context.Context, yield func()) {
	s.yield = yield
	// The session outlives the context that Serve was given: Shutdown ends it
	// in good order.
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	defer s.srv.dismiss(s)
	defer close(s.ended)
	defer s.raw.Close()
	start := time.Now()
	if err := s.handshake(ctx); err != nil {
		s.log.Warn("handshake failed", "peer", s.raw.RemoteAddr(), "error", err)
		return
	}
	if s.guest {
		s.idle = time.AfterFunc(s.srv.guestTime, s.endIdle)
		defer s.idle.Stop()
	} else {
		s.freed = make(chan *mapping, s.srv.limits.Mappings)
	}
	close(s.established)
	s.log.Debug("session begins", "peer", s.raw.RemoteAddr(), "handshake", time.Since(start))
	var events sync.WaitGroup
	if !s.guest { // who maps nothing
		events.Go(s.tellFreed)
	}
	err := s.readFrames(ctx)
	// No reply can be wanted any more: end what waits.
	cancel(errGone)
	s.conn.Close()
	close(s.lane)
	s.laneWork.Wait()
	close(s.replies)
	s.replyWork.Wait()
	s.requests.Wait()
	s.cleanUp() // no span knows of this session's mappings any more
	if !s.guest {
		close(s.freed)
	}
	events.Wait()
	s.log.Debug("session ends", "reason", err)
}

// tellFreed tells the client of mappings whose span was freed.
func (s *session) tellFreed() {
	for m := range s.freed {
		s.mu.Lock()
		id := m.id
		s.mu.Unlock()
		if id != 0 { // else the map request has yet to be answered
			s.event(control.Event{Event: control.EventFreed, Mapping: id, Message: "the span was freed"})
		}
	}
}

// startLane starts those who carry out data frames, with the first one.
func (s *session) startLane(ctx context.Context) {
	s.laneWork.Go(func() {
		for j := range s.lane {
			s.jobDone(s.carryOut(ctx, j))
		}
	})
	s.replyWork.Go(func() {
		for j := range s.replies {
			s.jobDone(s.answerRead(j))
		}
	})
}

// endIdle ends the session of a guest that has no surface open.
func (s *session) endIdle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.surfaces) == 0 {
		s.raw.Close()
	}
}

// jobDone notes that a data job is over; err says that its answer could not be
// written.
func (s *session) jobDone(err error) {
	if err != nil {
		s.raw.Close()
	}
	s.queued.Add(-1)
	s.mu.Lock()
	s.settle()
	s.mu.Unlock()
}

var errGuest = errors.New("a guest, who may pull surfaces and nothing else, sends data")

var errGone = fmt.Errorf("the connection is gone: %w", net.ErrClosed)

// handshake makes the connection ready and reads the client's hello.
func (s *session) handshake(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { s.raw.Close() })
	defer stop()

	trusted := false
	cfg := wire.Config{IOTimeout: s.srv.ioTimeout}
	nc := s.raw
	switch raw := s.raw.(type) {
	case fdpass.Socket:
		pid, err := sameUser(raw)
		if err != nil {
			return err
		}
		s.files = fdpass.New(raw)
		nc = s.files
		trusted, s.direct = true, true
		s.peer.Transport, s.peer.PID = control.TransportUnix, pid
	case *tlslisten.Conn: // progress is measured below TLS
		keepAlive(raw.Conn)
		tc := tls.Server(wire.Progress(raw.Conn, s.srv.ioTimeout), raw.Config)
		if err := tc.HandshakeContext(ctx); err != nil {
			s.plainOnTLS(raw.Conn, err)
			return err
		}
		state := tc.ConnectionState()
		trusted = len(state.VerifiedChains) > 0
		binding, err := state.ExportKeyingMaterial(control.BindingLabel, nil, len(s.binding))
		if err != nil {
			return err
		}
		copy(s.binding[:], binding)
		nc = tc
		s.peer.Transport, s.peer.Peer = control.TransportTLS, raw.RemoteAddr().String()
	default:
		keepAlive(raw)
		cfg.Sums = true
		s.peer.Transport, s.peer.Peer = control.TransportTCP, raw.RemoteAddr().String()
	}
	s.conn = wire.NewConn(nc, cfg)

	h, err := s.conn.ReadHeader()
	if err != nil {
		var version *wire.VersionError
		if errors.As(err, &version) {
			s.refuse(wire.Header{Kind: wire.KindHello}, wire.BadVersion,
				fmt.Sprintf("this server speaks protocol version %d, the client %d; use the same release on both sides", wire.Version, version.Got))
		}
		if tcp, plain := s.raw.(*net.TCPConn); plain && errors.Is(err, wire.ErrMagic) {
			// A TLS client knows this answer by its first bytes.
			s.refuse(wire.Header{Kind: wire.KindHello}, wire.Invalid, "this port speaks memspan's protocol, without TLS: use tcp://")
			linger(tcp)
		}
		return err
	}
	var hello control.Hello
	if h.Kind != wire.KindHello {
		return fmt.Errorf("first frame is of kind %d, want hello", h.Kind)
	}
	if err := s.readJSON(h, &hello); err != nil {
		return err
	}
	if hello.Protocol != wire.Version {
		s.refuse(h, wire.BadVersion,
			fmt.Sprintf("this server speaks protocol version %d, the client %d; use the same release on both sides", wire.Version, hello.Protocol))
		return fmt.Errorf("client speaks protocol version %d", hello.Protocol)
	}
	if s.guest = hello.Guest; !s.guest && !trusted && !s.authentic(hello.Token) {
		s.refuse(h, wire.Unauthenticated, "the token is missing or wrong; give the one that the server was started with (--token-file)")
		return errors.New("token is missing or wrong")
	}
	s.peer.Session, s.peer.Client, s.peer.Since = uint64(s.owner), printable(hello.Client), time.Now().UTC()
	if err := s.srv.admit(s); err != nil {
		return errors.Join(err, s.replyError(h, err))
	}
	s.compress = hello.Compress && !s.direct
	if !s.direct && s.binding == [32]byte{} { // elsewhere nobody can listen, and use a proof again
		rand.Read(s.nonce[:])
	}
	// It leaves before a request that came with the hello is answered: the client takes it
	// in meanwhile.
	err = s.reply(h, control.Welcome{
		Protocol:  wire.Version,
		Session:   uint64(s.owner),
		BlockSize: tier.BlockSize,
		Tiers:     s.srv.store.Tiers(),
		Direct:    s.direct,
		Compress:  s.compress,
		MaxSpan:   s.srv.limits.SpanSize,
		MaxMap:    s.srv.limits.Map,
		Nonce:     s.nonce[:],
	})
	if err == nil && s.compress {
		s.conn.SetCompress(true)
	}
	return err
}

// plainOnTLS answers a client that speaks the protocol where TLS is spoken, if
// err says that this is what went wrong: it could not tell from a connection
// that just ends.
func (s *session) plainOnTLS(nc net.Conn, err error) {
	var record tls.RecordHeaderError
	tcp, ok := nc.(*net.TCPConn)
	if !ok || !errors.As(err, &record) || record.Conn == nil || !wire.IsMagic(record.RecordHeader[:]) {
		return
	}
	s.conn = wire.NewConn(tcp, wire.Config{IOTimeout: s.srv.ioTimeout, Sums: true})
	s.refuse(wire.Header{Kind: wire.KindHello}, wire.Invalid, "this port speaks TLS: use tls://, and the server's fingerprint or authority")
	linger(tcp)
}

// linger waits until the peer has closed a connection that it was told to
// close, for as long as the handshake may take: closed with bytes unread, the
// connection would be reset, and the answer lost.
func linger(tcp *net.TCPConn) {
	const most = 64 << 10 // bytes; a hello, of either kind, is far shorter
	if tcp.CloseWrite() == nil {
		io.CopyN(io.Discard, tcp, most)
	}
}

// keepAlive finds peers that vanished without a word within two minutes.
func keepAlive(nc net.Conn) {
	if tcp, ok := nc.(*net.TCPConn); ok {
		tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 15 * time.Second, Count: 6})
	}
}

func (s *session) authentic(token string) bool {
	got := sha256.Sum256([]byte(token))
	return s.srv.hasToken && subtle.ConstantTimeCompare(got[:], s.srv.token[:]) == 1
}

// readFrames serves requests until the connection ends or breaks the rules.
func (s *session) readFrames(ctx context.Context) error {
	for {
		if !s.conn.FrameReceived() { // nobody waits for what waits here
			if err := s.conn.Push(); err != nil {
				return err
			}
		}
		s.dropFiles()
		h, err := s.conn.ReadHeader()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		s.frames++
		if h.Kind != wire.KindControl {
			s.yield()
			if !s.laneStarted {
				s.laneStarted = true
				s.startLane(ctx)
			}
		}
		switch h.Kind {
		case wire.KindControl:
			err = s.startControl(ctx, h)
		case wire.KindRead:
			err = s.startData(ctx, h)
		case wire.KindTransfer, wire.KindFlush:
			if err = errGuest; !s.guest {
				err = s.startData(ctx, h)
			}
		default:
			err = fmt.Errorf("frame of kind %d from a client", h.Kind)
		}
		if err != nil {
			s.log.Warn("session broken off", "peer", s.raw.RemoteAddr(), "error", err)
			return err
		}
	}
}

// readJSON reads the payload of a frame.
func (s *session) readJSON(h wire.Header, v any) error {
	if h.Prefix != 0 {
		return fmt.Errorf("a JSON message behind a prefix of %d bytes", h.Prefix)
	}
	buf := make([]byte, h.Raw)
	if err := s.conn.ReadData(buf); err != nil {
		return err
	}
	return json.Unmarshal(buf, v)
}

// reply answers a control request, passing files beside the frame.
func (s *session) reply(h wire.Header, v any) error {
	payload, err := json.Marshal(v)
	if err != nil {
		return err
	}
	err = s.conn.WriteFrame(wire.Header{Kind: h.Kind, Flags: wire.FlagReply, ID: h.ID}, nil, payload)
	if errors.Is(err, wire.ErrTooLarge) { // nothing was written
		return s.refuse(h, wire.Limit, fmt.Sprintf("the answer of %d bytes is too large: ask for less at once", len(payload)))
	}
	return err
}

func (s *session) refuse(h wire.Header, code wire.Code, message string) error {
	return s.replyError(h, &wire.Error{Code: code, Message: message})
}

// newHandle returns a number that no other handle of the session has and that
// nobody can guess. The caller holds mu.
func newHandle[V any](taken map[uint64]V) uint64 {
	for {
		var raw [8]byte
		rand.Read(raw[:])
		h := binary.LittleEndian.Uint64(raw[:])
		if _, dup := taken[h]; h != 0 && !dup {
			return h
		}
	}
}

// drain tells the client that the server is closing, waits until nothing is
// under way and nothing is mapped, or ctx ends, and closes the connection.
func (s *session) drain(ctx context.Context) {
	defer s.raw.Close()
	stop := context.AfterFunc(ctx, func() { s.raw.Close() }) // the event may have to wait
	defer stop()
	select {
	case <-s.established:
	default:
		return
	}
	if l := s.lease(); l != nil { // what is on the connection is not ours to say
		l.end()
		select {
		case <-s.ended:
		case <-ctx.Done():
			l.process.Kill()
		}
		return
	}
	s.event(control.Event{Event: control.EventClosing, Message: "the server is stopping"})
	if s.guest { // who would wait for what nobody will write any more
		return
	}
	s.mu.Lock()
	s.draining = true
	for _, cancel := range s.waits {
		cancel(errStopping)
	}
	s.settle()
	s.mu.Unlock()
	select {
	case <-s.quiet:
	case <-s.ended:
	case <-ctx.Done():
	}
}

// settle closes quiet if the session is draining and has nothing left to do.
// The caller holds mu and calls it whenever something ended.
func (s *session) settle() {
	if !s.draining || len(s.cancels) > 0 || len(s.mappings) > 0 || s.queued.Load() > 0 {
		return
	}
	select {
	case <-s.quiet:
	default:
		close(s.quiet)
	}
}

// event tells the client something unasked. A client that does not listen is
// not waited for: its connection ends when the write stalls.
func (s *session) event(e control.Event) {
	payload, err := json.Marshal(e)
	if err != nil {
		return
	}
	if err := s.conn.WriteFrame(wire.Header{Kind: wire.KindEvent}, nil, payload); err != nil {
		s.log.Debug("event not delivered", "event", e.Event, "error", err)
	}
}

// cleanUp gives back everything the client held. What it did not end itself it
// left behind: locks are passed on as abandoned, blocks of writable direct
// mappings are committed as unclean.
func (s *session) cleanUp() {
	s.mu.Lock()
	mappings, locks, handles, pending, surfaces := s.mappings, s.locks, s.handles, s.pending, s.surfaces
	s.mappings, s.locks, s.handles, s.pending, s.surfaces = nil, nil, nil, nil, nil
	s.mu.Unlock()
	for _, h := range surfaces {
		h.close()
	}
	for _, sp := range pending {
		sp.CountCommit()
	}
	for id := range s.batches {
		s.dropBatch(id)
	}
	for _, m := range mappings {
		if err := m.close(context.Background(), true); err != nil && !errors.Is(err, span.ErrFreed) {
			s.log.Error("releasing a dead client's mapping", "error", err)
		}
	}
	for _, l := range locks {
		l.span.UnlockAll(s.owner, true)
	}
	for _, sp := range handles {
		if err := sp.Forsake(); err != nil {
			s.log.Error("freeing a dead client's span", "error", err)
		}
	}
}

// close ends a mapping; died says that the client did not.
func (m *mapping) close(ctx context.Context, died bool) error {
	if m.direct != nil {
		_, err := m.direct.Close(ctx, died)
		return err
	}
	m.shadow.Close()
	return nil
}

// passFiles sends a reply with descriptors beside it.
func (s *session) passFiles(h wire.Header, v any, files ...*os.File) error {
	payload, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return s.conn.WriteFrameFiles(wire.Header{Kind: h.Kind, Flags: wire.FlagReply, ID: h.ID}, payload, files...)
}
