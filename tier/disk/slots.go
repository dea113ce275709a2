// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"container/heap"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/memspan/memspan/internal/crc32c"
	"github.com/memspan/memspan/tier"
)

const (
	pageSize   = 4 << 10 // what one checksum is for
	headerSize = 4 << 10
	stride     = headerSize + tier.BlockSize
	blockPages = tier.BlockSize / pageSize
	maxSlots   = 1<<32 - 2
)

// slotOffset returns where a slot begins in the file. Slots are numbered from 1.
func slotOffset(slot uint32) int64 { return int64(slot-1) * stride }

// Of a slot's header; docs/disk-format.md has the layout.
const (
	slotMagic     = "memspanB"
	slotVersion   = 1
	flagEphemeral = 1

	headerSumAt  = 12 // of the header's own checksum
	headerRecord = 96
	headerSums   = headerSize - 4*blockPages
)

// A header says what a slot holds.
type header struct {
	store     ID
	block     uint32
	ephemeral bool
	version   uint64
	stamp     uint64 // no two headers of a store have the same
	length    uint32 // of the data
	rec       Record // of the span when the block was committed
	sums      []uint32
}

// encode fills p, of headerSize bytes, and returns the header's checksum, which
// stands for all that the slot holds.
func (h *header) encode(p []byte) uint32 {
	clear(p)
	copy(p, slotMagic)
	binary.LittleEndian.PutUint32(p[8:], slotVersion)
	copy(p[16:], h.store[:])
	binary.LittleEndian.PutUint32(p[32:], h.block)
	if h.ephemeral {
		p[36] = flagEphemeral
	}
	binary.LittleEndian.PutUint64(p[40:], h.version)
	binary.LittleEndian.PutUint64(p[48:], h.stamp)
	binary.LittleEndian.PutUint32(p[56:], h.length)
	appendRecord(p[headerRecord:headerRecord], &h.rec)
	for i, sum := range h.sums {
		binary.LittleEndian.PutUint32(p[headerSums+4*i:], sum)
	}
	sum := crc32c.Checksum(p)
	binary.LittleEndian.PutUint32(p[headerSumAt:], sum)
	return sum
}

// headerSum returns the checksum that a header ought to have, and the one it
// has. P is as it was afterwards.
func headerSum(p []byte) (computed, stored uint32) {
	stored = binary.LittleEndian.Uint32(p[headerSumAt:])
	computed = crc32c.Checksum(p[:headerSumAt])
	computed = crc32c.Update(computed, make([]byte, 4))
	return crc32c.Update(computed, p[headerSumAt+4:headerSize]), stored
}

// decodeHeader decodes a slot's header and verifies its checksum.
func decodeHeader(p []byte) (h header, sum uint32, err error) {
	if len(p) < headerSize {
		return h, 0, errShort
	}
	p = p[:headerSize]
	if string(p[:8]) != slotMagic {
		return h, 0, fmt.Errorf("begins with %q", p[:8])
	}
	computed, stored := headerSum(p)
	if computed != stored {
		return h, 0, fmt.Errorf("checksum %#x, its bytes have %#x", stored, computed)
	}
	if v := binary.LittleEndian.Uint32(p[8:]); v != slotVersion {
		return h, 0, fmt.Errorf("version %d: %w", v, ErrFormat)
	}
	d := decoder{b: p, at: 16}
	h.store, h.block = d.id(), d.u32()
	h.ephemeral = d.u32()&flagEphemeral != 0
	h.version, h.stamp, h.length = d.u64(), d.u64(), d.u32()
	if h.length > tier.BlockSize {
		return h, 0, fmt.Errorf("length %d is more than a block", h.length)
	}
	d.at = headerRecord
	h.rec = d.record()
	if d.fail != nil {
		return h, 0, d.fail
	}
	h.sums = make([]uint32, (h.length+pageSize-1)/pageSize)
	for i := range h.sums {
		h.sums[i] = sumOf(p, i)
	}
	return h, stored, nil
}

// sumOf returns the checksum of a page of data as the header p has it.
func sumOf(p []byte, page int) uint32 { return binary.LittleEndian.Uint32(p[headerSums+4*page:]) }

