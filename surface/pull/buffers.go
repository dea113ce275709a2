// SPDX-License-Identifier: Apache-2.0

package pull

import (
	"slices"
	"sync"
)

// buffers keeps the memory that chunks are received in: as much as was under way
// at a time. Reused it stays in the processor's cache.
type buffers struct {
	mu   sync.Mutex
	free [][]byte
}

func (b *buffers) get(n int) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	if last := len(b.free) - 1; last >= 0 {
		buf := b.free[last]
		b.free[last], b.free = nil, b.free[:last]
		if cap(buf) >= n {
			return buf[:n]
		}
	}
	return make([]byte, n)
}

func (b *buffers) put(buf []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.free = append(b.free, buf)
}

// cacheSize bounds the content that is kept for reads of parts of chunks, but
// for one chunk.
const cacheSize = 8 << 20

// cache keeps chunks of which a part was read last.
type cache struct {
	mu     sync.Mutex
	chunks []cached // the last used behind
	bytes  int
}

type cached struct {
	i    int64
	data []byte
}

// get returns the content of chunk i, nil if it is not there. It does not change.
func (c *cache) get(i int64) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := slices.IndexFunc(c.chunks, func(e cached) bool { return e.i == i })
	if at < 0 {
		return nil
	}
	e := c.chunks[at]
	c.chunks = append(slices.Delete(c.chunks, at, at+1), e)
	return e.data
}

// put keeps data, which must not change any more.
func (c *cache) put(i int64, data []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if slices.ContainsFunc(c.chunks, func(e cached) bool { return e.i == i }) {
		return
	}
	c.chunks = append(c.chunks, cached{i, data})
	c.bytes += len(data)
	for c.bytes > cacheSize && len(c.chunks) > 1 {
		c.bytes -= len(c.chunks[0].data)
		c.chunks = slices.Delete(c.chunks, 0, 1)
	}
}
