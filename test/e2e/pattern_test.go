// SPDX-License-Identifier: Apache-2.0

//go:build linux

package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/memspan/memspan"
)

// word is what stamp puts at bytes [8*i, 8*i+8) of a span: no byte is zero,
// as those are that were never written.
func word(seed, i uint64) uint64 {
	x := (i+1)*0x9e3779b97f4a7c15 ^ (seed+1)*0xbf58476d1ce4e5b9
	return x ^ x>>29 | 0x0101010101010101
}

// stamp fills p, which lies at off in its span, with bytes that tell their
// place and the seed: a constant would hide misplaced ones.
func stamp(p []byte, off int64, seed uint64) {
	pos := uint64(off)
	for ; pos%8 != 0 && len(p) > 0; p, pos = p[1:], pos+1 {
		p[0] = byte(word(seed, pos/8) >> (pos % 8 * 8))
	}
	for ; len(p) >= 8; p, pos = p[8:], pos+8 {
		binary.LittleEndian.PutUint64(p, word(seed, pos/8))
	}
	for i := range p {
		p[i] = byte(word(seed, pos/8) >> (i * 8))
	}
}

// stamped returns n bytes as stamp makes them.
func stamped(n int, off int64, seed uint64) []byte {
	p := make([]byte, n)
	stamp(p, off, seed)
	return p
}

// wrong returns the index of the first byte of p that is not as stamp makes
// it, or -1.
func wrong(p []byte, off int64, seed uint64) int {
	var expected [4096]byte
	for at := 0; at < len(p); at += len(expected) {
		got := p[at:min(at+len(expected), len(p))]
		stamp(expected[:len(got)], off+int64(at), seed)
		if i := differ(got, expected[:len(got)]); i >= 0 {
			return at + i
		}
	}
	return -1
}

// differ returns the index of the first byte in which a and b, of one length,
// differ, or -1.
func differ(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

// alloc makes a span of RAM that ends with the test, or as cfg says.
func alloc(t testing.TB, c *memspan.Client, cfg memspan.SpanConfig) *memspan.Span {
	t.Helper()
	s, err := c.Alloc(t.Context(), cfg)
	check(t, err)
	t.Cleanup(func() { s.Close() }) // an error says that the connection went first
	return s
}

func open(t testing.TB, c *memspan.Client, s *memspan.Span) *memspan.Span {
	t.Helper()
	other, err := c.Open(t.Context(), s.ID())
	check(t, err)
	t.Cleanup(func() { other.Close() })
	return other
}

func mapped(t testing.TB, s *memspan.Span, off, n int64, mode memspan.Mode) *memspan.Mapping {
	t.Helper()
	m, err := s.Map(t.Context(), off, n, mode)
	check(t, err)
	return m
}

func unmap(t testing.TB, m *memspan.Mapping) {
	t.Helper()
	check(t, m.Unmap(t.Context()))
}

func flush(t testing.TB, m *memspan.Mapping, ranges ...memspan.Range) memspan.Commit {
	t.Helper()
	c, err := m.Flush(t.Context(), ranges...)
	check(t, err)
	return c
}

// settle flushes a mapping, and where another commit to its blocks counts as a
// conflict, recovers as one does.
func settle(ctx context.Context, m *memspan.Mapping) error {
	for {
		_, err := m.Flush(ctx)
		if !errors.Is(err, memspan.ErrConflict) {
			return err
		}
		if err := m.Invalidate(ctx); err != nil {
			return err
		}
	}
}

func write(t testing.TB, s *memspan.Span, p []byte, off int64) {
	t.Helper()
	n, err := s.WriteAt(t.Context(), p, off)
	check(t, err)
	if n != len(p) {
		t.Fatalf("WriteAt stored %d of %d bytes and gave no error", n, len(p))
	}
}

func read(t testing.TB, s *memspan.Span, off int64, n int) []byte {
	t.Helper()
	p := make([]byte, n)
	got, err := s.ReadAt(t.Context(), p, off)
	check(t, err)
	if got != n {
		t.Fatalf("ReadAt read %d of %d bytes and gave no error", got, n)
	}
	return p
}

// holds checks that bytes [off, off+n) of the span are as stamp makes them.
func holds(t testing.TB, s *memspan.Span, off int64, n int, seed uint64) {
	t.Helper()
	if i := wrong(read(t, s, off, n), off, seed); i >= 0 {
		t.Fatalf("span %q [%d, +%d): byte %d is wrong", s.Name(), off, n, off+int64(i))
	}
}

func stat(t testing.TB, s *memspan.Span) memspan.SpanStat {
	t.Helper()
	st, err := s.Stat(t.Context())
	check(t, err)
	return st
}

// over waits until a mapping's Done is closed.
func over(t testing.TB, m *memspan.Mapping) {
	t.Helper()
	select {
	case <-m.Done():
	case <-time.After(patience):
		t.Fatal("the mapping's Done is not closed")
	}
}
