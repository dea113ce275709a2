// SPDX-License-Identifier: Apache-2.0

package pull

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/memspan/memspan/surface"
	"github.com/memspan/memspan/wire"
	"github.com/memspan/memspan/wire/control"
	"github.com/memspan/memspan/wire/dial"
)

const (
	// firstWindow and fullWindow are how many frames are asked of a source
	// before the first is there: few, until it has shown what it can do, so
	// that a slow one owes little.
	firstWindow = 4
	fullWindow  = 16
)

// A source is a server that has the surface, or part of it: a connection on
// which requests are pipelined and answered by their ids. What is told of its
// goroutines: read receives, ask asks when there is something new to ask for,
// follow learns what it has. All end when the connection does. One whose memory is
// mapped has read alone, and that once somebody waits.
type source struct {
	s       *Surface
	address string
	vouches bool // for the manifest: it is one of the ticket's addresses
	conn    *dial.Conn
	handle  uint64
	header  surface.Manifest // as it has it, without digests
	once    bool             // it gives each byte once
	gone    chan struct{}    // closed when err is set
	wake    chan struct{}    // has an element when there may be something to ask for
	work    sync.WaitGroup

	// Guarded by the surface's mu.
	err       error
	lastID    uint64
	pending   map[uint64]*request
	fetches   map[*fetch]struct{}
	have      ranges
	window    int  // frames
	inflight  int  // frames of fetches asked for and not received
	held      bool // what was received waits for workers
	ping      bool // a sign of life is wanted
	bytes     int64
	checking  int  // fetches that are being verified
	listening bool // read runs, of a source that is direct
	proven    bool // a chunk was what it should be
}

// A request is under way on a connection.
type request struct {
	// Of a read: where its data goes.
	fetch *fetch
	dst   []byte
	// Of a control request: what came.
	reply []byte
	err   error
	done  chan struct{}
}

// connect dials a source and opens the surface there. Files is what came with
// the answer if direct was asked for and given.
func (s *Surface) connect(ctx context.Context, address string, direct bool) (c *source, opened control.SurfaceOpened, err error) {
	conn, err := s.dial(ctx, address, direct, &opened)
	if err != nil {
		return nil, opened, err
	}
	c = &source{
		s: s, address: address, conn: conn, handle: opened.Handle,
		gone: make(chan struct{}), wake: make(chan struct{}, 1),
		pending: make(map[uint64]*request), fetches: make(map[*fetch]struct{}),
		once: opened.ReadOnce, window: firstWindow, lastID: 1 << 32, // Ask has numbered before
	}
	header, err := surface.ParseHeader(opened.Header)
	if err == nil {
		c.header = *header
		c.header.Size = opened.State.Size // it may have grown in between
		if err = s.fits(header); err == nil {
			err = s.bounded(opened.State.Size)
		}
	}
	if err != nil {
		conn.Wire.Close()
		return nil, opened, fmt.Errorf("%s: %w", address, err)
	}
	return c, opened, nil
}

// dial connects and opens the surface: by a proof that this process has the ticket,
// or by having the server at the other end pull.
func (s *Surface) dial(ctx context.Context, address string, direct bool, opened *control.SurfaceOpened) (conn *dial.Conn, err error) {
	o := s.options.Dial
	switch {
	case s.options.Through != "" && address == s.options.Through:
		if conn, err = dial.Dial(ctx, address, o); err != nil {
			return nil, err
		}
		err = s.askThrough(ctx, conn, opened)
	case strings.HasPrefix(address, "tcp:"):
		// Whoever can listen there could use the proof again: it is for a nonce.
		o.Guest = true
		if conn, err = dial.Dial(ctx, address, o); err != nil {
			return nil, err
		}
		var nonce [32]byte
		if copy(nonce[:], conn.Welcome.Nonce) != len(nonce) || len(conn.Welcome.Nonce) != len(nonce) {
			err = &wire.Error{Code: wire.Unsupported, Op: "open", Message: "this server knows no surfaces"}
			break
		}
		err = conn.Ask(ctx, control.OpSurfaceOpen, s.proven(nonce, [32]byte{}, direct), opened)
	default:
		o.Guest, o.Early = true, func(state *tls.ConnectionState) (control.Op, any, error) {
			var binding [32]byte
			if state != nil {
				key, err := state.ExportKeyingMaterial(control.BindingLabel, nil, len(binding))
				if err != nil {
					return "", nil, err
				}
				copy(binding[:], key)
			}
			return control.OpSurfaceOpen, s.proven([32]byte{}, binding, direct), nil
		}
		if conn, err = dial.Dial(ctx, address, o); err != nil {
			return nil, err
		}
		err = conn.Await(ctx, control.OpSurfaceOpen, opened)
	}
	if err != nil {
		conn.Wire.Close()
		return nil, fmt.Errorf("%s: %w", address, err)
	}
	return conn, nil
}

