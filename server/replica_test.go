// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"

	"github.com/memspan/memspan/internal/fdpass"
	"github.com/memspan/memspan/server"
	"github.com/memspan/memspan/surface"
	"github.com/memspan/memspan/wire"
	"github.com/memspan/memspan/wire/control"
)

// exposedAt exposes content at a server, and returns a ticket that others find it by.
func exposedAt(t *testing.T, socket, tcp string, a control.Expose, content []byte) string {
	t.Helper()
	p := connect(t, "unix", socket).greet()
	a.Size = int64(len(content))
	_, more, seal := p.exposeWritten(a)
	for b := range slices.Chunk(content, 1<<20) {
		more(b)
	}
	ticket, err := surface.ParseTicket(seal())
	if err != nil {
		t.Fatal(err)
	}
	ticket.Addresses = []string{"tcp://" + tcp}
	text, err := ticket.Text()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func (p *peer) surfaces() []control.SurfaceStat {
	p.t.Helper()
	var l control.Surfaces
	if err := p.control(control.OpSurfaces, struct{}{}, &l); err != nil {
		p.t.Fatal(err)
	}
	return l.Surfaces
}

// A replica goes with the last who has it open, whoever that is.
func TestReplicaGoesWithTheLast(t *testing.T) {
	_, socket, tcp := listen(t, server.Config{})
	relay, relaySocket, _ := listen(t, server.Config{})
	content := bytes.Repeat([]byte("memspan."), 2<<20) // more than buffers on the way hold
	text := exposedAt(t, socket, tcp, control.Expose{}, content)
	p := connect(t, "unix", relaySocket).greet()
	var o control.SurfaceOpened
	if err := p.control(control.OpPull, control.SurfacePull{Ticket: text}, &o); err != nil {
		t.Fatal(err)
	}
	handled := make(chan struct{})
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		relay.Handler().ServeHTTP(w, r)
		close(handled)
	}))
	defer web.Close()
	resp, err := web.Client().Get(web.URL + server.SurfacePath + text)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := p.control(control.OpClose, control.Handle{Handle: o.Handle}, nil); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	<-handled
	if list := p.surfaces(); len(list) > 0 {
		t.Errorf("left behind: %+v", list)
	}
}

