// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"bytes"
	"crypto/subtle"
	"encoding/binary"
	"slices"

	"github.com/memspan/memspan/vulkan/stream"
)

const (
	comparedPage = 4 << 10   // bytes compared, and skipped if equal, at a time
	deltaLimit   = 192 << 10 // bytes of a message's data, so that a frame holds it
	// A run costs 12 bytes: shorter gaps go as zeros, which a delta may hold.
	deltaGap = 16
)

// A delta gathers what the device wrote to a memory: its bytes now against the
// image of them that the client has. The difference travels, an exclusive or,
// in which bytes that did not change are zero. So runs need not be exact, and
// yet say nothing of bytes whose change by the client may be under way.
type delta struct {
	runs []stream.Run
	data []byte
	head []byte             // of the message
	now  [comparedPage]byte // of the page being compared: the device may be writing it
}

func (d *delta) reset() { d.runs, d.data = d.runs[:0], d.data[:0] }

// full reports whether another page may not fit.
func (d *delta) full() bool { return len(d.data) > deltaLimit-comparedPage }

// compare looks at a page, or a part of one, that begins at off of its memory.
// The image then holds what the memory held.
func (d *delta) compare(off uint64, memory, image []byte) {
	if bytes.Equal(memory, image) {
		return
	}
	n := copy(d.now[:], memory)
	// A page that changed all over goes from where it is made.
	begin := len(d.data)
	d.data = slices.Grow(d.data, n)[:begin+n]
	xor := d.data[begin:]
	subtle.XORBytes(xor, d.now[:n], image)
	copy(image, d.now[:n])
	if dense(xor) {
		d.add(off, n)
		return
	}
	d.data = d.data[:begin]
	for i := nonZero(xor, 0); i < n; {
		end := zeros(xor, i)
		d.add(off+uint64(i), end-i)
		d.data = append(d.data, xor[i:end]...) // to where it is, or before
		i = nonZero(xor, end)
	}
}

// dense reports whether a page has changed all over, as far as a few words of it
// tell: to look for what did not costs more than it saves.
func dense(b []byte) bool {
	const step = comparedPage / 16
	for i := 0; i+8 <= len(b); i += step {
		if binary.NativeEndian.Uint64(b[i:]) == 0 {
			return false
		}
	}
	return len(b) == comparedPage
}

// add adds a run of n bytes; one that begins where the last one ends continues
// it.
func (d *delta) add(off uint64, n int) {
	if k := len(d.runs) - 1; k >= 0 && d.runs[k].Offset+uint64(d.runs[k].Length) == off {
		d.runs[k].Length += uint32(n)
	} else {
		d.runs = append(d.runs, stream.Run{Offset: off, Length: uint32(n)})
	}
}

// nonZero returns the first index from i on, counted in words where there are
// whole ones, at which b is not zero, or its length.
func nonZero(b []byte, i int) int {
	for ; i+8 <= len(b); i += 8 {
		if binary.NativeEndian.Uint64(b[i:]) != 0 {
			return i
		}
	}
	for ; i < len(b) && b[i] == 0; i++ {
	}
	return i
}

// zeros returns where the first deltaGap zeros from i on begin, or where b's
// last byte that is not zero ends, to the word.
func zeros(b []byte, i int) int {
	end := i // of what is not zero
	for ; i+8 <= len(b) && i-end < deltaGap; i += 8 {
		if binary.NativeEndian.Uint64(b[i:]) != 0 {
			end = i + 8
		}
	}
	if i-end >= deltaGap {
		return end
	}
	for ; i < len(b); i++ {
		if b[i] != 0 {
			end = i + 1
		}
	}
	return end
}
