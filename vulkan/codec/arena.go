// SPDX-License-Identifier: Apache-2.0

package codec

// ArenaLimit is how many bytes of memory the arguments of one call may take in
// a worker.
const ArenaLimit = 64 << 20

const (
	firstChunk = 64 << 10
	// keepChunks is what an Arena keeps for the next call; a larger call's
	// memory is given back.
	keepChunks = 4 << 20
	alignment  = 16 // no Vulkan structure needs more than 8; 16 is for copies
	// header precedes an array that the driver fills: how many elements there
	// is room for, in the first word.
	header = alignment
)

// An Arena is the memory in which a worker rebuilds the arguments of a call.
// Addresses in it stay valid, and what they hold stays alive, until Reset and
// as long as the Arena is reachable: keep it so while the driver runs
// (runtime.KeepAlive). It is for one goroutine at a time.
//
// It is pointer-free Go memory, so that the collector never looks for pointers
// in it and C may store what it likes.
type Arena struct {
	chunks  [][]byte
	current int // of chunks
	used    int // of the current chunk
	total   int // bytes of this call
	limit   int

	ids   []uint64 // of output handles, as the client named them
	reals []byte   // where the driver stores them
	count uintptr  // the address of the returned count, or 0
	size  uint8    // its size
}

// NewArena returns an empty Arena.
func NewArena() *Arena { return &Arena{limit: ArenaLimit} }

// Reset forgets a call's memory. Nothing is allocated for the next one unless
// it needs more than those before.
func (r *Arena) Reset() {
	kept := 0
	for i, c := range r.chunks {
		if kept += len(c); kept > keepChunks && i > 0 {
			clear(r.chunks[i:])
			r.chunks = r.chunks[:i]
			break
		}
	}
	r.current, r.used, r.total = 0, 0, 0
	r.ids, r.reals, r.count = r.ids[:0], nil, 0
}

// Created returns, after a call of a command that Creates, the ids that the
// client named for its new handles and beside them what the driver stored: the
// real handles, 0 for those it did not make. Where the driver says how many
// there are, both are cut to that. They are valid until Reset.
func (r *Arena) Created() (ids, reals []uint64) {
	reals = words(r.reals)
	n := len(reals)
	if r.count != 0 {
		n = min(n, clampInt(load(r.count, r.size)))
	}
	return r.ids[:min(n, len(r.ids))], reals[:n]
}

func clampInt(v uint64) int { return int(min(v, 1<<31)) }

// take returns n bytes, which hold anything.
func (r *Arena) take(n int) ([]byte, error) {
	if n > r.limit-r.total {
		return nil, ErrTooLarge
	}
	whole := (n + alignment - 1) &^ (alignment - 1)
	r.total += whole
	for r.current < len(r.chunks) {
		if c := r.chunks[r.current]; whole <= len(c)-r.used {
			b := c[r.used : r.used+n : r.used+whole]
			r.used += whole
			return b, nil
		}
		r.current, r.used = r.current+1, 0
	}
	size := firstChunk << min(len(r.chunks), 6)
	// The heap aligns objects of this size to pages.
	r.chunks = append(r.chunks, make([]byte, max(size, whole)))
	r.current, r.used = len(r.chunks)-1, whole
	return r.chunks[r.current][:n:whole], nil
}

// zeroed returns n zero bytes.
func (r *Arena) zeroed(n int) ([]byte, error) {
	b, err := r.take(n)
	clear(b)
	return b, err
}

// room returns n zero bytes for count elements that the driver stores.
func (r *Arena) room(n int, count uint64) ([]byte, error) {
	// At least a byte, as Go does not move a slice's address past its end: the
	// header must stand before an empty array too.
	b, err := r.zeroed(header + max(n, 1))
	if err != nil {
		return nil, err
	}
	words(b)[0] = count
	return b[header : header+n], nil
}

// capacity is the count that room was asked for.
func capacity(p uintptr) uint64 { return load64(p - header) }
