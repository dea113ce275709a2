// SPDX-License-Identifier: Apache-2.0

package server

import (
	"errors"
	"fmt"

	"github.com/memspan/memspan/surface"
	"github.com/memspan/memspan/wire"
)

// A decrypter reads the content of an encrypted surface, for a session of this user that has
// the key and cannot decrypt. The key is here alone, and goes with the handle: who gathers the
// surface, or serves it on, has none. It belongs to who carries out the session's data frames.
type decrypter struct {
	opening *surface.Opening
	sealer  *surface.Sealer

	// The chunk that was read last, unless it was read to its end: a chunk is opened whole,
	// read in pieces, and of a read-once surface given out once.
	at    int64
	chunk []byte
}

// read calls use with bytes [off, off+n) of the content, n at least 1 and at most what one
// frame carries. It fails as ReadStored does, with an error that matches wire.Corrupt if the key is
// another surface's, and as use does.
func (u *decrypter) read(off, n int64, use func(content []byte) error) error {
	m := u.opening.Header()
	if off < 0 || n <= 0 || off > surface.MaxSize-n {
		return fmt.Errorf("%w: [%d, +%d)", surface.ErrRange, off, n)
	}
	content := make([]byte, 0, n)
	for at := off; at < off+n; at = off + int64(len(content)) {
		i := at / m.Chunk
		if err := u.open(&m, i); err != nil {
			return err
		}
		from := at - i*m.Chunk
		if from >= int64(len(u.chunk)) {
			return fmt.Errorf("%w: [%d, +%d) of %d bytes", surface.ErrRange, off, n, m.Size)
		}
		part := u.chunk[from:min(int64(len(u.chunk)), from+off+n-at)]
		content = append(content, part...)
		if from+int64(len(part)) == int64(len(u.chunk)) {
			u.chunk = nil
		}
	}
	return use(content)
}

// open makes chunk i the one at hand.
func (u *decrypter) open(m *surface.Manifest, i int64) error {
	if u.chunk != nil && u.at == i {
		return nil
	}
	off, n := m.StoredRange(i)
	return u.opening.ReadStored(off, n, func(sealed []byte) error {
		chunk, err := u.sealer.Open(nil, i, sealed)
		if errors.Is(err, surface.ErrCorrupt) {
			// What is stored was verified: it is the key.
			err = &wire.Error{Code: wire.Corrupt, Op: "read", Message: fmt.Sprintf("chunk %d of surface %v does not open: the ticket's key is another surface's", i, m.ID)}
		}
		u.at, u.chunk = i, chunk
		return err
	})
}
