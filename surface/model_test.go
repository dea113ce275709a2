// SPDX-License-Identifier: Apache-2.0

package surface_test

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/memspan/memspan/surface"
	"pgregory.net/rapid"
)

// A puller of the model: what its ticket opens, in chunks.
type modelPuller struct {
	opening *surface.Opening
	opens   *surface.Range        // nil: all
	page    *surface.Availability // nil: not direct
}

// reads reports whether chunks [first, end), with bytes of content before size, are opened.
func (p *modelPuller) reads(first, end, chunk, size int64) bool {
	return p.opens == nil || p.opens.Offset < size && first >= p.opens.Offset/chunk &&
		end <= (p.opens.Offset+p.opens.Length-1)/chunk+1
}

// A modelSurface is what a surface should be: bytes, appended until it is sealed,
// until something ends it.
type modelSurface struct {
	store   *surface.Store
	e       *surface.Exposure
	chunk   int64 // stored
	known   bool
	size    int64 // that is announced, if known
	bytes   []byte
	sealed  bool
	ended   error
	pullers []*modelPuller
}

// whole returns the chunks that have to be there, once hashing is done.
func (m *modelSurface) whole() int64 {
	n := int64(len(m.bytes)) / m.chunk
	if m.sealed && int64(len(m.bytes))%m.chunk != 0 {
		n++
	}
	return n
}

func (m *modelSurface) Append(t *rapid.T) {
	n := rapid.OneOf(rapid.Int64Range(0, 200), rapid.Int64Range(m.chunk-1, 40*m.chunk)).Draw(t, "n")
	p := random(n, uint64(len(m.bytes)))
	err := m.e.Append(context.Background(), p)
	switch {
	case m.ended != nil:
		want(t, err, m.ended)
	case m.sealed:
		if n > 0 {
			want(t, err, surface.ErrState)
		}
	case m.known && int64(len(m.bytes))+n > m.size:
		want(t, err, surface.ErrRange)
		m.bytes = append(m.bytes, p[:m.e.Appended()-int64(len(m.bytes))]...) // what fitted may have come
	default:
		want(t, err, nil)
		m.bytes = append(m.bytes, p...)
	}
}

func (m *modelSurface) Seal(t *rapid.T) {
	manifest, err := m.e.Seal(context.Background())
	switch {
	case m.ended != nil:
		want(t, err, m.ended)
	case m.known && int64(len(m.bytes)) < m.size:
		want(t, err, surface.ErrState)
	default:
		want(t, err, nil)
		m.sealed = true
		if manifest.Size != int64(len(m.bytes)) || *m.e.Ticket().Root != manifest.Root() {
			t.Fatalf("sealed as %+v with %d bytes", manifest, len(m.bytes))
		}
		for i := range manifest.Count() {
			off, n := manifest.StoredRange(i)
			if manifest.Digests[i] != surface.Sum(m.bytes[off:off+n]) {
				t.Fatalf("the digest of chunk %d is wrong", i)
			}
		}
	}
}

func (m *modelSurface) Open(t *rapid.T) {
	ticket := m.e.Ticket()
	p := &modelPuller{}
	if rapid.Bool().Draw(t, "range") {
		r := surface.Range{Offset: rapid.Int64Range(0, 60*m.chunk).Draw(t, "offset"), Length: rapid.Int64Range(1, 60*m.chunk).Draw(t, "length")}
		var err error
		if ticket, err = ticket.Derive(r); err != nil {
			t.Fatal(err)
		}
		p.opens = &r
	}
	o, err := m.store.Open(ask(ticket))
	if want(t, err, m.ended); err != nil {
		return
	}
	p.opening = o
	_, page, err := files(o)
	if (err == nil) != (p.opens == nil) {
		t.Fatalf("files of %+v: %v", p.opens, err)
	}
	if err == nil {
		if p.page, err = surface.OpenAvailability(page); err != nil {
			t.Fatal(err)
		}
	}
	m.pullers = append(m.pullers, p)
}

func (m *modelSurface) draw(t *rapid.T) *modelPuller {
	if len(m.pullers) == 0 {
		t.Skip("nobody has it open")
	}
	return rapid.SampledFrom(m.pullers).Draw(t, "puller")
}