// proven is the request to open the surface, with a proof for this connection.
func (s *Surface) proven(nonce, binding [32]byte, direct bool) control.SurfaceOpen {
	proof := s.ticket.Proof(nonce, binding)
	return control.SurfaceOpen{ID: s.ticket.ID.String(), Caveats: s.ticket.EncodedCaveats(), Proof: proof[:], Direct: direct}
}

// askThrough has the server at the other end pull the surface.
func (s *Surface) askThrough(ctx context.Context, conn *dial.Conn, opened *control.SurfaceOpened) error {
	keyless := *s.ticket // what it gathers is opened here
	keyless.Key = nil
	text, err := keyless.Text()
	if err != nil {
		return err
	}
	err = conn.Ask(ctx, control.OpPull, control.SurfacePull{Ticket: text, From: s.options.From}, opened)
	if err == nil && !opened.Direct {
		err = &wire.Error{Code: wire.Unsupported, Op: "pull", Message: "the server does not hand over this surface's memory: pull it without going through a server"}
	}
	return err
}

// bounded refuses what is larger than the puller will have.
func (s *Surface) bounded(size int64) error {
	if most := s.options.MaxSize; most > 0 && size > most {
		return &wire.Error{Code: wire.Limit, Message: fmt.Sprintf("the surface has %d bytes, and no more than %d are wanted", size, most)}
	}
	return nil
}

// start begins to use the source, whose state is what it has told last.
func (c *source) start(ctx context.Context, state control.SurfaceState) {
	c.work.Go(c.read)
	c.work.Go(c.ask)
	c.work.Go(func() { c.follow(ctx, state) })
}

// listen begins to receive, for who needs no more of the source: not before somebody
// waits for it, since who maps what is sealed never does.
func (c *source) listen() {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.listening || c.err != nil {
		return
	}
	c.listening = true
	c.work.Go(c.read)
}

// drop gives the source up, for the reason that err is. What it owes is asked
// of others.
func (c *source) drop(err error) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.dropLocked(err)
}

func (c *source) dropLocked(err error) {
	if c.err != nil {
		return
	}
	again := c.mayReturn(err)
	if errors.Is(err, io.EOF) {
		err = &wire.Error{Code: wire.PeerLost, Message: "the source closed the connection", Err: err}
	}
	c.err = fmt.Errorf("%s: %w", c.address, err)
	close(c.gone)
	c.conn.Wire.Close()
	for _, r := range c.pending {
		if r.done != nil {
			r.err = c.err
			close(r.done)
		}
	}
	clear(c.pending)
	for f := range c.fetches {
		f.failedLocked()
	}
	clear(c.fetches)
	if again {
		c.s.joinLocked(c.address, c.vouches)
	}
	c.s.lostLocked()
}

// mayReturn reports whether the source shall be dialed again: it was the link
// that failed, and what came over it before was worth having.
func (c *source) mayReturn(err error) bool {
	var said *wire.Error // by the source, or about it
	return (c.proven || c.checking > 0) && c.s.err == nil && (!errors.As(err, &said) || said.Code == wire.Stalled)
}

// read receives until the connection ends.
func (c *source) read() {
	for {
		h, err := c.conn.Wire.ReadHeader()
		if err == nil {
			err = c.receive(h)
		}
		if err != nil {
			c.drop(err)
			return
		}
	}
}

// receive takes in one frame. An error ends the source.
func (c *source) receive(h wire.Header) error {
	if h.Kind == wire.KindEvent {
		return c.conn.Wire.Discard() // whoever closes does so
	}
	if !h.Has(wire.FlagReply) {
		return broken("a %v frame that answers nothing", h.Kind)
	}
	c.s.mu.Lock()
	r := c.pending[h.ID]
	kind := wire.KindRead
	if r != nil && r.done != nil {
		kind = wire.KindControl
	}
	if h.Kind == kind { // else whoever waits learns that the source was dropped
		delete(c.pending, h.ID)
	}
	c.s.mu.Unlock()
	switch {
	case r == nil:
		return broken("an answer to request %d, which was not made or was answered", h.ID)
	case h.Kind != kind:
		return broken("a %v frame answers a request of another kind", h.Kind)
	case kind == wire.KindControl:
		return c.receiveControl(h, r)
	}
	return c.receiveRead(h, r)
}

func (c *source) receiveControl(h wire.Header, r *request) error {
	data := make([]byte, h.Raw)
	err := c.conn.Wire.ReadData(data)
	if err == nil && h.Has(wire.FlagError) {
		if r.err, err = wire.ParseError(data); err != nil {
			r.err = err
		}
	}
	if err != nil {
		r.err = err
	}
	r.reply = data
	close(r.done)
	return err
}

