// SPDX-License-Identifier: Apache-2.0

package surface

import (
	"sync"

	"github.com/zeebo/blake3"
)

// zeros is what holes read as.
type zeros [64 << 10]byte

// Zeros knows the digests of chunks of zeros, so that a puller can leave holes
// without asking for them. The zero value is ready; it may be used concurrently.
type Zeros struct {
	mu      sync.Mutex
	digests map[int64]Digest // by length: a surface has two
}

// Digest returns the digest of n bytes of zeros, n at most MaxChunk + Overhead.
// It is computed once for each n.
func (z *Zeros) Digest(n int64) Digest {
	z.mu.Lock()
	defer z.mu.Unlock()
	d, ok := z.digests[n]
	if !ok {
		h, zero := blake3.New(), new(zeros)
		for left := n; left > 0; left -= int64(len(zero)) {
			h.Write(zero[:min(left, int64(len(zero)))])
		}
		h.Sum(d[:0])
		if z.digests == nil {
			z.digests = make(map[int64]Digest)
		}
		z.digests[n] = d
	}
	return d
}

// Zero reports whether chunk i of m, which has digests, is known to be all
// zeros. Sealed chunks never are.
func (z *Zeros) Zero(m *Manifest, i int64) bool {
	if m.Encrypted {
		return false
	}
	_, n := m.StoredRange(i)
	return m.Digests[i] == z.Digest(n)
}
