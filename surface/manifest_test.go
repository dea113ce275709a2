// SPDX-License-Identifier: Apache-2.0

package surface_test

import (
	"bytes"
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/memspan/memspan/surface"
	"pgregory.net/rapid"
)

func drawManifest(t *rapid.T) *surface.Manifest {
	m := &surface.Manifest{
		ID:          surface.NewID(),
		Name:        rapid.StringMatching(`[a-zäöü .]{0,40}`).Draw(t, "name"),
		ContentType: rapid.SampledFrom([]string{"", "text/plain", "application/octet-stream"}).Draw(t, "type"),
		Chunk:       1 << rapid.IntRange(12, 26).Draw(t, "chunk"),
		Encrypted:   rapid.Bool().Draw(t, "encrypted"),
	}
	m.Size = rapid.Int64Range(0, 20*m.Chunk).Draw(t, "size")
	if rapid.Bool().Draw(t, "expires") {
		m.Expires = time.UnixMilli(rapid.Int64Range(1, 1<<42).Draw(t, "ms")).UTC()
	}
	if rapid.Bool().Draw(t, "created") {
		m.Created = time.UnixMilli(rapid.Int64Range(1, 1<<42).Draw(t, "ms")).UTC()
	}
	m.Digests = make([]surface.Digest, m.Count())
	for i := range m.Digests {
		m.Digests[i] = surface.Sum([]byte{byte(i), byte(m.Size)})
	}
	return m
}

func TestManifestIsReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := drawManifest(t)
		data, err := m.AppendBinary(nil)
		if err != nil {
			t.Fatal(err)
		}
		got, err := surface.ParseManifest(data)
		if err != nil || !reflect.DeepEqual(got, m) {
			t.Fatalf("read %+v, %v; want %+v", got, err, m)
		}
		if m.Root() != surface.Sum(data) {
			t.Fatal("the root is not that of the encoding")
		}
		head, err := surface.ParseHeader(m.AppendHeader(nil))
		if err != nil {
			t.Fatal(err)
		}
		if head.Digests = m.Digests; !reflect.DeepEqual(head, m) {
			t.Fatalf("header %+v, want %+v", head, m)
		}
		for _, other := range [][]byte{data[:len(data)-1], append(bytes.Clone(data), 0)} {
			if _, err := surface.ParseManifest(other); !errors.Is(err, surface.ErrFormat) {
				t.Fatalf("%d bytes for %d: error %v", len(other), len(data), err)
			}
		}
		// The root binds every byte, and there are none that are not read.
		i := rapid.IntRange(0, len(data)-1).Draw(t, "byte")
		data[i] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		if got, err := surface.ParseManifest(data); err == nil {
			if again, _ := got.AppendBinary(nil); !bytes.Equal(again, data) || got.Root() == m.Root() {
				t.Fatalf("byte %d is not bound by the root", i)
			}
		}
	})
}

// Chunks follow each other without a gap, in the content and where they are
// stored, and ChunksOf finds those of any range.
func TestChunksTileTheContent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := drawManifest(t)
		var content, stored int64
		for i := range m.Count() {
			off, n := m.ContentRange(i)
			soff, sn := m.StoredRange(i)
			if off != content || soff != stored || n <= 0 || sn < n {
				t.Fatalf("chunk %d is [%d, +%d) stored at [%d, +%d)", i, off, n, soff, sn)
			}
			content, stored = off+n, soff+sn
		}
		if content != m.Size || stored != m.StoredSize() {
			t.Fatalf("%d bytes stored as %d, want %d and %d", content, stored, m.Size, m.StoredSize())
		}
		off := rapid.Int64Range(0, m.Size+m.Chunk).Draw(t, "off")
		n := rapid.Int64Range(0, 3*m.Chunk).Draw(t, "n")
		first, end := m.ChunksOf(off, n)
		for i := range m.Count() {
			coff, cn := m.ContentRange(i)
			touches := coff < off+n && off < coff+cn && n > 0
			if touches != (i >= first && i < end) {
				t.Fatalf("chunks of [%d, +%d) are [%d, %d); chunk %d is [%d, +%d)", off, n, first, end, i, coff, cn)
			}
		}
	})
}

// Sizes beyond 32 bits, and the largest there is.
func TestLargeSurfaces(t *testing.T) {
	for _, size := range []int64{5 << 30, 1<<32 + 1, surface.MaxSize} {
		for _, encrypted := range []bool{false, true} {
			m := &surface.Manifest{Size: size, Chunk: surface.MinChunk, Encrypted: encrypted}
			last := m.Count() - 1
			off, n := m.StoredRange(last)
			if off < 0 || n <= 0 || off+n != m.StoredSize() {
				t.Errorf("size %d: last chunk at [%d, +%d), stored %d", size, off, n, m.StoredSize())
			}
			if first, end := m.ChunksOf(size-1, surface.MaxSize); first != last || end != last+1 {
				t.Errorf("size %d: the last byte is in [%d, %d), want %d", size, first, end, last)
			}
			if _, err := surface.ParseHeader(m.AppendHeader(nil)); err != nil {
				t.Errorf("size %d: %v", size, err)
			}
		}
	}
}

