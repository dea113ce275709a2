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

	mu   sync.Mutex // guards what follows
	byID map[surface.ID]*replica
	work sync.WaitGroup // gatherings
}

// A replica is one of them.
type replica struct {
	ready    chan struct{}     // closed when what follows is set
	exposure *surface.Exposure // nil: it cannot be had
	cancel   context.CancelFunc
}

// open opens the surface of a ticket: one of the store, or one that is gathered
// from now on. ctx bounds the opening.
func (r *replicas) open(ctx context.Context, t *surface.Ticket, o pull.Options) (*surface.Opening, error) {
	for {
		if r.store.Knows(t.ID) {
			opening, err := openOwn(r.store, t, here)
			if err == nil || r.store.Knows(t.ID) { // else it was a replica that everybody has just left
				return opening, err
			}
		}
		r.mu.Lock()
		one := r.byID[t.ID]
		first := one == nil
		if first {
			one = &replica{ready: make(chan struct{})}
			r.byID[t.ID] = one
		}
		r.mu.Unlock()
		if first {
			return r.gather(ctx, one, t, o)
		}
		select {
		case <-one.ready:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		if !r.store.Knows(t.ID) { // it could not be had, or has ended
			r.forget(t.ID, one)
		}
	}
}

// gather begins to gather a surface that the store does not have, and opens it.
func (r *replicas) gather(ctx context.Context, one *replica, t *surface.Ticket, o pull.Options) (opening *surface.Opening, err error) {
	var s *pull.Surface
	defer func() {
		if err != nil {
			if s != nil {
				err = errors.Join(err, s.Close())
			}
			r.forget(t.ID, one)
		}
		close(one.ready)
	}()
	if s, err = pull.Open(ctx, t, o); err != nil {
		return nil, err
	}
	if s.ReadOnce() {
		return nil, &wire.Error{Code: wire.Unsupported, Op: "pull", Message: "the surface can be read once, by one puller, and not be passed on: pull it without --share"}
	}
	m, err := s.Manifest(ctx)
	if err != nil {
		return nil, err
	}
	e, err := r.store.Replica(ctx, m, t)
	if err != nil {
		return nil, err
	}
	if opening, err = openOwn(r.store, t, here); err != nil {
		e.Fail(err)
		return nil, err
	}
	gathering, cancel := context.WithCancel(context.WithoutCancel(ctx))
	r.mu.Lock()
	one.exposure, one.cancel = e, cancel
	r.mu.Unlock()
	r.work.Go(func() {
		defer s.Close()
		defer cancel()
		put := func(i int64, stored []byte) error { return e.Put(gathering, i, stored) }
		if err := s.Gather(gathering, e.Has, put); err != nil {
			e.Fail(err)
		}
	})
	return opening, nil
}

func (r *replicas) forget(id surface.ID, one *replica) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byID[id] == one {
		delete(r.byID, id)
	}
}

// left takes note that somebody has closed a surface: a replica that nobody has
// open any more goes.
func (r *replicas) left(id surface.ID) {
	r.mu.Lock()
	one := r.byID[id]
	if one == nil || one.exposure == nil || one.exposure.Stat().Pullers > 0 {
		r.mu.Unlock()
		return
	}
	delete(r.byID, id)
	r.mu.Unlock()
	one.cancel()
	_ = r.store.Revoke(id) // it may have ended by itself
}

// close ends all gatherings; none may begin.
func (r *replicas) close() {
	r.mu.Lock()
	for _, one := range r.byID {
		if one.cancel != nil {
			one.cancel()
		}
	}
	r.mu.Unlock()
	r.work.Wait()
}

// here is who asks on a unix socket.
const here = "unix"

// openOwn opens a surface of the store for who has shown the ticket itself.
func openOwn(store *surface.Store, t *surface.Ticket, who string) (*surface.Opening, error) {
	var nonce, binding [32]byte
	rand.Read(nonce[:])
	return store.Open(surface.Request{
		Who: who, ID: t.ID, Caveats: t.EncodedCaveats(), Proof: t.Proof(nonce, binding), Nonce: nonce, Binding: binding,
	})
}

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
	var o *surface.Opening
	if err == nil {
		o, err = s.srv.replicas.open(ctx, t, pull.Options{
			From: a.From, Copy: true, MaxSize: s.srv.surfaceBudget, Dial: dial.Options{Name: "memspan server", IOTimeout: s.srv.ioTimeout},
		})
	}
	if err != nil {
		return s.replyError(h, err)
	}
	return s.answerOpened(h, o, true)
}
