// SPDX-License-Identifier: Apache-2.0

//go:build linux

package e2e

import (
	"encoding/json"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/memspan/memspan/internal/fdpass"
	"github.com/memspan/memspan/wire"
	"github.com/memspan/memspan/wire/control"
)

// A peer speaks the protocol over a unix socket by itself: it may say anything,
// and sees what package memspan does not show.
type peer struct {
	t    testing.TB
	fds  *fdpass.Conn
	conn *wire.Conn
	id   uint64
}

func (d *daemon) peer(t testing.TB) *peer {
	t.Helper()
	raw, err := net.Dial("unix", strings.TrimPrefix(d.Addresses["unix"], "unix:"))
	check(t, err)
	t.Cleanup(func() { raw.Close() })
	p := &peer{t: t, fds: fdpass.New(raw.(*net.UnixConn))}
	p.conn = wire.NewConn(p.fds, wire.Config{})
	check(t, p.ask(wire.KindHello, control.Hello{Protocol: wire.Version}, nil))
	return p
}

// ask sends a JSON message and decodes its answer.
func (p *peer) ask(kind wire.Kind, message, answer any) error {
	p.t.Helper()
	data, err := json.Marshal(message)
	check(p.t, err)
	p.id++
	check(p.t, p.conn.WriteFrame(wire.Header{Kind: kind, ID: p.id}, nil, data))
	h, err := p.conn.ReadHeader()
	check(p.t, err)
	reply := make([]byte, h.Raw)
	check(p.t, p.conn.ReadData(reply))
	if h.Has(wire.FlagError) {
		we, err := wire.ParseError(reply)
		check(p.t, err)
		return we
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(reply, answer)
}

func (p *peer) control(op control.Op, args, answer any) {
	p.t.Helper()
	raw, err := json.Marshal(args)
	check(p.t, err)
	if err := p.ask(wire.KindControl, control.Request{Op: op, Args: raw}, answer); err != nil {
		p.t.Fatalf("%s: %v", op, err)
	}
}

// open opens a span by name or id and returns its handle.
func (p *peer) open(name string) uint64 {
	p.t.Helper()
	var o control.Opened
	p.control(control.OpOpen, control.Open{Name: name}, &o)
	return o.Handle
}

// mapFile maps all of a span and returns the descriptor that comes with it.
func (p *peer) mapFile(handle uint64, size int64, mode control.Mode) (m control.Mapped, f *os.File) {
	p.t.Helper()
	p.control(control.OpMap, control.Map{Handle: handle, Length: size, Mode: mode}, &m)
	if !m.Direct {
		p.t.Fatal("a mapping over a unix socket is not direct")
	}
	f, err := p.fds.Take()
	check(p.t, err)
	p.t.Cleanup(func() { f.Close() })
	return m, f
}
