// SPDX-License-Identifier: Apache-2.0

package surface

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"log/slog"
)

// A Key seals the chunks of one surface (AES-256-GCM). However it is formatted
// it does not show, unless as an unexported field, which package fmt reads
// behind its back.
type Key [32]byte

// NewKey returns a random key. A key is for one surface: two with one key
// would repeat nonces.
func NewKey() Key {
	var k Key
	rand.Read(k[:]) // never fails
	return k
}

// Format writes nothing of the key.
func (Key) Format(f fmt.State, _ rune) { f.Write([]byte("[key]")) }

// LogValue shows nothing of the key.
func (Key) LogValue() slog.Value { return slog.StringValue("[key]") }

// A Sealer seals and opens the chunks of one surface. It may be used concurrently.
type Sealer struct {
	aead cipher.AEAD
	id   ID
}

// NewSealer returns the sealer of surface id with key.
func NewSealer(key Key, id ID) *Sealer {
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic(err) // the length is right
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err) // the block size is right
	}
	return &Sealer{aead, id}
}

// Seal appends chunk i, whose content is plain, sealed: Overhead bytes more than
// plain has. A chunk is sealed once, in all the life of its key.
func (s *Sealer) Seal(dst []byte, i int64, plain []byte) []byte {
	nonce := s.nonce(i)
	return s.aead.Seal(dst, nonce[:], plain, s.id[:])
}

// Open appends the content of chunk i, which is stored as sealed. It fails with
// ErrCorrupt if that is not what Seal returned for this surface, key and chunk.
// dst may be sealed[:0].
func (s *Sealer) Open(dst []byte, i int64, sealed []byte) ([]byte, error) {
	nonce := s.nonce(i)
	out, err := s.aead.Open(dst, nonce[:], sealed, s.id[:])
	if err != nil {
		return dst, fmt.Errorf("open chunk %d of surface %v: %w", i, s.id, ErrCorrupt)
	}
	return out, nil
}

func (s *Sealer) nonce(i int64) (nonce [12]byte) {
	binary.LittleEndian.PutUint64(nonce[:], uint64(i))
	return nonce
}
