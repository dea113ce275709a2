// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"sync"
	"time"

	"github.com/klauspost/compress/s2"

	"github.com/memspan/memspan/internal/memfd"
)

const (
	minEncode   = 4 << 10    // data shorter than this is never encoded
	sampleSize  = 4 << 10    // of each of the two pieces that are tried first
	firstLink   = 125e6      // bytes/s assumed of a link before it is known: 1 Gbit/s
	firstEncode = 700e6      // bytes/s assumed of the encoder before it is known
	decodeRate  = 900e6      // bytes/s assumed of the peer's decoder
	leastGain   = 1.0 / 8    // of the data must be saved
	scratchSize = 1200 << 10 // holds MaxData encoded by s2, compressible or not
)

var scratchPool = sync.Pool{New: func() any {
	b := make([]byte, scratchSize)
	return &b
}}

// getScratch returns a buffer of scratchSize bytes.
func getScratch() *[]byte  { return scratchPool.Get().(*[]byte) }
func putScratch(b *[]byte) { scratchPool.Put(b) }

// An encoder decides what is worth encoding. Its methods may be called
// concurrently.
type encoder struct {
	mu   sync.Mutex
	link rate // of the connection, in bytes as sent
	cpu  rate // of s2.Encode, in bytes of data
}

// A rate is an average of recent work in which slow work counts for as much
// time as it took: a few writes into an empty socket buffer do not hide that
// the link behind it is slow.
type rate struct{ bytes, seconds float64 }

func (r *rate) add(n int, d time.Duration) {
	const keep = 7.0 / 8
	r.bytes = r.bytes*keep + float64(n)
	r.seconds = r.seconds*keep + d.Seconds()
}

func (r *rate) perSecond(unknown float64) float64 {
	if r.seconds <= 0 {
		return unknown
	}
	return r.bytes / r.seconds
}

// wrote tells that a frame of n bytes took the connection d.
func (e *encoder) wrote(n int, d time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.link.add(n, d)
}

// pays reports whether encoding saves time if it saves the given share of the
// data: the bytes saved must take the link longer than encoding and decoding
// take the processors.
func (e *encoder) pays(gain float64) bool {
	if gain < leastGain {
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return gain/e.link.perSecond(firstLink) > 1/e.cpu.perSecond(firstEncode)+1/decodeRate
}

// encoded is a data part in another encoding than raw.
type encoded struct {
	encoding Encoding
	data     []byte
	scratch  *[]byte
}

func (e encoded) release() { putScratch(e.scratch) }

// encode returns data, raw bytes long in all, in a shorter encoding, or false
// if it is better sent as it is. The caller releases the result.
//
// The data may be memory that another process is writing. Nothing here trusts
// two looks at it to see the same: constant reads each byte once, and s2 gets
// a copy, since it would otherwise repeat, at places nobody wrote, bytes that
// were overwritten while it worked.
func (e *encoder) encode(data [][]byte, raw int) (encoded, bool) {
	out := getScratch()
	if pattern, ok := constant(data); ok {
		return encoded{EncodingFill, append((*out)[:0], pattern[:]...), out}, true
	}
	if src := getScratch(); e.pays(sample(*out, *src, data, raw)) {
		defer putScratch(src)
		start := time.Now()
		n := 0
		for _, d := range data {
			n += memfd.Copy((*src)[n:], d)
		}
		enc := s2.Encode(*out, (*src)[:n])
		e.mu.Lock()
		e.cpu.add(raw, time.Since(start))
		e.mu.Unlock()
		if len(enc) <= raw-int(float64(raw)*leastGain) {
			return encoded{EncodingS2, enc, out}, true
		}
	} else {
		putScratch(src)
	}
	putScratch(out)
	return encoded{}, false
}

// sample returns the share of the data that encoding a part of it saves.
func sample(dst, src []byte, data [][]byte, raw int) float64 {
	tried, left := 0, 0
	for _, at := range [2]int{raw / 8, raw - raw/8 - sampleSize} {
		n := 0
		for _, d := range data {
			if at >= len(d) {
				at -= len(d)
				continue
			}
			n += copy(src[n:sampleSize], d[max(at, 0):])
			at = 0
		}
		tried += n
		left += min(n, len(s2.Encode(dst, src[:n])))
	}
	return 1 - float64(left)/float64(max(tried, 1))
}

// constant reports whether data is 4 bytes repeated, and which.
func constant(data [][]byte) (pattern [4]byte, ok bool) {
	var block [4 << 10]byte
	seen, filled := 0, 0
	for _, d := range data {
		for len(d) > 0 {
			if seen < len(pattern) {
				n := copy(pattern[seen:], d)
				seen, d = seen+n, d[n:]
				continue
			}
			if filled == 0 || filled < len(block) && seen >= 64 {
				// First a few bytes, which nearly always settle it.
				filled = 64
				if seen >= 64 {
					filled = len(block)
				}
				fillPattern(block[:filled], pattern)
			}
			skip := seen % len(pattern)
			n := min(len(d), filled-skip)
			if !bytes.Equal(d[:n], block[skip:skip+n]) {
				return pattern, false
			}
			seen, d = seen+n, d[n:]
		}
	}
	return pattern, seen >= len(pattern)
}

// fillPattern stores pattern, repeated, to all of dst.
func fillPattern(dst []byte, pattern [4]byte) {
	n := copy(dst, pattern[:])
	for n < len(dst) {
		// The source stays within the processor's nearest cache.
		n += copy(dst[n:], dst[:min(n, 16<<10)])
	}
}
