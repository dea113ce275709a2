// SPDX-License-Identifier: Apache-2.0

package span_test

import (
	"bytes"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/memspan/memspan/coherency"
	"github.com/memspan/memspan/span"
	"github.com/memspan/memspan/tier"
)

// What is composed is what is read, on every tier, and one commit.
func TestCompose(t *testing.T) {
	const size = 5*block + 77
	st := openData(t, t.TempDir(), 64<<20)
	defer st.close(t)
	dev := newStore(t)
	for name, s := range map[string]*span.Span{
		"host":    st.alloc(t, span.Info{Size: size, Tier: coherency.Host, Home: coherency.Host}),
		"back":    st.alloc(t, span.Info{Name: "b", Size: size, Tier: coherency.Host, Home: coherency.Disk}),
		"through": st.alloc(t, span.Info{Name: "t", Size: size, Tier: coherency.Host, Home: coherency.Disk, Policy: coherency.WriteThrough}),
		"disk":    st.alloc(t, span.Info{Name: "d", Size: size, Tier: coherency.Disk, Home: coherency.Disk}),
		"device":  alloc(t, dev, span.Info{Size: size, Tier: coherency.VRAM, Home: coherency.VRAM}),
		"pushed":  alloc(t, dev, span.Info{Size: size, Tier: coherency.VRAM, Home: coherency.Host, Policy: coherency.WriteThrough}),
	} {
		for round := range uint64(2) {
			want := pattern(size, round)
			done, err := s.Compose(t.Context(), func(off int64, p []byte) error {
				if copy(p, want[off:]) != len(p) {
					return errors.New("there is more to fill than the span has")
				}
				return nil
			})
			if err != nil || done.Version != round+1 || !done.Holders.Has(s.Home) && s.Policy == coherency.WriteThrough {
				t.Errorf("%s: %+v, %v", name, done, err)
			}
			if !bytes.Equal(read(t, s, 0, size), want) {
				t.Errorf("%s: other bytes", name)
			}
		}
	}
}

// Memory that a span adopts is its bytes, and stays as it is if nothing comes of
// the span; published it makes room for others like any.
func TestAdopt(t *testing.T) {
	const blocks = 6
	st := openData(t, t.TempDir(), 8*block)
	defer st.close(t)
	given := memory(t, pattern(blocks*block, 1)).Region
	want := pattern(blocks*block, 1)
	info := span.Info{Name: "s", Size: blocks*block - 5, Tier: coherency.Host, Home: coherency.Host}
	clear(want[info.Size:])
	for _, other := range []span.Info{
		{Size: info.Size, Tier: coherency.Disk, Home: coherency.Disk},
		{Name: "s", Size: info.Size, Tier: coherency.Host, Home: coherency.Disk, Policy: coherency.WriteThrough},
		{Size: block, Tier: coherency.Host, Home: coherency.Host},
		{Size: info.Size + 10000, Tier: coherency.Host, Home: coherency.Host},
	} {
		if _, err := st.Adopt(t.Context(), other, given.File()); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%+v: %v", other, err)
		}
	}
	readable, err := given.Reopen(false)
	if err != nil {
		t.Fatal(err)
	}
	defer readable.Close()
	if _, err := st.Adopt(t.Context(), info, readable); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("memory that can be read alone: %v", err)
	}
	filler := st.alloc(t, span.Info{Name: "filler", Size: 4 * block, Tier: coherency.Host, Home: coherency.Host})
	write(t, filler, 0, pattern(4*block, 2))
	pinned, _ := mapDirect(t, filler, 0, 4*block)
	if _, err := st.Adopt(t.Context(), info, given.File()); !errors.Is(err, tier.ErrBudget) {
		t.Errorf("more than RAM has room for: %v", err)
	}
	if _, err := pinned.Close(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	s, err := st.Adopt(t.Context(), info, given.File())
	if err != nil {
		t.Fatal(err)
	}
	write(t, filler, 0, pattern(4*block, 3)) // has nobody to drive out
	if err := s.Forsake(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(given.Bytes(), want) {
		t.Error("a span that was given up has changed the memory")
	}
	if s, err = st.Adopt(t.Context(), info, given.File()); err != nil {
		t.Fatal(err)
	}
	if err := st.Publish(t.Context(), s, false); err != nil {
		t.Fatal(err)
	}
	if v := s.Version(); v != 1 || !bytes.Equal(read(t, s, 0, info.Size), want[:info.Size]) {
		t.Errorf("version %d, or other bytes", v)
	}
	write(t, s, 3, []byte{1, 2, 3})
	copy(want[3:], []byte{1, 2, 3})
	more := st.alloc(t, span.Info{Name: "more", Size: 8 * block, Tier: coherency.Host, Home: coherency.Host})
	write(t, more, 0, pattern(8*block, 4))
	if !bytes.Equal(read(t, s, 0, info.Size), want[:info.Size]) {
		t.Error("other bytes when RAM was full")
	}
}

// Nobody is told that bytes are there which never came.
func TestComposeFails(t *testing.T) {
	const size = 4 * block
	st := openData(t, t.TempDir(), 64<<20)
	defer st.close(t)
	dev := newStore(t)
	for name, s := range map[string]*span.Span{
		"host":   st.alloc(t, span.Info{Size: size, Tier: coherency.Host, Home: coherency.Host}),
		"disk":   st.alloc(t, span.Info{Name: "d", Size: size, Tier: coherency.Disk, Home: coherency.Disk}),
		"device": alloc(t, dev, span.Info{Size: size, Tier: coherency.VRAM, Home: coherency.VRAM}),
	} {
		old := pattern(size, 1)
		write(t, s, 0, old)
		var calls atomic.Int64
		_, err := s.Compose(t.Context(), func(off int64, p []byte) error {
			calls.Add(1)
			if off == 2*block {
				clear(p[:100])
				return errBroken
			}
			copy(p, bytes.Repeat([]byte{7}, len(p)))
			return nil
		})
		if !errors.Is(err, errBroken) || errors.Is(err, span.ErrFreed) {
			t.Errorf("%s: %v", name, err)
		}
		for b := range int64(4) {
			m := memory(t, make([]byte, block))
			err := s.Read(t.Context(), b*block, m)
			torn := err == nil && !bytes.Equal(m.Bytes(), old[b*block:(b+1)*block]) && !bytes.Equal(m.Bytes(), bytes.Repeat([]byte{7}, block))
			if torn || err != nil && !errors.Is(err, coherency.ErrDataLoss) {
				t.Errorf("%s: block %d: torn %t, %v", name, b, torn, err)
			}
			if name == "disk" && (err != nil || !bytes.Equal(m.Bytes(), old[b*block:(b+1)*block])) {
				t.Errorf("disk: block %d has changed, %v", b, err)
			}
			if name == "host" && b == 2 && err == nil {
				t.Error("a block that was half filled is read")
			}
		}
	}
}
