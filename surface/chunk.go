// SPDX-License-Identifier: Apache-2.0

package surface

// A Chunk is stored bytes with their digest, which was computed from them: who gathers
// chunks and who keeps them both verify, and hash once.
type Chunk struct {
	stored []byte
	digest Digest
}

// NewChunk hashes stored, which is not to be changed while the chunk is in use.
func NewChunk(stored []byte) Chunk { return Chunk{stored, Sum(stored)} }

// Stored returns the bytes, which are not to be changed.
func (c Chunk) Stored() []byte { return c.stored }

// Digest returns the digest of the stored bytes.
func (c Chunk) Digest() Digest { return c.digest }
