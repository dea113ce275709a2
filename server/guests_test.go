// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"github.com/memspan/memspan/server"
	"github.com/memspan/memspan/surface"
	"github.com/memspan/memspan/wire"
	"github.com/memspan/memspan/wire/control"
)

// guest dials as a guest.
func guest(t *testing.T, network, address string) (*peer, control.Welcome, error) {
	t.Helper()
	p := connect(t, network, address)
	p.raw.SetReadDeadline(time.Now().Add(time.Minute)) // for tests that fail
	hello, _ := json.Marshal(control.Hello{Protocol: wire.Version, Guest: true})
	var w control.Welcome
	reply, err := p.ask(wire.KindHello, nil, hello)
	if err == nil {
		err = json.Unmarshal(reply, &w)
	}
	return p, w, err
}

// openAs opens a surface by its ticket.
func (p *peer) openAs(w control.Welcome, text string) (o control.SurfaceOpened) {
	p.t.Helper()
	k, err := surface.ParseTicket(text)
	if err != nil {
		p.t.Fatal(err)
	}
	proof := k.Proof([32]byte(w.Nonce), [32]byte{})
	if err := p.control(control.OpSurfaceOpen, control.SurfaceOpen{ID: k.ID.String(), Proof: proof[:]}, &o); err != nil {
		p.t.Fatal(err)
	}
	return o
}

// A guest that opens nothing, or has closed what it opened, makes room for others; one
// with a surface open stays.
func TestGuestsIdle(t *testing.T) {
	t.Parallel()
	srv, socket, _ := listen(t, server.Config{})
	srv.SetGuestTime(impatience)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error)
	go func() { served <- srv.Serve(t.Context(), ln) }()
	defer func() {
		ln.Close()
		<-served
	}()
	tcp := ln.Addr().String()
	p := connect(t, "unix", socket).greet()
	ticket, more, _ := p.exposeWritten(control.Expose{Size: 4096, Chunk: 4096})
	more(make([]byte, 4096))

	idle, _, err := guest(t, "tcp", tcp)
	if err != nil {
		t.Fatal(err)
	}
	stays, w, err := guest(t, "tcp", tcp)
	if err != nil {
		t.Fatal(err)
	}
	o := stays.openAs(w, ticket)
	if _, _, err := idle.receive(); !errors.Is(err, io.EOF) {
		t.Errorf("a guest that opens nothing: %v, want the end", err)
	}
	later, _, err := guest(t, "tcp", tcp)
	if err != nil {
		t.Fatal(err)
	}
	// As long again as guests have: nothing but the time itself ends later's.
	if _, _, err := later.receive(); !errors.Is(err, io.EOF) {
		t.Errorf("a guest that opens nothing: %v, want the end", err)
	}
	if err := stays.control(control.OpSurfaceDigests, control.SurfaceDigests{Handle: o.Handle, Count: 1}, nil); err != nil {
		t.Errorf("a guest that has a surface open: %v", err)
	}
	if err := stays.control(control.OpClose, control.Handle{Handle: o.Handle}, nil); err != nil {
		t.Fatal(err)
	}
	if _, _, err := stays.receive(); !errors.Is(err, io.EOF) {
		t.Errorf("a guest that has closed what it opened: %v, want the end", err)
	}
}

