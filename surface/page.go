// SPDX-License-Identifier: Apache-2.0

package surface

import (
	"encoding/binary"
	"errors"
	"math/bits"
	"sync/atomic"

	"github.com/memspan/memspan/internal/bell"
	"github.com/memspan/memspan/internal/futex"
	"github.com/memspan/memspan/internal/memfd"
)

// The availability page: its header, and behind it one bit a chunk.
const (
	pageMagic   = "MSPAVAIL"
	pageVersion = 1

	pageState    = 12 // u32: a State
	pageSequence = 16 // u32: the bell's number
	pageSize     = 24 // u64: bytes of content
	pageBell     = 48 // 16 bytes: its name, on Windows
	pageBitmap   = 4096
)

// A State is what a surface has come to.
type State uint32

// The states.
const (
	Open    State = 1 + iota // bytes are still to come, and how many may not be known
	Sealed                   // the manifest is final
	Failed                   // the exposer ended before
	Revoked                  // taken back, or its time is over
)

// String returns the state's name.
func (s State) String() string {
	switch s {
	case Open:
		return "open"
	case Sealed:
		return "sealed"
	case Failed:
		return "failed"
	case Revoked:
		return "revoked"
	}
	return "unknown"
}

// bitmapSize returns the length of an availability page for chunks.
func bitmapSize(chunks int64) int64 { return pageBitmap + (chunks+63)/64*8 }

// words are the parts of a mapped availability page.
type words struct {
	state, sequence     *atomic.Uint32
	size, chunk, chunks *atomic.Uint64
	bitmap              []atomic.Uint64
}

func wordsOf(mem []byte) words {
	sizes := futex.Words(mem, pageSize, 3)
	return words{
		state: futex.Word(mem, pageState), sequence: futex.Word(mem, pageSequence),
		size: &sizes[0], chunk: &sizes[1], chunks: &sizes[2],
		bitmap: futex.Words(mem, pageBitmap, (len(mem)-pageBitmap)/8),
	}
}

func (w *words) has(i int64) bool {
	return i >= 0 && i/64 < int64(len(w.bitmap)) && w.bitmap[i/64].Load()>>(i%64)&1 == 1
}

// A page is the availability page of an exposure, which alone changes it.
type page struct {
	mem  *memfd.Published
	bell *bell.Bell
	words
}

// newPage makes the page of a surface of at most chunks chunks.
func newPage(name string, chunk, chunks int64) (*page, error) {
	mem, err := memfd.Publish(name, bitmapSize(chunks))
	if err != nil {
		return nil, err
	}
	if err = mem.Grow(mem.Limit()); err == nil {
		err = mem.Fix()
	}
	if err == nil {
		err = mem.Share()
	}
	if err == nil {
		err = mem.Populate(0, pageBitmap)
	}
	if err != nil {
		mem.Close()
		return nil, err
	}
	copy(mem.Writable(), pageMagic)
	binary.LittleEndian.PutUint32(mem.Writable()[8:], pageVersion)
	p := &page{mem: mem, words: wordsOf(mem.Writable())}
	if p.bell, err = bell.Hang(p.sequence, mem.Writable()[pageBell:]); err != nil {
		mem.Close()
		return nil, err
	}
	p.state.Store(uint32(Open))
	p.chunk.Store(uint64(chunk))
	return p, nil
}

func (p *page) resize(size, chunks int64) {
	p.size.Store(uint64(size))
	p.chunks.Store(uint64(chunks))
}

func (p *page) set(i int64) { p.bitmap[i/64].Or(1 << (i % 64)) }

// changed tells who waits that something did. The sequence comes last: who
// reads it first misses nothing.
func (p *page) changed() { p.bell.Ring() }

func (p *page) close() error { return errors.Join(p.bell.Close(), p.mem.Close()) }

// A Run is Count consecutive chunks.
type Run struct{ First, Count int64 }

// runs returns the runs of chunks [from, end) that are there, at most limit, and
// whether there are more.
func (w *words) runs(from, end int64, limit int) (found []Run, more bool) {
	for i := min(max(from, 0), end); ; {
		i = w.next(i, end, true)
		if i == end {
			return found, false
		}
		if len(found) == limit {
			return found, true
		}
		stop := w.next(i, end, false)
		found = append(found, Run{i, stop - i})
		i = stop
	}
}

// next returns the first chunk of [i, end) that is there, or not there; or end.
func (w *words) next(i, end int64, there bool) int64 {
	for i < end {
		word := w.bitmap[i/64].Load()
		if !there {
			word = ^word
		}
		if word >>= i % 64; word != 0 {
			return min(i+int64(bits.TrailingZeros64(word)), end)
		}
		i = (i/64 + 1) * 64
	}
	return end
}
