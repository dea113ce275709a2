// SPDX-License-Identifier: Apache-2.0

package pull_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"testing/iotest"

	"github.com/memspan/memspan/surface"
	"github.com/memspan/memspan/surface/pull"
	"github.com/memspan/memspan/wire"
)

const (
	kib = 1 << 10
	mib = 1 << 20
)

// random returns n bytes that do not repeat.
func random(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

var all surface.Range

func open(t testing.TB, ticket *surface.Ticket, o pull.Options) *pull.Surface {
	t.Helper()
	s, err := pull.Open(t.Context(), ticket, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// Every target gets the exact bytes, whatever the sizes are.
func TestTargets(t *testing.T) {
	for _, size := range []int{0, 1, 4 * kib, 5*mib + 77} {
		for _, chunk := range []int64{4 * kib, mib, 4 * mib} {
			for _, key := range []*surface.Key{nil, new(surface.NewKey())} {
				content := random(size)
				if size > 4*mib {
					clear(content[mib : 3*mib])
				}
				h := expose(t, content, chunk, key)
				address := h.tcp()
				for _, ticket := range []*surface.Ticket{h.rooted(address), h.rootless(address)} {
					checkTargets(t, open(t, ticket, pull.Options{}), content)
				}
			}
		}
	}
}

func checkTargets(t *testing.T, s *pull.Surface, content []byte) {
	t.Helper()
	m, err := s.ToMemory(t.Context(), all)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if !bytes.Equal(m.Bytes(), content) {
		t.Fatal("the memory has other bytes")
	}
	path := filepath.Join(t.TempDir(), "file")
	if err := s.ToFile(t.Context(), path, all); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, content) {
		t.Fatalf("the file has other bytes, or %v", err)
	}
	if left, err := filepath.Glob(path + ".*"); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
	var written bytes.Buffer
	if n, err := s.CopyTo(t.Context(), &written, all); err != nil || n != int64(len(content)) || !bytes.Equal(written.Bytes(), content) {
		t.Fatalf("the writer has got %d other bytes, %v", n, err)
	}
}

// A writer that is slow holds up what lies far ahead, and gets all in the end.
func TestCopyAhead(t *testing.T) {
	const ahead = 32 * mib // that may be asked for before the writer has taken anything
	content := random(48*mib + 1)
	h := expose(t, content, 4*mib, nil)
	var taken, reads atomic.Int64
	stuck := make(chan struct{})
	h.onRead = func(c *wire.Conn, hd wire.Header, m wire.MemoryCommand) bool {
		if int64(m.Offset) >= taken.Load()+ahead+8*mib { // two chunks are between being taken and counted
			t.Errorf("byte %d was asked for when %d were taken", m.Offset, taken.Load())
		}
		if reads.Add(1) == ahead/mib {
			close(stuck)
		}
		return false
	}
	s := open(t, h.rooted(h.tcp()), pull.Options{})
	r, w := io.Pipe()
	done := make(chan error)
	go func() {
		_, err := s.CopyTo(t.Context(), w, all)
		w.Close()
		done <- err
	}()
	<-stuck
	var got []byte
	buf := make([]byte, 64*kib)
	for {
		n, err := r.Read(buf)
		got = append(got, buf[:n]...)
		taken.Store(int64(len(got)))
		if err != nil {
			break
		}
	}
	if err := <-done; err != nil || !bytes.Equal(got, content) {
		t.Errorf("other bytes, or %v", err)
	}
}

func TestReader(t *testing.T) {
	content := random(300*kib + 5)
	clear(content[64*kib : 128*kib])
	h := expose(t, content, 16*kib, nil)
	s := open(t, h.rooted(h.tcp()), pull.Options{})
	if err := iotest.TestReader(s.Reader(t.Context()), content); err != nil {
		t.Error(err)
	}
	p := make([]byte, 50)
	if n, err := s.ReadAt(p, int64(len(content))-20); n != 20 || err != io.EOF || !bytes.Equal(p[:n], content[len(content)-20:]) {
		t.Errorf("at the end: %d, %v", n, err)
	}
	if n, err := s.ReadAt(p, int64(len(content))+20); n != 0 || err != io.EOF {
		t.Errorf("behind the end: %d, %v", n, err)
	}
	if _, err := s.ReadAt(p, -1); !errors.Is(err, pull.ErrRange) {
		t.Errorf("before the beginning: %v", err)
	}
}

// A range asks for the chunks that it touches, and no others.
func TestRange(t *testing.T) {
	content := random(mib)
	h := expose(t, content, 16*kib, nil)
	s := open(t, h.rooted(h.tcp()), pull.Options{})
	r := surface.Range{Offset: 100*kib + 3, Length: 100 * kib}
	m, err := s.ToMemory(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if !bytes.Equal(m.Bytes(), content[r.Offset:][:r.Length]) {
		t.Error("other bytes")
	}
	s.Close()
	h.close()
	if h.given != 112*kib {
		t.Errorf("asked for %d bytes", h.given)
	}
}

func TestRangesThatAreNone(t *testing.T) {
	h := expose(t, random(mib), 16*kib, nil)
	address := h.tcp()
	s := open(t, h.rooted(address), pull.Options{})
	narrow, err := h.rooted(address).Derive(surface.Range{Offset: 100 * kib, Length: 50 * kib})
	if err != nil {
		t.Fatal(err)
	}
	n := open(t, narrow, pull.Options{})
	for _, test := range []struct {
		s *pull.Surface
		r surface.Range
	}{
		{s, surface.Range{Offset: mib, Length: 1}},
		{s, surface.Range{Offset: 0, Length: mib + 1}},
		{s, surface.Range{Offset: -1, Length: 1}},
		{s, surface.Range{Offset: 1, Length: -1}},
		{s, surface.Range{Offset: 1, Length: 1<<63 - 1}},
		{s, surface.Range{Offset: 1 << 62, Length: 1 << 62}},
		{n, surface.Range{Offset: 100*kib - 1, Length: 5}},
		{n, surface.Range{Offset: 100 * kib, Length: 50*kib + 1}},
	} {
		if _, err := test.s.ToMemory(t.Context(), test.r); !errors.Is(err, pull.ErrRange) {
			t.Errorf("%+v: %v", test.r, err)
		}
	}
	m, err := n.ToMemory(t.Context(), all)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if !bytes.Equal(m.Bytes(), random(mib)[100*kib:150*kib]) {
		t.Error("other bytes")
	}
}

// A puller reads along while the surface is written, and ends with it.
func TestStream(t *testing.T) {
	for _, key := range []*surface.Key{nil, new(surface.NewKey())} {
		const chunk = 16 * kib
		content := random(20*chunk + 100)
		h := grow(t, chunk, key)
		s := open(t, h.rootless(h.tcp()), pull.Options{})
		r, w := io.Pipe()
		done := make(chan error)
		go func() {
			n, err := s.CopyTo(t.Context(), w, all)
			if err == nil && n != int64(len(content)) {
				err = io.ErrShortWrite
			}
			w.Close()
			done <- err
		}()
		got := make([]byte, len(content))
		for i := 0; i < 20; i++ {
			h.add(content[i*chunk : (i+1)*chunk])
			if _, err := io.ReadFull(r, got[i*chunk:(i+1)*chunk]); err != nil {
				t.Fatal(err)
			}
			if err := s.Wait(t.Context(), int64(i*chunk), chunk); err != nil {
				t.Fatal(err)
			}
		}
		h.add(content[20*chunk:])
		h.seal()
		if _, err := io.ReadFull(r, got[20*chunk:]); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil || !bytes.Equal(got, content) {
			t.Errorf("other bytes, or %v", err)
		}
		if size, sealed := s.Size(); !sealed || size != int64(len(content)) {
			t.Errorf("size %d, sealed %v", size, sealed)
		}
		if err := s.Wait(t.Context(), int64(len(content)), 1); !errors.Is(err, pull.ErrRange) {
			t.Errorf("wait behind the end: %v", err)
		}
	}
}

// Who waits for chunks is told when the surface fails.
func TestStreamFails(t *testing.T) {
	h := grow(t, 16*kib, nil)
	h.add(random(32 * kib))
	s := open(t, h.rootless(h.tcp()), pull.Options{})
	done := make(chan error, 2)
	go func() {
		_, err := s.ToMemory(t.Context(), all)
		done <- err
	}()
	go func() { done <- s.Wait(t.Context(), 64*kib, 1) }()
	if err := s.Wait(t.Context(), 0, 32*kib); err != nil {
		t.Fatal(err)
	}
	h.fail(errors.New("taken back"))
	for range 2 {
		if err := <-done; !errors.Is(err, wire.Revoked) {
			t.Errorf("got %v", err)
		}
	}
}

func TestNoKey(t *testing.T) {
	h := expose(t, random(64*kib), 16*kib, new(surface.NewKey()))
	ticket := h.rooted(h.tcp())
	ticket.Key = nil
	s := open(t, ticket, pull.Options{})
	if _, err := s.ToMemory(t.Context(), all); !errors.Is(err, pull.ErrKey) {
		t.Errorf("to memory: %v", err)
	}
	if _, err := s.ReadAt(make([]byte, 1), 0); !errors.Is(err, pull.ErrKey) {
		t.Errorf("read: %v", err)
	}
	// Who serves it on needs no key.
	stored := make([]byte, len(h.stored))
	if err := s.Gather(t.Context(), nil, func(i int64, c surface.Chunk) error {
		copy(stored[i*(16*kib+surface.Overhead):], c.Stored())
		return nil
	}); err != nil || !bytes.Equal(stored, h.stored) {
		t.Errorf("gathered other bytes, or %v", err)
	}
	ticket.Key = new(surface.NewKey())
	s = open(t, ticket, pull.Options{})
	if _, err := s.ToMemory(t.Context(), all); !errors.Is(err, surface.ErrCorrupt) {
		t.Errorf("with another key: %v", err)
	}
}

func TestGatherWhatIsMissing(t *testing.T) {
	const chunk = 16 * kib
	content := random(10 * chunk)
	clear(content[2*chunk : 3*chunk])
	h := expose(t, content, chunk, nil)
	s := open(t, h.rooted(h.tcp()), pull.Options{})
	var put []int64
	got := make(chan int64, 10)
	if err := s.Gather(t.Context(), func(i int64) bool { return i%3 == 0 }, func(i int64, c surface.Chunk) error {
		if !bytes.Equal(c.Stored(), content[i*chunk:(i+1)*chunk]) || c.Digest() != surface.Sum(c.Stored()) {
			t.Errorf("chunk %d is another", i)
		}
		got <- i
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	close(got)
	for i := range got {
		put = append(put, i)
	}
	slices.Sort(put)
	if !slices.Equal(put, []int64{1, 2, 4, 5, 7, 8}) {
		t.Errorf("put %v", put)
	}
	reason := errors.New("no room")
	if err := s.Gather(t.Context(), nil, func(int64, surface.Chunk) error { return reason }); !errors.Is(err, reason) {
		t.Errorf("Gather = %v", err)
	}
}

func TestProgress(t *testing.T) {
	content := random(mib)
	h := expose(t, content, 16*kib, nil)
	var last pull.Progress
	s := open(t, h.rooted(h.tcp()), pull.Options{Progress: func(p pull.Progress) {
		if p.Done <= last.Done || p.Total != mib {
			t.Errorf("%+v after %+v", p, last)
		}
		last = p
	}})
	m, err := s.ToMemory(t.Context(), all)
	if err != nil {
		t.Fatal(err)
	}
	m.Close()
	if last.Done != mib {
		t.Errorf("%+v at the end", last)
	}
}

func TestCanceled(t *testing.T) {
	h := grow(t, 16*kib, nil)
	h.add(random(32 * kib))
	s := open(t, h.rootless(h.tcp()), pull.Options{})
	path := filepath.Join(t.TempDir(), "file")
	for name, do := range map[string]func(context.Context) error{
		"file":   func(ctx context.Context) error { return s.ToFile(ctx, path, all) },
		"memory": func(ctx context.Context) error { _, err := s.ToMemory(ctx, all); return err },
		"copy":   func(ctx context.Context) error { _, err := s.CopyTo(ctx, io.Discard, all); return err },
		"wait":   func(ctx context.Context) error { return s.Wait(ctx, 0, mib) },
		"read":   func(ctx context.Context) error { _, err := s.ReadAtContext(ctx, make([]byte, mib), 0); return err },
		"seek":   func(ctx context.Context) error { _, err := s.Reader(ctx).Seek(0, io.SeekEnd); return err },
	} {
		reason := errors.New("enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		done := make(chan error)
		go func() { done <- do(ctx) }()
		cancel(reason)
		if err := <-done; !errors.Is(err, reason) || !errors.Is(err, wire.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestClosed(t *testing.T) {
	h := grow(t, 16*kib, nil)
	s := open(t, h.rootless(h.tcp()), pull.Options{})
	done := make(chan error)
	go func() {
		_, err := s.ToMemory(t.Context(), all)
		done <- err
	}()
	s.Close()
	if err := <-done; !errors.Is(err, pull.ErrClosed) {
		t.Errorf("got %v", err)
	}
	if _, err := s.ReadAt(make([]byte, 1), 0); !errors.Is(err, pull.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}
