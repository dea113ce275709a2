// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"sync"

	"github.com/memspan/memspan/surface"
	"github.com/memspan/memspan/surface/pull"
	"github.com/memspan/memspan/wire"
	"github.com/memspan/memspan/wire/control"
	"github.com/memspan/memspan/wire/dial"
)

// replicas are the surfaces of other servers that this one gathers, and serves on
// while somebody has them open.
type replicas struct {
	store *surface.Store

	mu    sync.Mutex
	begun map[surface.ID]chan struct{} // closed when it is in the store, or cannot be had

	work sync.WaitGroup // gatherings; each ends with its surface
}

// open opens the surface of a ticket: one of the store, or one that is gathered
// from now on. ctx bounds the opening.
func (r *replicas) open(ctx context.Context, t *surface.Ticket, o pull.Options) (*surface.Opening, error) {
	for {
		r.mu.Lock()
		begun, first := r.begun[t.ID], false
		if begun == nil && !r.store.Knows(t.ID) {
			begun, first = make(chan struct{}), true
			r.begun[t.ID] = begun
		}
		r.mu.Unlock()
		var opening *surface.Opening
		var err error
		switch {
		case begun == nil:
			opening, err = openOwn(r.store, t, here)
			if e, gone := r.store.Lookup(t.ID); errors.Is(err, surface.ErrTicket) && gone == nil && e.Stat().Replica {
				err = errOtherTicket
			}
		case first:
			opening, err = r.gather(ctx, t, o)
			r.mu.Lock()
			delete(r.begun, t.ID)
			r.mu.Unlock()
			close(begun)
		default:
			select {
			case <-begun:
				continue
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		}
		if !errors.Is(err, surface.ErrLeft) { // else everybody has just left it
			return opening, err
		}
	}
}

var errOtherTicket = &wire.Error{Code: wire.Busy, Op: "pull", Message: "the server has gathered this surface by a ticket that yours was not made of, perhaps a narrower one: " +
	"pull it without going through the server (no --share), or once those who have it open there have closed it"}

// gather begins to gather a surface that the store does not have, and opens it.
func (r *replicas) gather(ctx context.Context, t *surface.Ticket, o pull.Options) (*surface.Opening, error) {
	s, err := pull.Open(ctx, t, o)
	if err != nil {
		return nil, err
	}
	e, opening, err := r.add(ctx, s, t)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	r.work.Go(func() {
		defer s.Close()
		gathering := e.Context()
		put := func(i int64, c surface.Chunk) error { return e.Put(gathering, i, c) }
		err := s.Gather(gathering, e.Has, put)
		gathered := err == nil
		if gathered {
			err = s.Ended(gathering)
		}
		switch {
		case errors.Is(err, wire.Revoked): // where it was exposed, and so here
			_ = r.store.Revoke(t.ID) // it may have ended by itself
		case !gathered:
			e.Fail(err)
		}
	})
	return opening, nil
}

// add makes the store's surface for what s brings, and opens it.
func (r *replicas) add(ctx context.Context, s *pull.Surface, t *surface.Ticket) (*surface.Exposure, *surface.Opening, error) {
	if s.ReadOnce() {
		return nil, nil, &wire.Error{Code: wire.Unsupported, Op: "pull", Message: "the surface can be read once, by one puller, and not be passed on: pull it without --share"}
	}
	m, err := s.Manifest(ctx)
	if err != nil {
		return nil, nil, err
	}
	e, err := r.store.Replica(ctx, m, t)
	if err != nil {
		return nil, nil, err
	}
	opening, err := openOwn(r.store, t, here)
	if err != nil {
		e.Fail(err)
		return nil, nil, err
	}
	return e, opening, nil
}

// here is who asks on a unix socket.
const here = "unix"

// openOwn opens a surface of the store for who has shown the ticket itself.
func openOwn(store *surface.Store, t *surface.Ticket, who string) (*surface.Opening, error) {
	var nonce, binding [32]byte
	rand.Read(nonce[:])
	o, err := store.Open(surface.Request{
		Who: who, ID: t.ID, Caveats: t.EncodedCaveats(), Proof: t.Proof(nonce, binding), Nonce: nonce, Binding: binding,
	})
	if err != nil {
		return nil, err
	}
	// A replica that was gathered by a ticket without a root is what that ticket's servers
	// said, who may be anybody's: and whoever has a ticket can make such a one of it.
	p, err := o.Progress()
	if err == nil && t.Root != nil && p.Root != nil && *p.Root != *t.Root {
		err = errOtherRoot
	}
	if err != nil {
		o.Close()
		return nil, err
	}
	return o, nil
}

var errOtherRoot = &wire.Error{Code: wire.Corrupt, Op: "pull", Message: "what the server has by this surface's id is not what the ticket was made for, perhaps of a ticket that says " +
	"another address: pull it without going through the server (no --share)"}

// pull answers OpPull.
func (s *session) pull(ctx context.Context, h wire.Header, args json.RawMessage) error {
	var a control.SurfacePull
	err := decode(args, &a)
	var t *surface.Ticket
	if err == nil {
		t, err = surface.ParseTicket(a.Ticket)
	}
	if err == nil && !s.direct {
		err = &wire.Error{Code: wire.Unsupported, Op: "pull", Message: "the server hands memory over on unix sockets alone"}
	}
	var key *surface.Key
	if err == nil {
		key, t.Key = t.Key, nil // nobody whom it is pulled from needs it
		if a.Decrypt && key == nil {
			err = &wire.Error{Code: wire.Invalid, Op: "pull", Message: "a ticket without a key decrypts nothing"}
		}
	}
	var o *surface.Opening
	if err == nil {
		o, err = s.srv.replicas.open(ctx, t, pull.Options{
			From: a.From, Copy: true, MaxSize: s.srv.surfaceBudget, Dial: dial.Options{Name: "memspan server", IOTimeout: s.srv.ioTimeout},
		})
	}
	if err != nil {
		return s.replyError(h, err)
	}
	sh := newSurfaceHandle(nil, o)
	if m := o.Header(); a.Decrypt && m.Encrypted {
		sh.decrypter = &decrypter{opening: o, sealer: surface.NewSealer(*key, m.ID)}
	}
	return s.answerOpened(h, sh, sh.decrypter == nil)
}