// Who opens a replica while the last leaves gets it all the same.
func TestReplicaIsMadeAnew(t *testing.T) {
	_, socket, tcp := listen(t, server.Config{})
	_, relaySocket, _ := listen(t, server.Config{})
	text := exposedAt(t, socket, tcp, control.Expose{Chunk: 4096}, []byte("come and go"))
	var work sync.WaitGroup
	for range 4 {
		raw, err := net.Dial("unix", relaySocket)
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		files := fdpass.New(raw.(*net.UnixConn))
		p := (&peer{t: t, raw: raw, conn: wire.NewConn(files, wire.Config{})}).greet()
		work.Go(func() {
			for range 100 {
				var o control.SurfaceOpened
				if err := p.control(control.OpPull, control.SurfacePull{Ticket: text}, &o); err != nil {
					t.Error(err)
					return
				}
				if _, err := p.ask(wire.KindRead, wire.AppendRead(nil, wire.MemoryCommand{Memory: o.Handle, Size: 1}), nil); err != nil && !gathering(err) {
					t.Error(err)
				}
				for f, err := files.Take(); err == nil; f, err = files.Take() {
					f.Close()
				}
				if err := p.control(control.OpClose, control.Handle{Handle: o.Handle}, nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
	work.Wait()
	if list := connect(t, "unix", relaySocket).greet().surfaces(); len(list) > 0 {
		t.Errorf("left behind: %+v", list)
	}
}

// What is revoked where it was exposed is revoked at who has gathered it, who has heard of it
// by then; a ticket that is wider than the one it was gathered by is told what to do.
func TestReplicaIsRevokedWithItsOrigin(t *testing.T) {
	_, socket, tcp := listen(t, server.Config{})
	relay, relaySocket, _ := listen(t, server.Config{})
	content := bytes.Repeat([]byte("memspan."), 64<<10)
	wide := exposedAt(t, socket, tcp, control.Expose{Chunk: 4096}, content)
	ticket, err := surface.ParseTicket(wide)
	if err != nil {
		t.Fatal(err)
	}
	narrow, err := ticket.Derive(surface.Range{Offset: 0, Length: 100 << 10})
	if err != nil {
		t.Fatal(err)
	}
	text, err := narrow.Text()
	if err != nil {
		t.Fatal(err)
	}
	p, origin := connect(t, "unix", relaySocket).greet(), connect(t, "unix", socket).greet()
	var o control.SurfaceOpened
	if err := p.control(control.OpPull, control.SurfacePull{Ticket: text}, &o); err != nil {
		t.Fatal(err)
	}
	var refused *wire.Error
	if err := p.control(control.OpPull, control.SurfacePull{Ticket: wide}, new(control.SurfaceOpened)); !errors.As(err, &refused) || refused.Code != wire.Busy {
		t.Errorf("pulled by a wider ticket: %v", err)
	}
	state := o.State
	for state.Sequence == o.State.Sequence || len(state.Have) == 0 || state.Have[0].Count < 25 {
		if err := p.control(control.OpSurfaceWait, control.SurfaceWait{Handle: o.Handle, Sequence: state.Sequence}, &state); err != nil {
			t.Fatal(err)
		}
	}
	if list := origin.surfaces(); len(list) != 1 || list[0].Waiting != 0 {
		t.Errorf("who waits for no chunk waits: %+v", list)
	}
	if err := origin.control(control.OpRevoke, control.SurfaceID{ID: ticket.ID.String()}, nil); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		err = p.control(control.OpSurfaceWait, control.SurfaceWait{Handle: o.Handle, Sequence: state.Sequence}, &state)
	}
	if !errors.As(err, &refused) || refused.Code != wire.Revoked {
		t.Errorf("the one who has it open was told: %v", err)
	}
	web := httptest.NewServer(relay.Handler())
	defer web.Close()
	resp, err := web.Client().Get(web.URL + server.SurfacePath + text)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusGone {
		t.Errorf("who comes later was told: %s", resp.Status)
	}
}

// What was gathered by a ticket without a root, from wherever that says, is not given to who
// has a ticket with the root of something else: who holds a ticket could make the other.
func TestReplicaIsOfTheTicketsRoot(t *testing.T) {
	_, socket, tcp := listen(t, server.Config{})
	relay, relaySocket, _ := listen(t, server.Config{})
	ticket, err := surface.ParseTicket(exposedAt(t, socket, tcp, control.Expose{Chunk: 4096}, []byte("planted")))
	if err != nil {
		t.Fatal(err)
	}
	text := func(root *surface.Digest) string {
		t.Helper()
		other := *ticket
		other.Root = root
		s, err := other.Text()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	p := connect(t, "unix", relaySocket).greet()
	if err := p.control(control.OpPull, control.SurfacePull{Ticket: text(nil)}, new(control.SurfaceOpened)); err != nil {
		t.Fatal(err)
	}
	honest := text(&surface.Digest{1})
	var refused *wire.Error
	if err := p.control(control.OpPull, control.SurfacePull{Ticket: honest}, new(control.SurfaceOpened)); !errors.As(err, &refused) || refused.Code != wire.Corrupt {
		t.Errorf("pulled: %v, want Corrupt", err)
	}
	web := httptest.NewServer(relay.Handler())
	defer web.Close()
	resp, err := web.Client().Get(web.URL + server.SurfacePath + honest)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		t.Error("served over HTTP")
	}
	if err := p.control(control.OpPull, control.SurfacePull{Ticket: text(ticket.Root)}, new(control.SurfaceOpened)); err != nil {
		t.Errorf("by the root that it has: %v", err)
	}
}

// gathering reports whether what was read of a replica is not there yet.
func gathering(err error) bool {
	we, ok := err.(*wire.Error)
	return ok && we.Code == wire.WrongState
}

// Who asks what a read-once surface is does not take it from who pulls it.
func TestLookingTakesNothing(t *testing.T) {
	srv, socket, tcp := listen(t, server.Config{})
	web := httptest.NewServer(srv.Handler())
	defer web.Close()
	content := []byte("for one")
	text := exposedAt(t, socket, tcp, control.Expose{ReadOnce: true}, content)
	p := connect(t, "unix", socket).greet()
	var o control.SurfaceOpened
	if err := p.control(control.OpPull, control.SurfacePull{Ticket: text}, &o); err == nil {
		err = p.control(control.OpClose, control.Handle{Handle: o.Handle}, nil)
		if err != nil {
			t.Error(err)
		}
	}
	do := func(method string) ([]byte, *http.Response) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, web.URL+server.SurfacePath+text, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := web.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return b, resp
	}
	if _, resp := do("HEAD"); resp.StatusCode != http.StatusOK {
		t.Errorf("HEAD: %s", resp.Status)
	}
	if b, resp := do("GET"); !bytes.Equal(b, content) {
		t.Errorf("GET: %s, %q", resp.Status, b)
	}
	if _, resp := do("GET"); resp.StatusCode != http.StatusGone {
		t.Errorf("the second GET: %s", resp.Status)
	}
}