func (m *modelSurface) Read(t *rapid.T) {
	p := m.draw(t)
	off := rapid.Int64Range(-1, int64(len(m.bytes))+m.chunk).Draw(t, "off")
	n := rapid.Int64Range(-1, 3*m.chunk).Draw(t, "n")
	size := max(int64(len(m.bytes))/m.chunk*m.chunk, m.size)
	if m.sealed {
		size = int64(len(m.bytes))
	}
	var expected error
	switch first, end := off/m.chunk, (off+n-1)/m.chunk+1; {
	case m.ended != nil:
		expected = m.ended
	case off < 0 || n <= 0:
		expected = surface.ErrRange
	case off+n > size && !m.known && !m.sealed:
		expected = surface.ErrMissing
	case off+n > size || !p.reads(first, end, m.chunk, size):
		expected = surface.ErrRange
	case end > m.whole():
		expected = surface.ErrMissing
	default:
		m.follow(t, p, end)
	}
	got, err := read(p.opening, off, n)
	want(t, err, expected)
	if err == nil && !bytes.Equal(got, m.bytes[off:off+n]) {
		t.Fatalf("[%d, +%d): other bytes", off, n)
	}
}

// follow waits until the chunks before end are there, as they have to be.
func (m *modelSurface) follow(t *rapid.T, p *modelPuller, end int64) {
	if p.page != nil {
		for i := range end {
			if err := p.page.Wait(context.Background(), i); err != nil {
				t.Fatal(err)
			}
		}
		return
	}
	for {
		progress, err := p.opening.Progress()
		if err != nil {
			t.Fatal(err)
		}
		if runs, _, _ := p.opening.Runs(0, 1); len(runs) == 1 && runs[0].First == 0 && runs[0].Count >= end || end == 0 {
			return
		}
		if _, err := p.opening.Wait(context.Background(), progress.Sequence); err != nil {
			t.Fatal(err)
		}
	}
}

func (m *modelSurface) Close(t *rapid.T) {
	p := m.draw(t)
	p.close()
	for i := range m.pullers {
		if m.pullers[i] == p {
			m.pullers = append(m.pullers[:i], m.pullers[i+1:]...)
			break
		}
	}
}

func (p *modelPuller) close() {
	p.opening.Close()
	if p.page != nil {
		p.page.Close()
	}
}

func (m *modelSurface) End(t *rapid.T) {
	if rapid.IntRange(0, 5).Draw(t, "seldom") > 0 {
		t.Skip()
	}
	if rapid.Bool().Draw(t, "revoke") {
		err := m.store.Revoke(m.e.ID())
		if m.ended != nil {
			want(t, err, surface.ErrNotFound)
			return
		}
		want(t, err, nil)
		m.ended = surface.ErrRevoked
		return
	}
	m.e.Fail(errors.New("for the test"))
	if m.ended == nil && !m.sealed {
		m.ended = surface.ErrFailed
	}
}

func (m *modelSurface) Check(t *rapid.T) {
	st := m.e.Stat()
	if st.Pullers != len(m.pullers) || m.ended == nil && (st.State == surface.Sealed) != m.sealed {
		t.Fatalf("%d pullers, sealed %v, is %+v", len(m.pullers), m.sealed, st)
	}
	for _, p := range m.pullers {
		if p.page == nil {
			continue
		}
		expected := surface.Open
		switch {
		case errors.Is(m.ended, surface.ErrFailed):
			expected = surface.Failed
		case m.ended != nil:
			expected = surface.Revoked
		case m.sealed:
			expected = surface.Sealed
		}
		if got := p.page.State(); got != expected {
			t.Fatalf("the page says %v, want %v", got, expected)
		}
	}
}

func want(t *rapid.T, err, expected error) {
	t.Helper()
	if expected == nil && err != nil || !errors.Is(err, expected) {
		t.Fatalf("error %v, want %v", err, expected)
	}
}

// Whatever is done in whatever order, a surface is what the model says.
func TestSurfaceIsAsTheModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		store := surface.NewStore(surface.Config{})
		m := &modelSurface{store: store, chunk: surface.MinChunk << rapid.IntRange(0, 5).Draw(t, "chunk"), known: rapid.Bool().Draw(t, "known")}
		finish := func() {
			for _, p := range m.pullers {
				p.close()
			}
			m.pullers = nil
			store.Close()
		}
		t.Cleanup(finish) // should it fail
		spec := surface.Spec{Size: -1, Chunk: m.chunk}
		if m.known {
			m.size = rapid.Int64Range(0, 50*m.chunk).Draw(t, "size")
			spec.Size = m.size
		}
		var err error
		if m.e, err = store.Create(context.Background(), spec); err != nil {
			t.Fatal(err)
		}
		t.Repeat(map[string]func(*rapid.T){
			"append": m.Append, "seal": m.Seal, "open": m.Open, "read": m.Read, "close": m.Close, "end": m.End, "": m.Check,
		})
		finish()
		if used, pending := store.Used(); used != 0 || pending != 0 {
			t.Fatalf("%d bytes are kept, %d of them pending", used, pending)
		}
	})
}
