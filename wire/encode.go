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
	leastGain   = 1.0 / 8    // of the data must be saved
	minMeasured = 16 << 10   // writes shorter than this say nothing about the link
	scratchSize = 1200 << 10 // holds MaxData encoded by s2, compressible or not

	firstLink   = 125e6 // bytes/s assumed of a link before it is known: 1 Gbit/s
	firstEncode = 700e6 // bytes/s assumed of the encoder before it is known
	decodeRate  = 900e6 // bytes/s assumed of the peer's decoder

	// On loopback both ends share the processors, and a peer that is slow looks
	// like a slow link. What is slower than this is a tunnel.
	slowLoopback = 200e6 // bytes/s
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
	loopback bool // the peer is on this machine, or a tunnel to it

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
	if n < minMeasured {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.link.add(n, d)
}

// encoded tells that encoding n bytes took d.
func (e *encoder) encoded(n int, d time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.cpu.add(n, d)
}

// pays reports whether encoding is worth it if it saves the given share of the
// data. Frames follow each other through this side's processor, the link and
// the peer's processor: the link must save more time than encoding takes, and
// the peer must not become slower than the link was.
func (e *encoder) pays(gain float64) bool {
	if gain < leastGain {
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	link := e.link.perSecond(firstLink)
	if e.loopback && (e.link.seconds == 0 || link > slowLoopback) {
		return false
	}
	return gain/link > 1/e.cpu.perSecond(firstEncode) && link < decodeRate
}

// encoded is a data part in another encoding than raw. Its memory is scratch,
// which goes back to the pool when it has been sent.
type encoded struct {
	encoding Encoding
	data     []byte
	scratch  *[]byte
}

// encode returns data, raw bytes long in all, in a shorter encoding, or false
// if it is better sent as it is.
//
// The data may be memory that another process is writing. Nothing here trusts
// two looks at it to see the same: constant reads each byte once, and s2 gets
// a copy, since it would otherwise repeat, at places nobody wrote, bytes that
// were overwritten while it worked.
func (e *encoder) encode(data [][]byte, raw int) (encoded, bool) {
	dst := getScratch()
	if pattern, ok := constant(data); ok {
		return encoded{EncodingFill, append((*dst)[:0], pattern[:]...), dst}, true
	}
	src := getScratch()
	defer putScratch(src)
	if e.pays(e.sample(*dst, *src, data, raw)) {
		start := time.Now()
		n := 0
		for _, d := range data {
			n += memfd.Copy((*src)[n:], d)
		}
		out := s2.Encode(*dst, (*src)[:n])
		e.encoded(n, time.Since(start))
		if float64(len(out)) <= float64(raw)*(1-leastGain) {
			return encoded{EncodingS2, out, dst}, true
		}
	}
	putScratch(dst)
	return encoded{}, false
}

// promising reports whether data may be worth encoding, at the cost of looking
// at a little of it.
func (e *encoder) promising(data []byte) bool {
	if len(data) < minEncode {
		return false
	}
	one := [1][]byte{data}
	if _, ok := constant(one[:]); ok {
		return true
	}
	dst, src := getScratch(), getScratch()
	defer putScratch(dst)
	defer putScratch(src)
	return e.pays(e.sample(*dst, *src, one[:], len(data)))
}

// sample encodes two pieces of the data and returns what share of them that
// saves.
func (e *encoder) sample(dst, src []byte, data [][]byte, raw int) float64 {
	start := time.Now()
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
	e.encoded(tried, time.Since(start))
	return 1 - float64(left)/float64(tried)
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
