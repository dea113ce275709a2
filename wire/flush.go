// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/binary"
	"fmt"
)

// AnyVersion as the base of a Flush lets it win over whatever others have
// written since (last writer wins).
const AnyVersion = ^uint64(0)

// A Run is bytes [Offset, Offset+Length) of a block.
type Run struct {
	Offset uint32
	Length uint32 // > 0
}

// A Flush is one block's share of a shadow mapping's flush. It is the prefix
// of a frame whose data are the runs' bytes, one after the other. The block is
// changed as a whole or not at all.
type Flush struct {
	Mapping uint64 // the mapping's handle in this session
	Block   uint64 // number of the block in the span
	Base    uint64 // the block's version that the changes were made to, or AnyVersion
	Runs    []Run  // ascending, none empty, none overlapping, all inside 1 MiB
}

// DataLen returns the bytes of data that belong to the runs.
func (f Flush) DataLen() int {
	n := 0
	for _, r := range f.Runs {
		n += int(r.Length)
	}
	return n
}

// AppendFlush appends the prefix of a Flush to dst: {u64 mapping, u64 block,
// u64 base, uvarint count, then per run uvarint gap since the end of the run
// before, uvarint length}. Runs that touch each other go as one. AppendFlush
// panics if f has no runs, or if they overlap, descend, are empty or end beyond
// a block.
func AppendFlush(dst []byte, f Flush) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, f.Mapping)
	dst = binary.LittleEndian.AppendUint64(dst, f.Block)
	dst = binary.LittleEndian.AppendUint64(dst, f.Base)
	dst = binary.AppendUvarint(dst, countJoined(f.Runs))
	end := uint64(0) // of the run before
	for rest := f.Runs; len(rest) > 0; {
		var r Run
		r, rest = nextJoined(rest)
		dst = binary.AppendUvarint(dst, uint64(r.Offset)-end)
		dst = binary.AppendUvarint(dst, uint64(r.Length))
		end = uint64(r.Offset) + uint64(r.Length)
	}
	return dst
}

// countJoined checks the runs and returns how many are left when those that
// touch are joined.
func countJoined(runs []Run) uint64 {
	n, end := uint64(0), uint64(0)
	for i, r := range runs {
		next := uint64(r.Offset) + uint64(r.Length)
		if uint64(r.Offset) < end || r.Length == 0 || next > MaxData {
			panic(fmt.Sprintf("wire: run %d of a flush, [%d,+%d), is not in order", i, r.Offset, r.Length))
		}
		if i == 0 || uint64(r.Offset) > end {
			n++
		}
		end = next
	}
	if n == 0 {
		panic("wire: flush without runs")
	}
	return n
}

// nextJoined returns the first of runs joined with those that touch it, and
// the runs after it.
func nextJoined(runs []Run) (Run, []Run) {
	r, rest := runs[0], runs[1:]
	for len(rest) > 0 && rest[0].Offset == r.Offset+r.Length {
		r.Length += rest[0].Length
		rest = rest[1:]
	}
	return r, rest
}

// ParseFlush reads the prefix of a Flush and checks its runs. The runs are
// appended to into[:0], so that its memory is used again. It fails with
// ErrMalformed, or with ErrTooLarge if a run ends beyond 1 MiB.
func ParseFlush(prefix []byte, into []Run) (Flush, error) {
	if len(prefix) < 3*8 {
		return Flush{}, fmt.Errorf("%w: flush of %d bytes", ErrMalformed, len(prefix))
	}
	f := Flush{
		Mapping: binary.LittleEndian.Uint64(prefix),
		Block:   binary.LittleEndian.Uint64(prefix[8:]),
		Base:    binary.LittleEndian.Uint64(prefix[16:]),
		Runs:    into[:0],
	}
	b := prefix[3*8:]
	count, b, err := uvarint(b)
	if err != nil {
		return Flush{}, err
	}
	// Each run takes two bytes at least: what the count promises must be here
	// before memory is taken for it.
	if count == 0 || count > uint64(len(b)/2) {
		return Flush{}, fmt.Errorf("%w: flush of %d runs in %d bytes", ErrMalformed, count, len(b))
	}
	if uint64(cap(f.Runs)) < count {
		f.Runs = make([]Run, 0, count)
	}
	end := uint64(0)
	for i := range count {
		var gap, n uint64
		if gap, b, err = uvarint(b); err != nil {
			return Flush{}, err
		}
		if n, b, err = uvarint(b); err != nil {
			return Flush{}, err
		}
		if n == 0 || gap == 0 && i > 0 {
			return Flush{}, fmt.Errorf("%w: run %d of a flush is empty or touches the one before", ErrMalformed, i)
		}
		// end is at most MaxData, so no subtraction wraps.
		if gap > MaxData-end || n > MaxData-end-gap {
			return Flush{}, fmt.Errorf("%w: run %d of a flush ends beyond the block", ErrTooLarge, i)
		}
		f.Runs = append(f.Runs, Run{Offset: uint32(end + gap), Length: uint32(n)})
		end += gap + n
	}
	if len(b) != 0 {
		return Flush{}, fmt.Errorf("%w: %d bytes after a flush's runs", ErrMalformed, len(b))
	}
	return f, nil
}

// uvarint takes a number from b's beginning and returns what follows it. Only
// the shortest form of a number is accepted.
func uvarint(b []byte) (uint64, []byte, error) {
	v, n := binary.Uvarint(b)
	if n <= 0 || n > 1 && b[n-1] == 0 {
		return 0, nil, fmt.Errorf("%w: bad number in a flush", ErrMalformed)
	}
	return v, b[n:], nil
}

// FlushReply is the whole payload of a reply to a Flush: 24 bytes {u32
// VkResult, u64 block version, u64 span version, u32 tier mask}.
type FlushReply struct {
	Result  int32  // VkResult; 0 is VK_SUCCESS
	Block   uint64 // the block's version now
	Span    uint64 // the span's version now
	Holders uint32 // the tiers that hold it: bit n is the tier of number n
}

const flushReplySize = 4 + 8 + 8 + 4

// Append appends the reply's bytes to dst.
func (r FlushReply) Append(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, uint32(r.Result))
	dst = binary.LittleEndian.AppendUint64(dst, r.Block)
	dst = binary.LittleEndian.AppendUint64(dst, r.Span)
	return binary.LittleEndian.AppendUint32(dst, r.Holders)
}

// ParseFlushReply reads the payload of a reply to a Flush. It fails with
// ErrMalformed.
func ParseFlushReply(prefix []byte) (FlushReply, error) {
	if len(prefix) != flushReplySize {
		return FlushReply{}, fmt.Errorf("%w: reply to a flush of %d bytes, want %d", ErrMalformed, len(prefix), flushReplySize)
	}
	return FlushReply{
		Result:  int32(binary.LittleEndian.Uint32(prefix)),
		Block:   binary.LittleEndian.Uint64(prefix[4:]),
		Span:    binary.LittleEndian.Uint64(prefix[12:]),
		Holders: binary.LittleEndian.Uint32(prefix[20:]),
	}, nil
}
