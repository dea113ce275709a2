// SPDX-License-Identifier: Apache-2.0

package surface

import (
	"sync"

	"github.com/zeebo/blake3"
)

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
		h := blake3.New()
		hashZeros(h, n)
		h.Sum(d[:0])
		if z.digests == nil || len(z.digests) == maxZeros {
			z.digests = make(map[int64]Digest)
		}
		z.digests[n] = d
	}
	return d
}

// maxZeros bounds what a long-lived Zeros keeps.
const maxZeros = 1024

// Zero reports whether chunk i of m, which has digests, is known to be all
// zeros. Sealed chunks never are.
func (z *Zeros) Zero(m *Manifest, i int64) bool {
	if m.Encrypted {
		return false
	}
	_, n := m.StoredRange(i)
	return m.Digests[i] == z.Digest(n)
}

// hashZeros writes n zeros.
func hashZeros(h *blake3.Hasher, n int64) {
	if n <= 0 {
		return
	}
	zero := make([]byte, min(n, 64<<10))
	for ; n > 0; n -= int64(len(zero)) {
		h.Write(zero[:min(n, int64(len(zero)))])
	}
}
