// SPDX-License-Identifier: Apache-2.0

package sealed

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/memspan/memspan/internal/blocks"
	"github.com/memspan/memspan/internal/memfd"
)

// KeySize is a key's length in bytes.
const KeySize = 32

const (
	tagSize   = 16
	nonceSize = 12
	slotSize  = blocks.Size + tagSize
	tableAt   = 1<<32 - 1 // the table's index, which is no block's
)

// ErrCorrupt says that what was found is not what the other side left.
var ErrCorrupt = errors.New("sealed: somebody else has changed it, or the key is another")

// Size returns how many bytes of shared memory a buffer of size bytes takes: the
// table, of a u64 for each block and its tag, and then each block and its tag.
func Size(size int64) int64 {
	n := int64(blocks.Count(size))
	return 8*n + tagSize + size + n*tagSize
}

// A Box is a buffer in shared memory, of whose blocks the turn is known in which
// they were sealed. Its methods must not be called concurrently, but Seal and Open
// for different blocks.
type Box struct {
	gcm    cipher.AEAD
	shared []byte
	label  [12]byte // the buffer's id and size: what is sealed is no other's
	count  int

	turns   []uint64  // 0: the block is zeros, and was never sealed
	scratch sync.Pool // of *[]byte, with room for a slot
}

// New returns the box of the buffer with that id, of size bytes, in shared, which
// has Size(size). It holds zeros, until it is opened.
func New(shared []byte, key []byte, id uint32, size int64) (*Box, error) {
	if len(key) != KeySize {
		return nil, fmt.Errorf("sealed: a key of %d bytes, want %d", len(key), KeySize)
	}
	if size <= 0 || int64(len(shared)) != Size(size) {
		return nil, fmt.Errorf("sealed: %d bytes of memory for a buffer of %d, want %d", len(shared), size, Size(size))
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	b := &Box{gcm: gcm, shared: shared, count: blocks.Count(size)}
	b.turns = make([]uint64, b.count)
	binary.BigEndian.PutUint32(b.label[:], id)
	binary.BigEndian.PutUint64(b.label[4:], uint64(size))
	return b, nil
}

func nonce(turn uint64, index uint32) []byte {
	n := make([]byte, 0, nonceSize)
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(n, turn), index)
}

func (b *Box) tableSlot() []byte { return b.shared[:8*b.count+tagSize] }

// slot returns where block i is, of n bytes.
func (b *Box) slot(i, n int) []byte {
	at := 8*b.count + tagSize + i*slotSize
	return b.shared[at : at+n+tagSize]
}

// Fresh reports whether block i was never sealed: it is zeros.
func (b *Box) Fresh(i int) bool { return b.turns[i] == 0 }

// Seal puts block i into the box. It must not be done twice in a turn. The error
// is that of memory that went away.
func (b *Box) Seal(i int, block []byte, turn uint64) error {
	if err := b.seal(b.slot(i, len(block)), block, turn, uint32(i)); err != nil {
		return err
	}
	b.turns[i] = turn
	return nil
}

// SealTable ends a turn. It must not be done twice in a turn.
func (b *Box) SealTable(turn uint64) error {
	table := make([]byte, 0, 8*b.count)
	for _, t := range b.turns {
		table = binary.BigEndian.AppendUint64(table, t)
	}
	return b.seal(b.tableSlot(), table, turn, tableAt)
}

func (b *Box) seal(slot, plain []byte, turn uint64, index uint32) error {
	// Not in the shared memory itself: the tag is taken of what was encrypted,
	// which somebody may have changed by then, and would have signed.
	room := b.room()
	defer b.scratch.Put(room)
	*room = b.gcm.Seal((*room)[:0], nonce(turn, index), plain, b.label[:])
	return memfd.Guard(func() { memfd.Copy(slot, *room) })
}

// open opens what is in a slot, and has use take it.
func (b *Box) open(slot []byte, turn uint64, index uint32, use func(plain []byte)) error {
	room := b.room()
	defer b.scratch.Put(room)
	// A copy: what is decrypted has to be what was verified.
	*room = slices.Grow((*room)[:0], len(slot))[:len(slot)]
	if err := memfd.Guard(func() { memfd.Copy(*room, slot) }); err != nil {
		return err
	}
	plain, err := b.gcm.Open((*room)[:0], nonce(turn, index), *room, b.label[:])
	if err != nil {
		return ErrCorrupt
	}
	use(plain)
	return nil
}

// room returns memory for a slot, which goes back to scratch.
func (b *Box) room() *[]byte {
	if room, ok := b.scratch.Get().(*[]byte); ok {
		return room
	}
	return new([]byte)
}

// OpenTable takes over the table that was sealed in turn. The blocks of turns that
// this box has not seen are to be opened: it returns their indexes. It fails with
// ErrCorrupt if the table is another one, or has turns that cannot be.
func (b *Box) OpenTable(turn uint64) (news []int, err error) {
	var table []byte
	if err := b.open(b.tableSlot(), turn, tableAt, func(plain []byte) { table = bytes.Clone(plain) }); err != nil {
		return nil, fmt.Errorf("the table of turn %d: %w", turn, err)
	}
	for i := range b.turns {
		t := binary.BigEndian.Uint64(table[8*i:])
		if t == b.turns[i] {
			continue
		}
		if t < b.turns[i] || t > turn {
			return nil, fmt.Errorf("block %d of turn %d, which was of turn %d: %w", i, t, b.turns[i], ErrCorrupt)
		}
		news = append(news, i)
		b.turns[i] = t
	}
	return news, nil
}

// Open copies block i, as the table has it, to block. It fails with ErrCorrupt if
// that is not what is there, and leaves block as it is.
func (b *Box) Open(i int, block []byte) error {
	err := b.open(b.slot(i, len(block)), b.turns[i], uint32(i), func(plain []byte) { copy(block, plain) })
	if err != nil {
		return fmt.Errorf("block %d of turn %d: %w", i, b.turns[i], err)
	}
	return nil
}
