// SPDX-License-Identifier: Apache-2.0

package blocks

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
)

// Size is a block's length in bytes; the last of a buffer may be shorter. Larger
// ones carry more that did not change, smaller ones cost more each.
const Size = 64 << 10

// Count returns how many blocks size bytes are.
func Count(size int64) int { return int((size + Size - 1) / Size) }

// Of returns block i of mem.
func Of(mem []byte, i int) []byte {
	off := i * Size
	end := min(off+Size, len(mem))
	return mem[off:end:end]
}

type sum [16]byte

// Sums remember what each block of a buffer was, in sixteen bytes each. They are
// GMAC under a key of their own: for bytes that were chosen without knowing it,
// two blocks have one sum by a chance of 2^-115, and it takes about as long as
// reading them. They must not leave the process. Their methods must not be
// called concurrently, but Update for different blocks.
type Sums struct {
	gcm  cipher.AEAD
	size int64
	all  []sum
}

// NewSums returns the sums of size zeros.
func NewSums(size int64) *Sums {
	key := make([]byte, 16)
	rand.Read(key) // it never fails
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // the key has a key's length
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		panic(err) // AES has GCM's block size
	}
	s := &Sums{gcm: gcm, size: size, all: make([]sum, Count(size))}
	s.Zero()
	return s
}

// Zero makes them the sums of zeros.
func (s *Sums) Zero() {
	zeros := make([]byte, min(Size, s.size))
	whole := s.of(zeros)
	for i := range s.all {
		s.all[i] = whole
	}
	last := len(s.all) - 1
	s.all[last] = s.of(zeros[:s.size-int64(last)*Size])
}

// Update makes block i's sum that of its bytes now, and reports whether they
// changed.
func (s *Sums) Update(i int, block []byte) bool {
	now := s.of(block)
	if now == s.all[i] {
		return false
	}
	s.all[i] = now
	return true
}

func (s *Sums) of(block []byte) sum {
	var made struct { // in one piece, as both go to the heap
		nonce [12]byte // always the same: nobody sees what it makes
		sum   sum
	}
	s.gcm.Seal(made.sum[:0], made.nonce[:], nil, block)
	return made.sum
}
