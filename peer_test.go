// SPDX-License-Identifier: Apache-2.0

package memspan_test

import (
	"encoding/json"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/coherency"
	"github.com/memspan/memspan/internal/fdpass"
	"github.com/memspan/memspan/wire"
	"github.com/memspan/memspan/wire/control"
)

// A peer is the server's end of a connection, played by a test.
type peer struct {
	t    testing.TB
	raw  net.Conn
	conn *wire.Conn
}

// A frame is one that the client sent.
type frame struct {
	wire.Header
	prefix, data []byte
}

// listen plays a server: f gets the connection of the one client that dials
// address, before anything was read. The test ends after f has.
func listen(t testing.TB, f func(p *peer)) (address string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		p := &peer{t: t, raw: nc, conn: wire.NewConn(fdpass.New(nc.(*net.UnixConn)), wire.Config{})}
		defer p.conn.Close()
		f(p)
	}()
	t.Cleanup(func() {
		ln.Close()
		<-done
	})
	return "unix:" + path
}

// play is listen, with the greeting done and the client dialed.
func play(t testing.TB, opts *memspan.Options, f func(p *peer)) *memspan.Client {
	t.Helper()
	c, err := memspan.Dial(t.Context(), listen(t, func(p *peer) {
		p.greet()
		f(p)
	}), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

var welcome = control.Welcome{Protocol: wire.Version, Session: 1, BlockSize: 4096, Tiers: coherency.MaskOf(coherency.Host)}

func (p *peer) greet() {
	if f, ok := p.next(); ok {
		p.reply(f, welcome)
	}
}

// next reads a frame; ok is false when the client has gone.
func (p *peer) next() (f frame, ok bool) {
	h, err := p.conn.ReadHeader()
	if err != nil {
		return f, false
	}
	f.Header, f.data = h, make([]byte, h.Raw)
	if f.prefix, err = p.conn.ReadPrefix(nil); err == nil && h.Raw > 0 {
		err = p.conn.ReadData(f.data)
	}
	if err != nil {
		p.t.Errorf("%v frame of the client: %v", h.Kind, err)
	}
	return f, err == nil
}

// request returns the operation of a control request and decodes its
// arguments.
func (p *peer) request(f frame, args any) control.Op {
	var req control.Request
	p.decode(f.data, &req)
	if args != nil && len(req.Args) > 0 {
		p.decode(req.Args, args)
	}
	return req.Op
}

func (p *peer) decode(data []byte, v any) {
	if err := json.Unmarshal(data, v); err != nil {
		p.t.Errorf("the client's %q: %v", data, err)
	}
}

// write sends a frame, or what a test calls one.
func (p *peer) write(h wire.Header, prefix []byte, data ...[]byte) {
	_ = p.conn.WriteFrame(h, prefix, data...) // the client may have gone
}

// reply answers with JSON.
func (p *peer) reply(f frame, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		p.t.Error(err)
	}
	p.write(wire.Header{Kind: f.Kind, Flags: wire.FlagReply, ID: f.ID}, nil, data)
}

// refuse answers with an error.
func (p *peer) refuse(f frame, e *wire.Error) {
	p.write(wire.Header{Kind: f.Kind, Flags: wire.FlagReply | wire.FlagError, ID: f.ID}, nil, e.Append(nil))
}

// answer answers a Read, a Transfer or a Flush.
func (p *peer) answer(f frame, prefix []byte, data ...[]byte) {
	p.write(wire.Header{Kind: f.Kind, Flags: wire.FlagReply, ID: f.ID}, prefix, data...)
}

var success = wire.AppendResult(nil, 0)

// opened is the answer of open: a span of 16 blocks.
var opened = control.Opened{Handle: 7, Span: control.SpanInfo{ID: "0123", Name: "x", Size: 16 * 4096, Created: time.Unix(0, 0)}}

// serve answers what it can by itself, and leaves the rest to f, until f
// returns false or the client goes. The blocks of mappings are at version 1.
func (p *peer) serve(f func(f frame) bool) {
	for {
		in, ok := p.next()
		if !ok {
			return
		}
		var args json.RawMessage
		op := control.Op("")
		if in.Kind == wire.KindControl {
			op = p.request(in, &args)
		}
		switch op {
		case control.OpOpen:
			p.reply(in, opened)
		case control.OpMap:
			p.reply(in, control.Mapped{Mapping: 9, Versions: []control.VersionRun{{Count: 16, Version: 1}}})
		case control.OpClose, control.OpUnmap:
			p.reply(in, struct{}{})
		default:
			if !f(in) {
				return
			}
		}
	}
}

// open opens the peer's span.
func open(t testing.TB, c *memspan.Client) *memspan.Span {
	t.Helper()
	s, err := c.Open(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	return s
}