func TestManifestKeepsItsRules(t *testing.T) {
	good := surface.Manifest{Chunk: surface.MinChunk}
	if _, err := good.AppendBinary(nil); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*surface.Manifest){
		"size below 0":       func(m *surface.Manifest) { m.Size = -1 },
		"size too large":     func(m *surface.Manifest) { m.Size = surface.MaxSize + 1 },
		"no chunk size":      func(m *surface.Manifest) { m.Chunk = 0 },
		"chunk too small":    func(m *surface.Manifest) { m.Chunk = 2048 },
		"chunk too large":    func(m *surface.Manifest) { m.Chunk = 128 << 20 },
		"no power of two":    func(m *surface.Manifest) { m.Chunk = 12288 },
		"name too long":      func(m *surface.Manifest) { m.Name = string(make([]byte, 256)) },
		"name with controls": func(m *surface.Manifest) { m.Name = "a\x1b[2J" },
		"name is not UTF-8":  func(m *surface.Manifest) { m.Name = "\xff" },
		"too far away":       func(m *surface.Manifest) { m.Expires = time.UnixMilli(1 << 60) },
		"digest missing":     func(m *surface.Manifest) { m.Size = 1 },
		"digest too many":    func(m *surface.Manifest) { m.Digests = make([]surface.Digest, 1) },
	} {
		m := good
		spoil(&m)
		if _, err := m.AppendBinary(nil); !errors.Is(err, surface.ErrFormat) {
			t.Errorf("%s: error %v, want ErrFormat", name, err)
		}
	}
}

func FuzzParseManifest(f *testing.F) {
	for _, m := range []surface.Manifest{
		{Chunk: surface.MinChunk},
		{ID: surface.NewID(), Name: "n", ContentType: "text/plain", Size: 5000, Chunk: surface.MinChunk, Encrypted: true,
			Created: time.UnixMilli(1), Expires: time.UnixMilli(2), Digests: make([]surface.Digest, 2)},
	} {
		data, err := m.AppendBinary(nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
		f.Add(m.AppendHeader(nil))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if m, err := surface.ParseManifest(data); err == nil {
			if again, err := m.AppendBinary(nil); err != nil || !bytes.Equal(again, data) {
				t.Fatalf("written otherwise than read: %v", err)
			}
		}
		if m, err := surface.ParseHeader(data); err == nil {
			if again := m.AppendHeader(nil); !bytes.Equal(again, data) {
				t.Fatal("written otherwise than read")
			}
		}
	})
}

func TestSealedChunksOpenWithTheirKeyAndPlaceAlone(t *testing.T) {
	key, id := surface.NewKey(), surface.NewID()
	s := surface.NewSealer(key, id)
	plain := []byte("the content")
	sealed := s.Seal(nil, 7, plain)
	if len(sealed) != len(plain)+surface.Overhead {
		t.Fatalf("%d bytes sealed are %d", len(plain), len(sealed))
	}
	if got, err := s.Open(nil, 7, sealed); err != nil || !bytes.Equal(got, plain) {
		t.Fatalf("opened %q, %v", got, err)
	}
	flipped := bytes.Clone(sealed)
	flipped[3] ^= 1
	for name, open := range map[string]func() ([]byte, error){
		"another place":   func() ([]byte, error) { return s.Open(nil, 8, sealed) },
		"another surface": func() ([]byte, error) { return surface.NewSealer(key, surface.NewID()).Open(nil, 7, sealed) },
		"another key":     func() ([]byte, error) { return surface.NewSealer(surface.NewKey(), id).Open(nil, 7, sealed) },
		"a flipped bit":   func() ([]byte, error) { return s.Open(nil, 7, flipped) },
		"nothing":         func() ([]byte, error) { return s.Open(nil, 7, nil) },
	} {
		if _, err := open(); !errors.Is(err, surface.ErrCorrupt) {
			t.Errorf("%s: error %v, want ErrCorrupt", name, err)
		}
	}
}

func TestZeros(t *testing.T) {
	var z surface.Zeros
	m := &surface.Manifest{Size: 3*surface.MinChunk + 100, Chunk: surface.MinChunk}
	m.Digests = []surface.Digest{surface.Sum(make([]byte, m.Chunk)), {}, surface.Sum(make([]byte, 100)), surface.Sum(make([]byte, 100))}
	for i, want := range []bool{true, false, false, true} {
		if got := z.Zero(m, int64(i)); got != want {
			t.Errorf("chunk %d: zero %v, want %v", i, got, want)
		}
	}
	m.Encrypted = true
	m.Digests[3] = surface.Sum(make([]byte, 100+surface.Overhead))
	if z.Zero(m, 3) {
		t.Error("a sealed chunk is known to be zeros")
	}
}
