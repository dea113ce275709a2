// SPDX-License-Identifier: Apache-2.0

package pull

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/memspan/memspan/surface"
	"github.com/memspan/memspan/wire"
	"github.com/memspan/memspan/wire/control"
	"github.com/memspan/memspan/wire/dial"
)

// Options say how a surface is pulled. The zero value is usable.
type Options struct {
	// From are addresses of further sources, as package wire/dial takes them:
	// of who has pulled the surface and serves it on. They give chunks, whose
	// digests the ticket's root or the ticket's own addresses vouch for.
	From []string
	// Dial says how sources are dialed. An IOTimeout of 0 is 30 seconds: who
	// owes something, and sends nothing for so long, is not used any more.
	Dial dial.Options
	// Through is the address of a server of this user on this machine that is to
	// pull instead: it gathers and verifies the chunks, from From too, serves them to
	// others of the same ticket as long as somebody has the surface open, and hands
	// the memory over. It must not be given together with Copy, and is for
	// tickets that open all of their surface. Empty: none.
	Through string
	// MaxSize refuses, with wire.Limit, surfaces of more bytes of content, before
	// anything of them is kept; 0: none.
	MaxSize int64
	// Copy pulls chunk by chunk even where the memory itself could be mapped.
	Copy bool
	// Unverified leaves out that chunks are hashed, for who trusts all sources
	// and the links to them.
	Unverified bool
	// Progress, if set, is called as chunks arrive, by one goroutine at a time,
	// which it holds up.
	Progress func(Progress)
}

// Progress says how far a pull is.
type Progress struct {
	Done  int64 // bytes of content that have arrived
	Total int64 // of these; -1: not known yet
}

const (
	defaultTimeout = 30 * time.Second
	// dialTimeout bounds the dialing of an address if there are others.
	dialTimeout = 10 * time.Second
)

// A Surface is an exposure that was opened by a ticket. Its methods may be
// called concurrently; Close must come last.
type Surface struct {
	ticket  *surface.Ticket
	options Options
	allowed surface.Range   // what the ticket opens
	sealer  *surface.Sealer // nil: nothing is encrypted, or the key is not known
	direct  *direct         // nil: chunk by chunk
	zeros   surface.Zeros
	buffers buffers
	cache   cache

	ctx      context.Context // ends with the surface
	cancel   context.CancelCauseFunc
	work     sync.WaitGroup
	received chan *fetch
	closing  sync.Once
	closeErr error

	mu         sync.Mutex       // guards what follows
	header     surface.Manifest // with the digests that are known, from the first on; of a growing surface with the size so far
	sealed     bool             // header has its final size
	rooted     bool             // the digests are all there, and their root was verified
	sources    []*source
	joining    int // sources being dialed
	refusals   []error
	liars      map[string]bool // addresses
	err        error           // there will be no source any more
	gatherings []*gathering
	changed    chan struct{} // closed and replaced when something above changes
}

// Open opens the surface of a ticket. On the machine where the surface is it is
// handed the memory, if surface and ticket allow it: no byte is copied, and who reads maps it. Elsewhere it
// connects to the first of the ticket's addresses that answers and, as they
// answer, to all of o.From; with the ticket's root known the manifest has been
// verified when it returns.
//
// ctx bounds the opening alone. Errors are *Error and match package wire's codes:
// Unauthenticated (the ticket opens nothing there), Expired, Revoked, Taken,
// Corrupt (the manifest is not the ticket's), PeerLost and others.
func Open(ctx context.Context, t *surface.Ticket, o Options) (*Surface, error) {
	s := &Surface{
		ticket: t, options: o, allowed: t.Restriction().Range,
		received: make(chan *fetch, 2), changed: make(chan struct{}),
	}
	s.options.Dial.IOTimeout = cmp.Or(max(o.Dial.IOTimeout, 0), defaultTimeout)
	s.ctx, s.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	if t.Key != nil {
		s.sealer = surface.NewSealer(*t.Key, t.ID)
	}
	if err := s.open(ctx); err != nil {
		s.Close()
		if ctx.Err() != nil {
			err = &wire.Error{Code: wire.Canceled, Err: context.Cause(ctx)}
		}
		return nil, &Error{Op: "open", Surface: t.ID.String(), Err: err}
	}
	return s, nil
}