// pageSums appends the checksums of the pages of data.
func pageSums(sums []uint32, data []byte) []uint32 {
	for len(data) > 0 {
		n := min(len(data), pageSize)
		sums = append(sums, crc32c.Checksum(data[:n]))
		data = data[n:]
	}
	return sums
}

// warmSlots free slots keep their room in the file system: taking it anew costs
// more than writing into it.
const warmSlots = 256

// A slotFile is the file of slots and which of them are free.
type slotFile struct {
	f file

	mu    sync.Mutex
	fresh uint32 // the first slot that was never used
	warm  lowest // free, with room
	cold  lowest // free, without

	warmComing int // slots about to become warm
}

func (s *slotFile) take() (uint32, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	// The lowest first: blocks that are written one after the other are read so.
	if len(s.warm) > 0 {
		return heap.Pop(&s.warm).(uint32), nil
	}
	if len(s.cold) > 0 {
		return heap.Pop(&s.cold).(uint32), nil
	}
	if s.fresh > maxSlots {
		return 0, fmt.Errorf("tier/disk: %d slots: %w", s.fresh-1, tier.ErrBudget)
	}
	s.fresh++
	return s.fresh - 1, nil
}

// give takes back slots that nothing durable names any longer. What they held
// is not to be found there again.
func (s *slotFile) give(slots ...uint32) {
	s.mu.Lock()
	keep := slots[:min(len(slots), warmSlots-len(s.warm)-s.warmComing)]
	s.warmComing += len(keep)
	s.mu.Unlock()
	for _, slot := range keep {
		_, _ = s.f.Writev([][]byte{make([]byte, headerSize)}, slotOffset(slot))
	}
	rest := slices.Sorted(slices.Values(slots[len(keep):]))
	for i := 0; i < len(rest); {
		n := 1
		for i+n < len(rest) && rest[i+n] == rest[i]+uint32(n) {
			n++
		}
		// What cannot be punched costs room, not correctness.
		_ = s.f.Punch(slotOffset(rest[i]), int64(n)*stride)
		i += n
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, slot := range keep {
		heap.Push(&s.warm, slot)
	}
	s.warmComing -= len(keep)
	for _, slot := range rest {
		heap.Push(&s.cold, slot)
	}
}

// found tells which slots are in use, ascending, when nothing was taken yet. It
// gives the room of all others back.
func (s *slotFile) found(used []uint32) error {
	s.fresh = 1
	for _, slot := range used {
		if slot > s.fresh {
			err := s.f.Punch(slotOffset(s.fresh), int64(slot-s.fresh)*stride)
			if err != nil && !errors.Is(err, errors.ErrUnsupported) {
				return err
			}
		}
		for ; s.fresh < slot; s.fresh++ {
			s.cold = append(s.cold, s.fresh)
		}
		s.fresh = slot + 1
	}
	size, err := s.f.Size()
	if err != nil {
		return err
	}
	if end := slotOffset(s.fresh); size > end {
		return s.f.Truncate(end)
	}
	return nil
}

// trim gives the end of the file back that only free slots are in.
func (s *slotFile) trim() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	free := slices.Concat(s.warm, s.cold)
	slices.Sort(free)
	end := s.fresh
	for n := len(free); n > 0 && free[n-1] == end-1; n-- {
		end--
	}
	if end == s.fresh {
		return nil
	}
	// Whoever takes a slot waits: it must not be cut off under him.
	if err := s.f.Truncate(slotOffset(end)); err != nil {
		return full(err)
	}
	s.fresh = end
	beyond := func(slot uint32) bool { return slot >= end }
	s.warm = slices.DeleteFunc(s.warm, beyond)
	s.cold = slices.DeleteFunc(s.cold, beyond)
	heap.Init(&s.warm)
	heap.Init(&s.cold)
	return nil
}

// lowest is a heap of slots, the lowest on top: the file's tail can go then.
type lowest []uint32

func (l lowest) Len() int           { return len(l) }
func (l lowest) Less(i, j int) bool { return l[i] < l[j] }
func (l lowest) Swap(i, j int)      { l[i], l[j] = l[j], l[i] }
func (l *lowest) Push(x any)        { *l = append(*l, x.(uint32)) }
func (l *lowest) Pop() any {
	last := len(*l) - 1
	x := (*l)[last]
	*l = (*l)[:last]
	return x
}
