// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"bytes"
	"crypto/rand"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/memspan/memspan/server"
	"github.com/memspan/memspan/surface"
	"github.com/memspan/memspan/wire"
	"github.com/memspan/memspan/wire/control"
)

// An encrypted is a surface whose stored bytes a server has, and whose key it has not.
type encrypted struct {
	content []byte
	ticket  *surface.Ticket // with the key
}

func exposeEncrypted(t *testing.T, socket, tcp string, a control.Expose, size int) encrypted {
	t.Helper()
	p := connect(t, "unix", socket).greet()
	a.Encrypted, a.Chunk, a.Size = true, surface.MinChunk, int64(size)
	text, more, seal := p.exposeWritten(a)
	ticket := parsed(t, text)
	content := make([]byte, size)
	rand.Read(content)
	key := surface.NewKey()
	sealer, i := surface.NewSealer(key, ticket.ID), int64(0)
	for chunk := range slices.Chunk(content, surface.MinChunk) {
		more(sealer.Seal(nil, i, chunk))
		i++
	}
	ticket = parsed(t, seal())
	ticket.Key, ticket.Addresses = &key, []string{"tcp://" + tcp}
	return encrypted{content, ticket}
}

func parsed(t *testing.T, text string) *surface.Ticket {
	t.Helper()
	ticket, err := surface.ParseTicket(text)
	if err != nil {
		t.Fatal(err)
	}
	return ticket
}

// decrypted has the server pull and decrypt.
func (p *peer) decrypted(ticket *surface.Ticket) (o control.SurfaceOpened, err error) {
	p.t.Helper()
	text, err := ticket.Text()
	if err != nil {
		p.t.Fatal(err)
	}
	err = p.control(control.OpPull, control.SurfacePull{Ticket: text, Decrypt: true}, &o)
	return o, err
}

func (p *peer) read(o control.SurfaceOpened, off, n int) ([]byte, error) {
	return p.ask(wire.KindRead, readRequest(o.Handle, uint64(off), uint64(n)), nil)
}

// settle waits until all of a surface is there.
func (p *peer) settle(o control.SurfaceOpened) {
	p.t.Helper()
	for st := o.State; !st.Sealed || len(st.Have) != 1 || st.Have[0].Count != st.Count; {
		args := control.SurfaceWait{Handle: o.Handle, Sequence: st.Sequence}
		st = control.SurfaceState{}
		if err := p.control(control.OpSurfaceWait, args, &st); err != nil {
			p.t.Fatal(err)
		}
	}
}

// This user's server decrypts for a session that has the key, whether it has the surface or
// pulls it.
func TestDecrypt(t *testing.T) {
	_, socket, tcp := listen(t, server.Config{})
	_, near, _ := listen(t, server.Config{})
	e := exposeEncrypted(t, socket, tcp, control.Expose{}, 5*surface.MinChunk+77)
	for _, at := range []string{socket, near} {
		p := connect(t, "unix", at).greet()
		o, err := p.decrypted(e.ticket)
		if err != nil {
			t.Fatal(err)
		}
		if o.Direct {
			t.Error("the memory is handed over")
		}
		p.settle(o)
		rapid.Check(t, func(t *rapid.T) {
			off := rapid.IntRange(0, len(e.content)+10).Draw(t, "offset")
			n := rapid.IntRange(1, len(e.content)+10).Draw(t, "length")
			got, err := p.read(o, off, n)
			if inside := off+n <= len(e.content); inside != (err == nil) {
				t.Fatalf("read [%d, +%d): %v", off, n, err)
			} else if inside && !bytes.Equal(got, e.content[off:off+n]) {
				t.Fatalf("read [%d, +%d): other bytes", off, n)
			}
		})
		for _, s := range p.surfaces() {
			if !s.Encrypted {
				t.Error("what the server has is not encrypted")
			}
		}
	}
}

// Each byte of a read-once surface is given out once, though chunks are opened whole.
func TestDecryptOnce(t *testing.T) {
	_, socket, tcp := listen(t, server.Config{})
	e := exposeEncrypted(t, socket, tcp, control.Expose{ReadOnce: true}, 3*surface.MinChunk)
	p := connect(t, "unix", socket).greet()
	o, err := p.decrypted(e.ticket)
	if err != nil {
		t.Fatal(err)
	}
	for off := 0; off < len(e.content); off += 1000 {
		n := min(1000, len(e.content)-off)
		if got, err := p.read(o, off, n); err != nil || !bytes.Equal(got, e.content[off:off+n]) {
			t.Fatalf("byte %d: %v", off, err)
		}
	}
	_, err = p.read(o, 0, 1)
	code(t, "a byte once more", err, wire.Taken)
}

func TestDecryptRefused(t *testing.T) {
	_, socket, tcp := listen(t, server.Config{Token: "secret"})
	e := exposeEncrypted(t, socket, tcp, control.Expose{}, surface.MinChunk)
	p := connect(t, "unix", socket).greet()

	wrong := *e.ticket
	key := surface.NewKey()
	wrong.Key = &key
	o, err := p.decrypted(&wrong)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		_, err = p.read(o, 0, 1)
		code(t, "another surface's key", err, wire.Corrupt)
	}

	wrong.Key = nil
	_, err = p.decrypted(&wrong)
	code(t, "no key", err, wire.Invalid)

	far := connect(t, "tcp", tcp)
	if err := far.hello(control.Hello{Protocol: wire.Version, Token: "secret"}); err != nil {
		t.Fatal(err)
	}
	_, err = far.decrypted(e.ticket)
	code(t, "over TCP", err, wire.Unsupported)
}