func (s *Surface) open(ctx context.Context) error {
	if through := s.options.Through; through != "" {
		c, opened, err := s.connect(ctx, through, true)
		if err != nil {
			return err
		}
		return s.openDirect(c, opened)
	}
	here, _ := surface.ThisMachine()
	var addresses []string
	for _, a := range s.ticket.Addresses {
		switch {
		case !strings.HasPrefix(a, "unix:"):
			addresses = append(addresses, a)
		case here == s.ticket.Machine && here != (surface.Machine{}):
			addresses = slices.Insert(addresses, 0, a)
		}
	}
	var first *source
	var state control.SurfaceState
	var failures []error
	from := s.options.From
	for i, a := range slices.Concat(addresses, from) {
		vouches := i < len(addresses)
		if !vouches {
			if s.ticket.Root == nil {
				break // none of them may say what the surface is
			}
			from = from[1:]
		}
		c, opened, err := s.tryConnect(ctx, a, !s.options.Copy && vouches, i+1 < len(addresses)+len(from))
		if err != nil {
			failures = append(failures, err)
			if ctx.Err() != nil {
				break
			}
			continue
		}
		c.vouches = vouches
		first, state = c, opened.State
		if opened.Direct {
			return s.openDirect(c, opened)
		}
		break
	}
	if first == nil {
		if len(failures) == 0 {
			return &wire.Error{Code: wire.NotFound, Message: "the ticket has no address that leads there from this machine: the surface is on another, which listens to no network; expose it by a server that was started with --listen"}
		}
		return errors.Join(failures...)
	}
	s.mu.Lock()
	s.header = first.header
	s.sources = []*source{first}
	for _, a := range from {
		s.joinLocked(a, false)
	}
	s.mu.Unlock()
	for range runtime.GOMAXPROCS(0) {
		s.work.Go(s.verify)
	}
	s.work.Go(s.watch)
	first.start(s.ctx, state)
	if s.ticket.Root == nil {
		return nil
	}
	return s.until(ctx, func() (bool, error) { return s.rooted, s.err })
}

// tryConnect connects, in bounded time if there are other addresses.
func (s *Surface) tryConnect(ctx context.Context, address string, direct, others bool) (*source, control.SurfaceOpened, error) {
	if others {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, dialTimeout)
		defer cancel()
	}
	return s.connect(ctx, address, direct)
}

// joinLocked begins to connect to a further source, or to one that was lost.
func (s *Surface) joinLocked(address string, vouches bool) {
	s.joining++
	s.work.Go(func() { s.join(address, vouches) })
}

func (s *Surface) join(address string, vouches bool) {
	c, opened, err := s.connect(s.ctx, address, false)
	s.mu.Lock()
	s.joining--
	if err == nil && (s.err != nil || s.liars[address]) {
		c.conn.Wire.Close()
		err = fmt.Errorf("%s: not used any more: %w", address, cmp.Or(s.err, error(wire.Corrupt)))
	}
	if err != nil {
		s.refusals = append(s.refusals, err)
		s.lostLocked()
		s.mu.Unlock()
		return
	}
	c.vouches = vouches
	s.sources = append(s.sources, c)
	c.start(s.ctx, opened.State)
	s.mu.Unlock()
}

// fits says why a header cannot be this surface's.
func (s *Surface) fits(h *surface.Manifest) error {
	if h.ID != s.ticket.ID {
		return lying("it has surface %v, not %v", h.ID, s.ticket.ID)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if known := &s.header; known.Chunk != 0 && (h.Chunk != known.Chunk || h.Encrypted != known.Encrypted) {
		return lying("its surface %v is in chunks of %d bytes, not %d", h.ID, h.Chunk, known.Chunk)
	}
	return nil
}

// notifyLocked wakes those who wait for something to change.
func (s *Surface) notifyLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// until waits until ready, which is called with mu held, says so or fails.
func (s *Surface) until(ctx context.Context, ready func() (bool, error)) error {
	for {
		s.mu.Lock()
		ok, err := ready()
		changed := s.changed
		s.mu.Unlock()
		if ok || err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return &wire.Error{Code: wire.Canceled, Err: context.Cause(ctx)}
		case <-s.ctx.Done():
			return ErrClosed
		}
	}
}

// lostLocked is called when a source is lost: it gives up if it was the last.
func (s *Surface) lostLocked() {
	live := s.joining
	for _, c := range s.sources {
		if c.err == nil {
			live++
			c.poke()
		}
	}
	if live == 0 && s.err == nil {
		s.err = s.lossLocked()
		for _, g := range slices.Clone(s.gatherings) {
			g.finishLocked(s.err)
		}
	}
	s.notifyLocked()
}

