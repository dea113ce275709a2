// SPDX-License-Identifier: Apache-2.0

package surface_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/surface"
)

func newStore(t testing.TB, budget int64) *surface.Store {
	t.Helper()
	s := surface.NewStore(surface.Config{Budget: budget})
	t.Cleanup(func() { s.Close() })
	return s
}

func create(t testing.TB, s *surface.Store, spec surface.Spec) *surface.Exposure {
	t.Helper()
	e, err := s.Create(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func ask(t *surface.Ticket) surface.Request {
	nonce, binding := [32]byte{1}, [32]byte{2}
	return surface.Request{Who: "test", ID: t.ID, Caveats: t.EncodedCaveats(), Proof: t.Proof(nonce, binding), Nonce: nonce, Binding: binding}
}

func open(t testing.TB, s *surface.Store, tk *surface.Ticket) *surface.Opening {
	t.Helper()
	o, err := s.Open(ask(tk))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(o.Close)
	return o
}

// read returns a copy of stored bytes.
func read(o *surface.Opening, off, n int64) (b []byte, err error) {
	err = o.ReadStored(off, n, func(stored []byte) error {
		b = bytes.Clone(stored)
		return nil
	})
	return b, err
}

// files returns an opening's descriptors, which are good until the surface ends.
func files(o *surface.Opening) (memory, page *os.File, err error) {
	err = o.Files(func(m, p *os.File) error {
		memory, page = m, p
		return nil
	})
	return memory, page, err
}

// random returns n bytes that are the same for the same seed.
func random(n int64, seed uint64) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return b
}

// follow shows all that is stored to visit, in order, waiting where it is not there.
func follow(ctx context.Context, o *surface.Opening, visit func(off int64, b []byte)) error {
	next := int64(0) // chunk
	p, err := o.Progress()
	for {
		if err != nil {
			return err
		}
		h := o.Header()
		for ; next < p.Count; next++ {
			off, n := h.StoredRange(next)
			b, err := read(o, off, n)
			if errors.Is(err, surface.ErrMissing) {
				break
			}
			if err != nil {
				return err
			}
			visit(off, b)
		}
		if p.State == surface.Sealed && next == p.Count {
			return nil
		}
		p, err = o.Wait(ctx, p.Sequence)
	}
}

func readAll(t testing.TB, o *surface.Opening) []byte {
	t.Helper()
	var got []byte
	if err := follow(t.Context(), o, func(_ int64, b []byte) { got = append(got, b...) }); err != nil {
		t.Fatal(err)
	}
	return got
}

func verify(t testing.TB, m *surface.Manifest, stored []byte) {
	t.Helper()
	if int64(len(stored)) != m.StoredSize() {
		t.Fatalf("%d stored bytes, want %d", len(stored), m.StoredSize())
	}
	for i := range m.Count() {
		off, n := m.StoredRange(i)
		if surface.Sum(stored[off:off+n]) != m.Digests[i] {
			t.Fatalf("chunk %d has another digest", i)
		}
	}
}

// A puller reads, while it is written, what is exposed, whatever the sizes of the
// pieces that come and of the chunks are, whether or not the size is known.
func TestStreamIsPulledWhileItIsWritten(t *testing.T) {
	for _, tc := range []struct {
		size, chunk int64
		piece       int
		known       bool
	}{
		{0, 0, 1, true},
		{0, 0, 1, false},
		{1, 0, 1, false},
		{surface.MinChunk, surface.MinChunk, 100, true},
		{5*surface.MinChunk + 1, surface.MinChunk, 1000, false},
		{3 << 20, 64 << 10, 300_000, true},
		{3<<20 + 77, 1 << 20, 4096, false},
		{9<<20 - 1, 2 << 20, 9 << 20, false},
	} {
		s := newStore(t, 64<<20)
		spec := surface.Spec{Name: "stream", Size: tc.size, Chunk: tc.chunk}
		if !tc.known {
			spec.Size = -1
		}
		e := create(t, s, spec)
		want := random(tc.size, 1)
		o := open(t, s, e.Ticket())
		sealed := make(chan error, 1)
		go func() {
			for at := 0; at < len(want); at += tc.piece {
				if err := e.Append(context.Background(), want[at:min(at+tc.piece, len(want))]); err != nil {
					sealed <- err
					return
				}
			}
			_, err := e.Seal(context.Background())
			sealed <- err
		}()
		got := readAll(t, o)
		if err := <-sealed; err != nil {
			t.Fatalf("%+v: %v", tc, err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("%+v: other bytes", tc)
		}
		m := o.Manifest()
		verify(t, m, got)
		if p, err := o.Progress(); err != nil || *p.Root != m.Root() || p.Size != tc.size || p.Count != m.Count() {
			t.Fatalf("%+v: progress %+v, %v", tc, p, err)
		}
		if st := e.Stat(); st.Have != m.Count() || st.Copied != tc.size || st.Given != tc.size || st.Pullers != 1 {
			t.Fatalf("%+v: stat %+v", tc, st)
		}
	}
}

// What pullers map is what was exposed, as it comes, and outlives the exposer and
// the store.
func TestDirectPullersMapTheMemory(t *testing.T) {
	s := surface.NewStore(surface.Config{})
	const size = 5<<20 + 123
	e := create(t, s, surface.Spec{Size: -1})
	want := random(size, 2)
	o, err := s.Open(ask(e.Ticket()))
	if err != nil {
		t.Fatal(err)
	}
	memory, page, err := files(o)
	if err != nil {
		t.Fatal(err)
	}
	avail, err := surface.OpenAvailability(page)
	if err != nil {
		t.Fatal(err)
	}
	defer avail.Close()
	appended := make(chan error, 1)
	go func() {
		for at := 0; at < len(want); at += 100_000 {
			if err := e.Append(context.Background(), want[at:min(at+100_000, len(want))]); err != nil {
				appended <- err
				return
			}
		}
		_, err := e.Seal(context.Background())
		appended <- err
	}()
	var mem []byte
	for i := range int64(6) {
		if err := avail.Wait(t.Context(), i); err != nil {
			t.Fatal(err)
		}
		off, n := i<<20, int64(1<<20)
		if got, _ := avail.Size(); got < off+n {
			n = got - off
		}
		part, err := memfd.MapRange(memory, off, n, false)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(part, want[off:off+n]) {
			t.Fatalf("chunk %d: other bytes", i)
		}
		memfd.Unmap(part)
	}
	if err := <-appended; err != nil {
		t.Fatal(err)
	}
	if p, err := memfd.Adopt(memory); err != nil {
		t.Errorf("what is sealed can be changed: %v", err)
	} else {
		p.Close()
	}
	if avail.State() != surface.Sealed {
		t.Errorf("state %v, want sealed", avail.State())
	}
	if err := avail.Wait(t.Context(), 6); !errors.Is(err, surface.ErrRange) {
		t.Errorf("waited for a chunk behind the end: %v", err)
	}
	if mem, err = memfd.MapRange(memory, 0, size, false); err != nil {
		t.Fatal(err)
	}
	defer memfd.Unmap(mem)
	o.Close()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(mem, want) {
		t.Error("other bytes after the store was closed")
	}
	if avail.State() != surface.Revoked {
		t.Errorf("state %v after the store was closed, want revoked", avail.State())
	}
}

// The memory is as long as what it stores, however small the pieces are that came.
func TestMemoryEndsWithItsBytes(t *testing.T) {
	s := newStore(t, 0)
	e := create(t, s, surface.Spec{Size: -1})
	o := open(t, s, e.Ticket())
	memory, _, err := files(o)
	if err != nil {
		t.Fatal(err)
	}
	for i := range int64(1000) {
		if err := e.Append(t.Context(), []byte("0123456789")); err != nil {
			t.Fatal(err)
		}
		if got, err := memfd.Size(memory); err != nil || got < 10*(i+1) {
			t.Fatalf("%d bytes of memory, %v; want %d", got, err, 10*(i+1))
		}
	}
	if _, err := e.Seal(t.Context()); err != nil {
		t.Fatal(err)
	}
	mem, err := memfd.MapRange(memory, 9990, 10, false)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(mem[9990%int64(os.Getpagesize()):][:10]); got != "0123456789" {
		t.Errorf("the end is %q", got)
	}
	memfd.Unmap(mem)
}

// What a store has of an encrypted surface is sealed chunks, whatever way they come, and
// who has the key opens them.
func TestEncryptedSurfaces(t *testing.T) {
	const chunk = surface.MinChunk
	for _, size := range []int64{0, 1, chunk, chunk + 1, 20*chunk - 1} {
		for _, known := range []bool{true, false} {
			s := newStore(t, 0)
			spec := surface.Spec{Size: -1, Chunk: chunk, Encrypted: true}
			if known {
				spec.Size = size
			}
			e := create(t, s, spec)
			want, sealer := random(size, 6), surface.NewSealer(surface.NewKey(), e.ID())
			var stored []byte
			for i := int64(0); i*chunk < size; i++ {
				stored = sealer.Seal(stored, i, want[i*chunk:min((i+1)*chunk, size)])
			}
			for at := 0; at < len(stored); at += 1000 {
				if err := e.Append(t.Context(), stored[at:min(at+1000, len(stored))]); err != nil {
					t.Fatal(err)
				}
			}
			m, err := e.Seal(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if m.Size != size || m.StoredSize() != int64(len(stored)) || !m.Encrypted {
				t.Fatalf("size %d: sealed as %+v", size, m)
			}
			got := readAll(t, open(t, s, e.Ticket()))
			verify(t, m, got)
			var opened []byte
			for i := range m.Count() {
				off, n := m.StoredRange(i)
				if opened, err = sealer.Open(opened, i, got[off:off+n]); err != nil {
					t.Fatal(err)
				}
			}
			if !bytes.Equal(opened, want) {
				t.Errorf("size %d: other bytes", size)
			}
		}
	}
	// A last chunk that is too short to be sealed is refused.
	s := newStore(t, 0)
	e := create(t, s, surface.Spec{Size: -1, Chunk: chunk, Encrypted: true})
	if err := e.Append(t.Context(), make([]byte, chunk+2*surface.Overhead)); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Seal(t.Context()); !errors.Is(err, surface.ErrFormat) {
		t.Errorf("sealed with a tag of nothing: %v", err)
	}
}

func writeFile(t testing.TB, data []byte) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "source")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestFileIsCopiedOnce(t *testing.T) {
	for _, size := range []int64{0, 1, 4096, 3<<20 + 5} {
		s := newStore(t, 16<<20)
		want := random(size, 3)
		f := writeFile(t, want)
		e := create(t, s, surface.Spec{Size: size, Chunk: 64 << 10})
		if err := e.CopyFile(t.Context(), f); err != nil {
			t.Fatal(err)
		}
		m, err := e.Seal(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got := readAll(t, open(t, s, e.Ticket()))
		verify(t, m, got)
		if !bytes.Equal(got, want) {
			t.Errorf("size %d: other bytes", size)
		}
		if st := e.Stat(); st.Copied != size {
			t.Errorf("size %d: %d bytes copied", size, st.Copied)
		}
	}
}

// A file of 5 GiB with a few bytes of data takes a few pages, in the store and
// for who pulls.
func TestHolesCostNothing(t *testing.T) {
	const size = 5<<30 + 4321
	f := writeFile(t, nil)
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	parts := map[int64]string{0: "begin", 1<<32 - 3: "across 32 bits", size - 3: "end"}
	for off, text := range parts {
		if _, err := f.WriteAt([]byte(text)[:min(int64(len(text)), size-off)], off); err != nil {
			t.Fatal(err)
		}
	}
	s := newStore(t, 1<<20)
	e := create(t, s, surface.Spec{Size: size, Sparse: true})
	if err := e.CopyFile(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	m, err := e.Seal(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	o := open(t, s, e.Ticket())
	for off, text := range parts {
		n := min(int64(len(text)), size-off)
		if got, err := read(o, off, n); err != nil || string(got) != text[:n] {
			t.Errorf("at %d: %q, %v; want %q", off, got, err, text[:n])
		}
	}
	var z surface.Zeros
	holes := 0
	for i := range m.Count() {
		if z.Zero(m, i) {
			holes++
		}
		off, n := m.StoredRange(i)
		b, err := read(o, off, min(n, 4096))
		if err != nil || int64(len(b)) != min(n, 4096) {
			t.Fatal(err)
		}
		surface.Sum(b) // looks at every byte
	}
	if want := int(m.Count()) - 4; holes != want { // one of the parts is in two chunks
		t.Errorf("%d chunks of zeros, want %d", holes, want)
	}
	if st := e.Stat(); st.Memory > 128<<10 || st.Copied > 128<<10 {
		t.Errorf("%d bytes of memory, %d copied", st.Memory, st.Copied)
	}

	// A replica of it costs as little.
	r := newStore(t, 8<<20)
	copied, err := r.Replica(t.Context(), m, e.Ticket())
	if err != nil {
		t.Fatal(err)
	}
	for i := range m.Count() {
		off, n := m.StoredRange(i)
		b, err := read(o, off, n)
		if err != nil {
			t.Fatal(err)
		}
		if err := copied.Put(t.Context(), i, surface.NewChunk(b)); err != nil {
			t.Fatal(err)
		}
	}
	if st := copied.Stat(); st.Have != m.Count() || st.Memory > 8<<20 {
		t.Errorf("replica %+v", st)
	}
}

func TestSealedMemoryIsTakenAsItIs(t *testing.T) {
	s := newStore(t, 64<<20)
	want := random(3<<20+11, 4)
	give, err := memfd.Publish("mine", int64(len(want)))
	if err != nil {
		t.Fatal(err)
	}
	defer give.Close()
	if err := give.Grow(int64(len(want))); err != nil {
		t.Fatal(err)
	}
	if _, err := give.WriteAt(want, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Take(t.Context(), surface.Spec{Size: -1}, give.File()); !errors.Is(err, surface.ErrState) {
		t.Fatalf("memory that its owner can write was taken: %v", err)
	}
	if err := give.Freeze(); err != nil {
		t.Fatal(err)
	}
	e, err := s.Take(t.Context(), surface.Spec{Size: -1}, give.File())
	if err != nil {
		t.Fatal(err)
	}
	if st := e.Stat(); st.Copied != 0 || st.State != surface.Sealed {
		t.Errorf("stat %+v", st)
	}
	got := readAll(t, open(t, s, e.Ticket()))
	verify(t, e.Manifest(), got)
	if !bytes.Equal(got, want) {
		t.Error("other bytes")
	}
	if _, err := s.Take(t.Context(), surface.Spec{Size: int64(len(want)) + 1}, give.File()); !errors.Is(err, surface.ErrFormat) {
		t.Errorf("more than there is was taken: %v", err)
	}
	if _, err := s.Take(t.Context(), surface.Spec{Size: -1}, writeFile(t, want)); !errors.Is(err, surface.ErrState) {
		t.Errorf("a file was taken: %v", err)
	}
}

func TestReplicaTakesVerifiedChunksInAnyOrder(t *testing.T) {
	s, r := newStore(t, 64<<20), newStore(t, 64<<20)
	const size = 10*surface.MinChunk + 9
	want := random(size, 5)
	e := create(t, s, surface.Spec{Size: size, Chunk: surface.MinChunk})
	if err := e.Append(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	m, err := e.Seal(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ticket, err := e.Ticket().Derive(surface.Expiry{Time: time.Now().Add(time.Hour).Truncate(time.Millisecond)})
	if err != nil {
		t.Fatal(err)
	}
	c, err := r.Replica(t.Context(), m, ticket)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Replica(t.Context(), m, ticket); !errors.Is(err, surface.ErrExists) {
		t.Errorf("a second replica: %v", err)
	}
	// The relay verifies those of its own ticket's chain alone.
	if _, err := r.Open(ask(e.Ticket())); !errors.Is(err, surface.ErrTicket) {
		t.Errorf("opened with a ticket that the relay cannot verify: %v", err)
	}
	o := open(t, r, ticket)
	if _, err := read(o, 0, 1); !errors.Is(err, surface.ErrMissing) {
		t.Errorf("read of a chunk that is not there: %v", err)
	}
	for _, i := range rand.Perm(int(m.Count())) {
		off, n := m.StoredRange(int64(i))
		good := want[off : off+n]
		bad := bytes.Clone(good)
		bad[n/2] ^= 1
		if err := c.Put(t.Context(), int64(i), surface.NewChunk(bad)); !errors.Is(err, surface.ErrCorrupt) {
			t.Fatalf("a flipped bit: %v", err)
		}
		if err := c.Put(t.Context(), int64(i), surface.NewChunk(good[:n-1])); !errors.Is(err, surface.ErrCorrupt) {
			t.Fatalf("cut short: %v", err)
		}
		for range 2 { // duplicates do no harm
			if err := c.Put(t.Context(), int64(i), surface.NewChunk(good)); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := read(o, off, n); err != nil || !bytes.Equal(got, good) {
			t.Fatalf("chunk %d: %v", i, err)
		}
	}
	if !bytes.Equal(readAll(t, o), want) {
		t.Error("other bytes")
	}
	if runs, more, err := o.Runs(m.Count()+9, 3); len(runs) > 0 || more || err != nil {
		t.Errorf("behind the end there are %v, more %v, %v", runs, more, err)
	}
	if err := e.Put(t.Context(), 0, surface.NewChunk(want[:surface.MinChunk])); !errors.Is(err, surface.ErrState) {
		t.Errorf("a chunk for a surface of its own: %v", err)
	}
	if err := c.Put(t.Context(), m.Count(), surface.Chunk{}); !errors.Is(err, surface.ErrRange) {
		t.Errorf("a chunk behind the end: %v", err)
	}
	// One that has ended can be made again.
	if err := r.Revoke(m.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Open(ask(ticket)); !errors.Is(err, surface.ErrRevoked) || r.Knows(m.ID) {
		t.Errorf("after it was revoked: %v, known %v", err, r.Knows(m.ID))
	}
	if c, err = r.Replica(t.Context(), m, ticket); err != nil {
		t.Fatal(err)
	}
	if st := c.Stat(); st.Have != 0 {
		t.Errorf("made again as %+v", st)
	}
	open(t, r, ticket)
}
