// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/memspan/memspan/coherency"
	"github.com/memspan/memspan/server"
	"github.com/memspan/memspan/wire"
	"github.com/memspan/memspan/wire/control"
)

// part sends one frame of a write of several.
func (p *peer) part(handle, off uint64, flags wire.Flags, data []byte) error {
	p.t.Helper()
	p.id++
	prefix := wire.AppendTransfer(nil, wire.MemoryCommand{Memory: handle, Offset: off, Size: uint64(len(data))})
	if err := p.conn.WriteFrame(wire.Header{Kind: wire.KindTransfer, Flags: flags, ID: p.id}, prefix, data); err != nil {
		p.t.Fatal(err)
	}
	head, data, err := p.receive()
	if err != nil {
		p.t.Fatal(err)
	}
	if head.Has(wire.FlagError) {
		e, err := wire.ParseError(data)
		if err != nil {
			p.t.Fatal(err)
		}
		return e
	}
	return nil
}

// What a client leaves half done is no part of what it does next, and bounded.
func TestHalfDoneWrites(t *testing.T) {
	_, socket, _ := listen(t, server.Config{Data: t.TempDir()})
	p := connect(t, "unix", socket).greet()
	const mib = 1 << 20
	durable := func(name string) uint64 {
		var o control.Opened
		if err := p.control(control.OpAlloc, control.Alloc{
			Name: name, Size: 4 * mib, Tier: coherency.Host, Home: coherency.Disk, Policy: coherency.WriteThrough,
		}, &o); err != nil {
			t.Fatal(err)
		}
		return o.Handle
	}
	h := durable("s")
	block := func(v byte) []byte { return bytes.Repeat([]byte{v}, mib) }
	is := func(what string, want ...byte) {
		t.Helper()
		for b, v := range want {
			data, err := p.ask(wire.KindRead, readRequest(h, uint64(b)*mib, mib), nil)
			if err != nil || !bytes.Equal(data, block(v)) {
				t.Errorf("%s: block %d is not all %d: %v", what, b, v, err)
			}
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	const first, more = wire.FlagFirst, wire.FlagMore
	must(p.part(h, 0, first|more, block(1)))
	must(p.part(h, mib, more, block(1)))
	is("half done", 0, 0, 0)
	must(p.part(h, 2*mib, first, block(2))) // another, of one frame
	is("given up", 0, 0, 2)
	must(p.part(h, mib, first|more, block(3)))
	must(p.part(h, 0, first|more, block(4))) // another, from further below
	must(p.part(h, mib, 0, block(4)))
	is("done", 4, 4, 2)
	must(p.part(h, mib, first|more, block(5)))
	if err := p.part(h, 0, more, block(5)); !errors.Is(err, wire.Invalid) {
		t.Errorf("a frame for a block before: %v", err)
	}
	if err := p.part(h, 3*mib, 0, block(5)); !errors.Is(err, wire.Invalid) {
		t.Errorf("the end of a write that failed: %v", err)
	}
	is("refused", 4, 4, 2, 0)

	// Those of handles that were closed make room for others.
	for i := range 20 {
		o := durable("closed " + string(rune('a'+i)))
		must(p.part(o, 0, first|more, block(6)))
		must(p.control(control.OpClose, control.Handle{Handle: o}, nil))
	}
	var refused error
	for i := range 20 {
		o := durable("open " + string(rune('a'+i)))
		if err := p.part(o, 0, first|more, block(6)); err != nil {
			refused = err
		}
	}
	if !errors.Is(refused, wire.Limit) {
		t.Errorf("twenty half done writes: %v", refused)
	}
	is("all along", 4, 4, 2, 0)
}