// lossLocked says what became of the sources.
func (s *Surface) lossLocked() error {
	var reasons []error
	for _, c := range s.sources {
		if c.err != nil {
			reasons = append(reasons, c.err)
		}
	}
	reasons = append(reasons, s.refusals...)
	if len(reasons) == 1 {
		return reasons[0]
	}
	return fmt.Errorf("no source is left: %w", errors.Join(reasons...))
}

// pokeLocked has all sources look for something to ask for.
func (s *Surface) pokeLocked() {
	for _, c := range s.sources {
		if c.err == nil {
			c.poke()
		}
	}
}

// layout returns what is known of the manifest now. Its digests do not change.
func (s *Surface) layout() surface.Manifest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.header
}

// usableLocked returns how many chunks, from the first on, can be asked for and
// verified.
func (s *Surface) usableLocked() int64 {
	if s.ticket.Root != nil && !s.rooted {
		return 0
	}
	n := int64(len(s.header.Digests))
	if !s.sealed { // the last chunk may grow
		n = min(n, s.header.Size/s.header.Chunk)
	}
	return n
}

// Close ends what is under way, with ErrClosed, and gives back what the surface
// holds: slices that Bytes returned must not be used any more. It is idempotent.
func (s *Surface) Close() error {
	s.closing.Do(func() { s.closeErr = s.close() })
	return s.closeErr
}

func (s *Surface) close() error {
	s.cancel(ErrClosed)
	s.dropAll()
	s.work.Wait()
	s.dropAll() // who was being dialed
	for _, c := range s.sources {
		c.work.Wait()
	}
	if s.direct != nil {
		return s.direct.close()
	}
	return nil
}

// dropAll ends all sources and gatherings.
func (s *Surface) dropAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = ErrClosed
	}
	for _, c := range s.sources {
		c.dropLocked(ErrClosed)
	}
	for _, g := range slices.Clone(s.gatherings) {
		g.finishLocked(ErrClosed)
	}
	s.notifyLocked()
}

// A Source says what became of one of the servers that a surface is pulled from.
type Source struct {
	Address string
	Bytes   int64 // of chunks that it has sent
	Err     error // why it is not used any more; nil: it is
}

// Sources returns all that were connected to, those that are lost too.
func (s *Surface) Sources() []Source {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Source
	for _, c := range s.sources {
		all = append(all, Source{c.address, c.bytes, c.err})
	}
	return all
}

// ReadOnce reports whether a source gives each byte once, to this puller: then there is
// nothing to pass on.
func (s *Surface) ReadOnce() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.sources, func(c *source) bool { return c.once })
}

// Header returns what is known of the surface: the manifest without its
// digests, of a surface that is still being written with the size so far.
func (s *Surface) Header() surface.Manifest {
	if s.direct != nil {
		return s.direct.layout()
	}
	m := s.layout()
	m.Digests = nil
	return m
}

// watch gives up sources that owe something and send nothing, and gatherings
// that nobody can help.
func (s *Surface) watch() {
	tick := time.NewTicker(max(s.options.Dial.IOTimeout/2, time.Millisecond))
	defer tick.Stop()
	type look struct {
		bytes uint64
		quiet int
	}
	sources := make(map[*source]look)
	stuck := make(map[*gathering]int64)
	for {
		select {
		case <-tick.C:
		case <-s.ctx.Done():
			return
		}
		s.mu.Lock()
		vouched := s.joining > 0
		for _, c := range s.sources {
			if c.err != nil {
				continue
			}
			vouched = vouched || c.vouches
			now := look{bytes: c.conn.Wire.Stats().Received.Bytes}
			if last, ok := sources[c]; ok && last.bytes == now.bytes && len(c.pending) > 0 && !c.held {
				now.quiet = last.quiet + 1
			}
			switch {
			case now.quiet == 1 && c.inflight == 0: // news may take their time: ask for a sign of life
				c.ping = true
				c.poke()
			case now.quiet == 3:
				c.dropLocked(&wire.Error{Code: wire.Stalled, Message: fmt.Sprintf("nothing came for %v", s.options.Dial.IOTimeout)})
			}
			sources[c] = now
		}
		for _, g := range slices.Clone(s.gatherings) {
			last, seen := stuck[g]
			stuck[g] = g.got
			if seen && last == g.got && len(g.pieces) == 0 && g.putting == 0 && g.limit > g.next && !vouched && s.err == nil {
				g.finishLocked(&wire.Error{Code: wire.Stalled, Message: fmt.Sprintf("no source that is left has chunk %d", g.next), Err: s.lossLocked()})
			}
		}
		s.mu.Unlock()
	}
}