// One address does not take all the room, whether it speaks the protocol or HTTP.
func TestGuestsOfOneAddress(t *testing.T) {
	srv, socket, tcp := listen(t, server.Config{Limits: server.Limits{Guests: 8}})
	web := httptest.NewUnstartedServer(srv.Handler())
	web.Listener = srv.GuestListener(web.Listener)
	web.Start()
	defer web.Close()
	if _, _, err := guest(t, "tcp", tcp); err != nil {
		t.Fatal(err)
	}
	resp, err := web.Client().Get(web.URL) // which keeps nothing: there is no ticket
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	held, err := net.Dial("tcp", web.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	for full := false; !full; {
		_, _, err := guest(t, "tcp", tcp)
		full = errors.Is(err, wire.Limit)
		if err != nil && !full {
			t.Fatal(err)
		}
	}
	if resp, err := (&http.Client{Transport: &http.Transport{}}).Get(web.URL); err == nil {
		resp.Body.Close()
		t.Error("an address that has its share of guests is served over HTTP")
	}
	if _, _, err := guest(t, "unix", socket); err != nil {
		t.Errorf("a guest of this user's, by the unix socket: %v", err)
	}
}

// begin asks for something and does not wait for the answer.
func (p *peer) begin(op control.Op, args any) {
	p.t.Helper()
	raw, _ := json.Marshal(args)
	data, _ := json.Marshal(control.Request{Op: op, Args: raw})
	p.send(wire.KindControl, nil, data)
}

// Who waits for what may never come does not hold up the server's end, and closing a
// handle ends the waits for it.
func TestWaitsEnd(t *testing.T) {
	srv, err := server.New(t.Context(), server.Config{Token: "secret", HostBudget: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "s")
	unix, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error)
	go func() { served <- srv.Serve(t.Context(), unix) }()
	p := connect(t, "unix", socket).greet()
	ticket, more, _ := p.exposeWritten(control.Expose{Size: -1, Chunk: 4096})
	more(make([]byte, 4096))

	g, w, err := guest(t, "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	o := g.openAs(w, ticket)
	g.begin(control.OpSurfaceWait, control.SurfaceWait{Handle: o.Handle, Sequence: o.State.Sequence})
	g.begin(control.OpClose, control.Handle{Handle: o.Handle})
	codes := map[error]bool{}
	for range 2 {
		_, err := g.answer(nil)
		var we *wire.Error
		if errors.As(err, &we) {
			codes[we.Code] = true
		}
	}
	if !codes[wire.NotFound] {
		t.Errorf("a wait for what is closed: %v, want %v", codes, wire.NotFound)
	}

	o = g.openAs(w, ticket)
	g.begin(control.OpSurfaceWait, control.SurfaceWait{Handle: o.Handle, Sequence: o.State.Sequence})
	of, dial := connect(t, "unix", socket), control.Hello{Protocol: wire.Version}
	reply, err := of.ask(wire.KindHello, nil, must(json.Marshal(dial)))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(reply, &w); err != nil {
		t.Fatal(err)
	}
	mine := of.openAs(w, ticket)
	of.begin(control.OpSurfaceWait, control.SurfaceWait{Handle: mine.Handle, Sequence: mine.State.Sequence})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // of a Shutdown that waits
	defer cancel()
	if err := srv.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	if ctx.Err() != nil {
		t.Error("Shutdown waited for those who wait")
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func must(b []byte, _ error) []byte { return b }

// Who has one ticket cannot fill the server's memory with openings of it.
func TestGuestHasFewOpen(t *testing.T) {
	_, socket, tcp := listen(t, server.Config{})
	text := exposedAt(t, socket, tcp, control.Expose{}, []byte("few"))
	p, w, err := guest(t, "tcp", tcp)
	if err != nil {
		t.Fatal(err)
	}
	k, err := surface.ParseTicket(text)
	if err != nil {
		t.Fatal(err)
	}
	proof := k.Proof([32]byte(w.Nonce), [32]byte{})
	var o control.SurfaceOpened
	opens := 0
	for ; err == nil && opens < 1000; opens++ {
		err = p.control(control.OpSurfaceOpen, control.SurfaceOpen{ID: k.ID.String(), Proof: proof[:]}, &o)
	}
	var refused *wire.Error
	if !errors.As(err, &refused) || refused.Code != wire.Limit {
		t.Fatalf("after %d: %v, want Limit", opens, err)
	}
	if err := p.control(control.OpClose, control.Handle{Handle: o.Handle}, nil); err != nil {
		t.Fatal(err)
	}
	p.openAs(w, text)
}