func (c *source) receiveRead(h wire.Header, r *request) error {
	var result [4]byte
	if _, err := c.conn.Wire.ReadPrefix(result[:0]); err != nil {
		return err
	}
	if h.Has(wire.FlagError) {
		data := make([]byte, h.Raw)
		if err := c.conn.Wire.ReadData(data); err != nil {
			return err
		}
		refusal, err := wire.ParseError(data)
		if err != nil {
			return err
		}
		return refusal // it said that it has the chunk
	}
	if int(h.Raw) != len(r.dst) {
		return broken("%d bytes answer a read of %d", h.Raw, len(r.dst))
	}
	if err := c.conn.Wire.ReadData(r.dst); err != nil {
		return err
	}
	f := r.fetch
	c.s.mu.Lock()
	c.inflight--
	c.window = min(c.window+1, fullWindow)
	c.bytes += int64(len(r.dst))
	f.left -= len(r.dst)
	whole := f.left == 0
	if whole {
		delete(c.fetches, f)
		c.checking++
	}
	// To ask for many at a time spares system calls, and half a window keeps
	// the link busy meanwhile.
	more := c.inflight <= c.window/2
	c.s.mu.Unlock()
	if more && c.request() != nil {
		c.poke() // ask sees that too; what was sent before is still received
	}
	if !whole {
		return nil
	}
	c.hold(true) // if it waits, that is not the source's fault
	c.s.check(f)
	c.hold(false)
	return nil
}

func (c *source) hold(held bool) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.held = held
}

// ask asks whenever there may be something new to ask for.
func (c *source) ask() {
	for {
		select {
		case <-c.gone:
			return
		case <-c.wake:
		}
		err := c.request()
		if err == nil && c.pinging() {
			err = c.notify(control.OpCancel, control.Cancel{}) // there is no request 0: answered at once
		}
		if err != nil {
			c.unsent(err)
			return
		}
	}
}

// lastWordTime bounds how long what was sent by a source is received that takes
// nothing any more.
const lastWordTime = time.Second

// unsent gives the source up because nothing can be sent to it, once all that it
// sent has been read: a surface that is read once is there nowhere else.
func (c *source) unsent(err error) {
	late := time.NewTimer(lastWordTime)
	defer late.Stop()
	select {
	case <-c.gone:
	case <-late.C:
		c.drop(err)
	}
}

func (c *source) pinging() bool {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	ping := c.ping
	c.ping = false
	return ping
}

// poke has ask look.
func (c *source) poke() {
	select {
	case c.wake <- struct{}{}:
	default: // it will
	}
}

// request asks for as much as the window allows and pulls want.
func (c *source) request() error {
	for {
		f := c.s.assign(c)
		if f == nil {
			return c.conn.Wire.Push()
		}
		if f.source == nil { // there is nothing to be asked for
			c.s.check(f)
			continue
		}
		if err := c.send(f); err != nil {
			return err
		}
	}
}

// send sends the requests of a fetch, which assign has noted.
func (c *source) send(f *fetch) error {
	var prefix [32]byte
	for at := 0; at < len(f.buf); {
		n := min(len(f.buf)-at, wire.MaxData)
		r := &request{fetch: f, dst: f.buf[at : at+n : at+n]}
		id, err := c.enter(r)
		if err != nil {
			return err
		}
		command := wire.MemoryCommand{Memory: c.handle, Offset: uint64(f.offset) + uint64(at), Size: uint64(n)}
		if err := c.conn.Wire.QueueFrame(wire.Header{Kind: wire.KindRead, ID: id}, wire.AppendRead(prefix[:0], command)); err != nil {
			return err
		}
		at += n
	}
	return nil
}

// enter numbers a request that is about to be sent.
func (c *source) enter(r *request) (id uint64, err error) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.err != nil {
		return 0, c.err
	}
	c.lastID++
	c.pending[c.lastID] = r
	return c.lastID, nil
}

// post sends a control request.
func (c *source) post(op control.Op, args any) (*request, error) {
	payload, err := control.Encode(op, args)
	if err != nil {
		return nil, err
	}
	r := &request{done: make(chan struct{})}
	id, err := c.enter(r)
	if err != nil {
		return nil, err
	}
	if err = c.conn.Wire.WriteFrame(wire.Header{Kind: wire.KindControl, ID: id}, nil, payload); err != nil {
		c.unsent(err)
	}
	return r, err
}

// notify sends a control request whose answer does not matter.
func (c *source) notify(op control.Op, args any) error {
	_, err := c.post(op, args)
	return err
}

// control sends a control request and waits for its answer, or until ctx ends.
func (c *source) control(ctx context.Context, op control.Op, args, reply any) error {
	r, err := c.post(op, args)
	if err != nil {
		return err
	}
	select {
	case <-r.done:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if r.err != nil {
		return r.err
	}
	if err := json.Unmarshal(r.reply, reply); err != nil {
		return broken("answer to %s: %v", op, err)
	}
	return nil
}
