// SPDX-License-Identifier: Apache-2.0

package surface

import (
	"context"
	"os"

	"github.com/memspan/memspan/internal/memlimit"

	"encoding/base64"
	"encoding/binary"
	"hash/crc32"
)

// TextOf makes a ticket's text of any bytes.
func TextOf(body []byte) string {
	body = binary.LittleEndian.AppendUint32(body[:len(body):len(body)], crc32.Checksum(body, castagnoli))
	return ticketPrefix + base64.RawURLEncoding.EncodeToString(body)
}

// CopyFileBy is CopyFile that reads by readAt.
func (e *Exposure) CopyFileBy(ctx context.Context, file *os.File, readAt func([]byte, int64) (int, error)) error {
	return e.copyFile(ctx, file, readAt)
}

// SetMemory has the store believe that the system has this memory.
func (s *Store) SetMemory(m memlimit.Memory) {
	s.room.memory = func() memlimit.Memory { return m }
}

// Space returns the bytes of address space that surfaces take.
func (s *Store) Space() int64 {
	s.room.mu.Lock()
	defer s.room.mu.Unlock()
	return s.room.space
}

// Used returns the bytes of room that surfaces take, and how many of them have no pages.
func (s *Store) Used() (used, pending int64) {
	s.room.mu.Lock()
	defer s.room.mu.Unlock()
	return s.room.used, s.room.pending
}
