// SPDX-License-Identifier: Apache-2.0

package memfd_test

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/memspan/memspan/internal/memfd"
)

func newArena(t *testing.T, name string) *memfd.Arena {
	t.Helper()
	a := memfd.NewArena(name)
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

func take(t *testing.T, a *memfd.Arena, size int64) *memfd.Piece {
	t.Helper()
	p, err := a.Take(size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func pieceResident(t rapid.TB, p *memfd.Piece) int64 {
	t.Helper()
	n, err := p.Resident()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// descriptors returns how many descriptors of this process are of memory of that
// name, and how many mappings are.
func descriptors(t *testing.T, name string) (files, mappings int) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if link, _ := os.Readlink("/proc/self/fd/" + fd.Name()); strings.HasPrefix(link, "/memfd:"+name) {
			files++
		}
	}
	text, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return files, strings.Count(string(text), "/memfd:"+name)
}

func TestPiecesTakeOneDescriptor(t *testing.T) {
	const name = "one-descriptor"
	a := memfd.NewArena(name)
	var pieces []*memfd.Piece
	for i := range 300 {
		p, err := a.Take(int64(1 + i*1000))
		if err != nil {
			t.Fatal(err)
		}
		if p.Size()%page != 0 || p.Size() < int64(1+i*1000) || p.Size() >= int64(1+i*1000)+page {
			t.Fatalf("%d bytes asked for, %d given", 1+i*1000, p.Size())
		}
		p.Bytes()[0], p.Bytes()[p.Size()-1] = byte(i), byte(i)
		pieces = append(pieces, p)
	}
	if files, _ := descriptors(t, name); files != 1 {
		t.Errorf("%d descriptors, want 1", files)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if _, err := a.Take(1); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a piece of a closed arena: %v", err)
	}
	for i, p := range pieces { // usable still
		if p.Bytes()[0] != byte(i) || p.Bytes()[p.Size()-1] != byte(i) {
			t.Errorf("piece %d holds something else", i)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if err := p.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
	}
	if files, mappings := descriptors(t, name); files != 0 || mappings != 0 {
		t.Errorf("%d descriptors and %d mappings are left", files, mappings)
	}
}

// What a piece holds goes back to the system when it is closed, whoever still has
// pieces of the same memfd.
func TestClosedPieceCostsNothing(t *testing.T) {
	const name = "given-back"
	a := newArena(t, name)
	take(t, a, page).Bytes()[0] = 1
	held := func() int64 {
		t.Helper()
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range fds {
			path := "/proc/self/fd/" + fd.Name()
			if link, _ := os.Readlink(path); !strings.HasPrefix(link, "/memfd:"+name) {
				continue
			}
			var st unix.Stat_t
			if err := unix.Stat(path, &st); err != nil {
				t.Fatal(err)
			}
			return st.Blocks * 512
		}
		t.Fatal("no descriptor")
		return 0
	}
	p, err := a.Take(50 * page)
	if err != nil {
		t.Fatal(err)
	}
	alias, err := p.Alias(p.Size())
	if err != nil {
		t.Fatal(err)
	}
	for at := int64(0); at < p.Size(); at += page {
		alias[at] = 1
	}
	if n := held(); n != 51*page {
		t.Errorf("%d bytes held, want %d", n, 51*page)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if n := held(); n != page {
		t.Errorf("%d bytes held with one page left, want %d", n, page)
	}
}

func TestTakeRefuses(t *testing.T) {
	a := newArena(t, "test")
	for _, size := range []int64{0, -1, 1<<62 + 1, 1<<63 - 1} {
		if _, err := a.Take(size); err == nil {
			t.Errorf("Take(%d): no error", size)
		}
	}
	if _, err := a.Take(1 << 61); !errors.Is(err, unix.ENOMEM) { // more than can be addressed
		t.Errorf("error %v, want ENOMEM", err)
	}
	take(t, a, 1)
}

// Pieces hold what is stored to them and nothing else, however they are taken and
// given back; so do their aliases; and what they cost is known.
func TestPieces(t *testing.T) {
	type model struct {
		*memfd.Piece
		alias []byte
		bytes []byte
	}
	rapid.Check(t, func(t *rapid.T) {
		a := memfd.NewArena("model")
		defer a.Close()
		var all []*model
		defer func() {
			for _, m := range all {
				m.Close()
			}
		}()
		pick := func(t *rapid.T) *model {
			if len(all) == 0 {
				t.Skip("none")
			}
			return all[rapid.IntRange(0, len(all)-1).Draw(t, "piece")]
		}
		t.Repeat(map[string]func(*rapid.T){
			"take": func(t *rapid.T) {
				p, err := a.Take(rapid.Int64Range(1, 20*page).Draw(t, "size"))
				if err != nil {
					t.Fatal(err)
				}
				alias, err := p.Alias(p.Size())
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, &model{p, alias, make([]byte, p.Size())})
			},
			"close": func(t *rapid.T) {
				m := pick(t)
				if err := m.Close(); err != nil {
					t.Fatal(err)
				}
				for i := range all {
					if all[i] == m {
						all = append(all[:i], all[i+1:]...)
						break
					}
				}
			},
			"store": func(t *rapid.T) {
				m := pick(t)
				at := rapid.Int64Range(0, m.Size()-1).Draw(t, "at")
				m.alias[at], m.bytes[at] = 7, 7
			},
			"": func(t *rapid.T) {
				for _, m := range all {
					want := int64(0)
					first := m.Size()
					for p := int64(0); p < m.Size(); p += page {
						if bytes.IndexByte(m.bytes[p:p+page], 7) >= 0 {
							first = min(first, p)
							want += page
						}
					}
					if got := pieceResident(t, m.Piece); got != want {
						t.Fatalf("a piece holds %d bytes, want %d", got, want)
					}
					if got, err := m.NextData(0, m.Size()); err != nil || got != first {
						t.Fatalf("the first data is at %d (%v), want %d", got, err, first)
					}
					for p := first / page * page; p < m.Size(); p += page { // reading makes pages
						if bytes.IndexByte(m.bytes[p:p+page], 7) >= 0 && !bytes.Equal(m.Bytes()[p:p+page], m.bytes[p:p+page]) {
							t.Fatalf("page %d of a piece holds something else", p/page)
						}
					}
				}
			},
		})
	})
}

func TestNextData(t *testing.T) {
	a := newArena(t, "test")
	r := take(t, a, 8*page)
	take(t, a, page).Bytes()[0] = 1 // another's data is nobody else's
	r.Bytes()[2*page+7] = 1
	r.Bytes()[3*page] = 1
	r.Bytes()[6*page] = 1
	for _, c := range []struct{ off, end, want int64 }{
		{0, 8 * page, 2 * page},
		{2*page + 9, 8 * page, 2*page + 9},
		{4 * page, 8 * page, 6 * page},
		{0, page, page},
		{0, 2 * page, 2 * page},
		{7 * page, 8 * page, 8 * page},
		{8 * page, 8 * page, 8 * page},
		{2 * page, 2 * page, 2 * page},
	} {
		if got, err := r.NextData(c.off, c.end); err != nil || got != c.want {
			t.Errorf("NextData(%d, %d) = %d, %v, want %d", c.off, c.end, got, err, c.want)
		}
	}
	for _, w := range [][2]int64{{-1, 1}, {2, 1}, {0, 8*page + 1}} {
		if _, err := r.NextData(w[0], w[1]); err == nil {
			t.Errorf("NextData(%v): no error", w)
		}
	}
	if n := pieceResident(t, r); n != 3*page {
		t.Errorf("looking made it hold %d bytes", n)
	}
}

func TestAliasShowsTheSameBytes(t *testing.T) {
	r := take(t, newArena(t, "test"), 4*page)
	a, err := r.Alias(2 * page)
	if err != nil {
		t.Fatal(err)
	}
	r.Bytes()[page] = 3
	a[2*page-1] = 4
	if a[page] != 3 || r.Bytes()[2*page-1] != 4 || int64(len(a)) != 2*page {
		t.Error("the alias shows something else")
	}
	for _, n := range []int64{0, -1, 4*page + 1} {
		if _, err := r.Alias(n); err == nil {
			t.Errorf("Alias(%d): no error", n)
		}
	}
}

// Where files may have so many bytes, there are several, and what is too large
// for any is refused, where growing a file would kill the process.
func TestArenaWithinFileLimit(t *testing.T) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	less := limit
	less.Cur = uint64(10*page + 5)
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &less); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_FSIZE, &limit)
	const name = "small-files"
	a := newArena(t, name)
	if _, err := a.Take(11 * page); !errors.Is(err, unix.EFBIG) || !strings.Contains(err.Error(), "RLIMIT_FSIZE") {
		t.Errorf("error %v, want EFBIG that names RLIMIT_FSIZE", err)
	}
	var pieces []*memfd.Piece
	for i := range 6 {
		p := take(t, a, 4*page)
		p.Bytes()[4*page-1] = byte(i)
		pieces = append(pieces, p)
	}
	if files, _ := descriptors(t, name); files != 3 {
		t.Errorf("%d descriptors, want 3", files)
	}
	for i, p := range pieces[:5] {
		if p.Bytes()[4*page-1] != byte(i) {
			t.Errorf("piece %d holds something else", i)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	if files, _ := descriptors(t, name); files != 1 {
		t.Errorf("%d descriptors for one piece, want 1", files)
	}
}

func TestArenaConcurrently(t *testing.T) {
	a := newArena(t, "test")
	var wg sync.WaitGroup
	for g := range byte(4) {
		wg.Go(func() {
			for i := range int64(200) {
				p, err := a.Take(1 + i*500)
				if err != nil {
					t.Error(err)
					return
				}
				for at := int64(0); at < p.Size(); at += page {
					if p.Bytes()[at] != 0 {
						t.Errorf("byte %d of a fresh piece is %d", at, p.Bytes()[at])
					}
					p.Bytes()[at] = g + 1
				}
				for at := int64(0); at < p.Size(); at += page {
					if p.Bytes()[at] != g+1 {
						t.Errorf("byte %d of a piece is %d", at, p.Bytes()[at])
					}
				}
				if err := p.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}
