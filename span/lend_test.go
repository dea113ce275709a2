// SPDX-License-Identifier: Apache-2.0

package span_test

import (
	"bytes"
	"errors"
	"sync"
	"testing"

	"github.com/memspan/memspan/coherency"
	"github.com/memspan/memspan/span"
)

// lendable reports whether a range is lent, and checks what is.
func lendable(t *testing.T, s *span.Span, off int64, want []byte) bool {
	t.Helper()
	lent, err := s.Lend(t.Context(), off, int64(len(want)), nothing, func(p []byte) {
		if !bytes.Equal(p, want) {
			t.Error("what is lent is not what is there")
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return lent
}

// A block is lent until somebody wants to write it, who then waits for no
// longer than it takes to return it; and for nobody else.
func TestLendIsRecalled(t *testing.T) {
	st := newStore(t)
	s := alloc(t, st, span.Info{Size: 2 * block, Tier: coherency.Host, Home: coherency.Host})
	old, next := pattern(block, 1), pattern(block, 2)
	for name, act := range map[string]func() error{
		"write": func() error { _, err := s.Write(t.Context(), 0, memory(t, next), false); return err },
		"fill":  func() error { _, err := s.Fill(t.Context(), 0, 10, 1); return err },
		"map": func() error {
			d, err := s.MapDirect(t.Context(), 0, block, false, nothing)
			if err == nil {
				_, err = d.Close(t.Context(), false)
			}
			return err
		},
	} {
		write(t, s, 0, old)
		var once sync.Once
		recalled, done := make(chan struct{}), make(chan error, 1)
		lent, err := s.Lend(t.Context(), 0, block, func() { once.Do(func() { close(recalled) }) }, func(p []byte) {
			if got := read(t, s, 0, block); !bytes.Equal(got, old) {
				t.Errorf("%s: readers see something else", name)
			}
			write(t, s, block, next) // another block
			select {
			case <-recalled:
				t.Errorf("%s: recalled for nobody", name)
			default:
			}
			go func() { done <- act() }()
			<-recalled
			if !bytes.Equal(p, old) || len(done) != 0 {
				t.Errorf("%s: done before the block was returned", name)
			}
		})
		if !lent || err != nil {
			t.Fatalf("%s: lent %v, error %v", name, lent, err)
		}
		if err := <-done; err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLendIsRecalledByFree(t *testing.T) {
	st := newStore(t)
	s := alloc(t, st, span.Info{Size: block, Tier: coherency.Host, Home: coherency.Host})
	recalled, done := make(chan struct{}), make(chan error, 1)
	lent, err := s.Lend(t.Context(), 0, block, func() { close(recalled) }, func(p []byte) {
		go func() { done <- s.Free() }()
		<-recalled
		if p[block-1] != 0 {
			t.Error("the memory went before it was returned")
		}
	})
	if !lent || err != nil {
		t.Errorf("lent %v, error %v", lent, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := s.Lend(t.Context(), 0, block, nothing, func([]byte) {}); !errors.Is(err, span.ErrFreed) {
		t.Errorf("of a span that was freed: %v", err)
	}
}

// Only what nobody can store to is lent: a process that was given the memory
// once may store to it for as long as it lives.
func TestLendRefuses(t *testing.T) {
	st := newStore(t)
	p := pattern(block, 1)
	s := alloc(t, st, span.Info{Size: 2*block + 5, Tier: coherency.Host, Home: coherency.Host})
	write(t, s, 0, p)
	if !lendable(t, s, 0, p) || !lendable(t, s, 3, p[3:100]) || !lendable(t, s, 2*block, make([]byte, 5)) {
		t.Error("memory of a block in RAM is not lent")
	}
	if lendable(t, s, block-1, make([]byte, 2)) {
		t.Error("bytes of two blocks are lent")
	}
	if _, err := s.Lend(t.Context(), 2*block, 6, nothing, func([]byte) {}); !errors.Is(err, span.ErrRange) {
		t.Errorf("beyond the end: %v", err)
	}
	viewer, err := s.MapDirect(t.Context(), 0, block, false, nothing)
	if err != nil {
		t.Fatal(err)
	}
	f, _, err := viewer.File()
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if !lendable(t, s, 0, p) {
		t.Error("a mapping that can only read keeps memory from being lent")
	}
	if _, err := viewer.Close(t.Context(), false); err != nil {
		t.Error(err)
	}
	d, _ := mapDirect(t, s, 0, block)
	if lendable(t, s, 0, p) {
		t.Error("memory that a mapping stores to is lent")
	}
	if _, err := d.Close(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if lendable(t, s, 0, p) {
		t.Error("memory that a process could store to is lent")
	}
	device := alloc(t, st, span.Info{Size: block, Tier: coherency.VRAM, Home: coherency.VRAM})
	write(t, device, 0, p)
	if lendable(t, device, 0, p) {
		t.Error("a device's memory is lent")
	}
}
