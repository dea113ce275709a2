// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/memspan/memspan/coherency"
	"github.com/memspan/memspan/internal/crc32c"
	"github.com/memspan/memspan/tier"
)

// ID is a span's name for ever.
type ID = [16]byte

// A Run is bytes [Offset, Offset+Length) of a block.
type Run struct{ Offset, Length uint32 }

// A Record is what is kept of a durable span beside its blocks.
type Record struct {
	ID        ID
	Name      string // of at most 1024 bytes
	Size      int64  // in bytes; never changes
	Tier      coherency.Tier
	Home      coherency.Tier
	Policy    coherency.WritePolicy
	Placement tier.Placement
	Created   time.Time // to the nanosecond; without a zone
	Version   uint64    // the span's commits
	Published bool      // recovery drops a span that is not
}

const (
	maxName = 1024
	maxSize = 1 << 50
)

func (r *Record) check() error {
	if r.Size <= 0 || r.Size > maxSize {
		return fmt.Errorf("size %d is not within 1 and %d", r.Size, int64(maxSize))
	}
	if len(r.Name) > maxName {
		return fmt.Errorf("name of %d bytes, the limit is %d", len(r.Name), maxName)
	}
	return nil
}

// label is how messages name the span.
func (r *Record) label() string {
	if r.Name != "" {
		return r.Name
	}
	return hex.EncodeToString(r.ID[:])
}

// An opKind is what an operation of the log does.
type opKind uint8

const (
	opSet     opKind = 1 + iota // the span's record
	opDelete                    // the span is gone
	opMark                      // the block has a version that is not here
	opPut                       // the block's bytes are in a slot
	opPatch                     // bytes of the block are replaced by those here
	opVersion                   // the span's version
	opEpoch                     // the epoch
	opFold                      // a slot takes the place of another and of patches
	opCarry                     // the bytes here take the place of older patches
	opEnd                       // the log goes on in the next file
	opCopy                      // the record of a span, for fsck only: its index may be lost
	opLast    = opCopy
)

// An op is one operation of a log record. Which fields count depends on kind.
type op struct {
	kind    opKind
	rec     Record // set, copy
	id      ID
	block   uint32
	version uint64 // or the epoch, or the next log's number
	slot    uint32
	sum     uint32 // of the slot's header
	stamp   uint64 // of the slot's header
	upto    uint64 // fold, carry: the patches of records up to this one are replaced
	from    uint32 // fold: the slot that is replaced, 0 if none
	fromSum uint32
	runs    []Run
	data    []byte // the runs' bytes, one after the other
	dataOff int64  // of data, in the record's payload

	space  *spanState // of the op's span, while it is being committed
	staged *Staged
}

func appendRecord(b []byte, r *Record) []byte {
	b = append(b, r.ID[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(r.Size))
	created := int64(math.MinInt64) // which no other time is
	if !r.Created.IsZero() {
		created = r.Created.UnixNano()
	}
	b = binary.LittleEndian.AppendUint64(b, uint64(created))
	b = binary.LittleEndian.AppendUint64(b, r.Version)
	published := byte(0)
	if r.Published {
		published = 1
	}
	b = append(b, byte(r.Tier), byte(r.Home), byte(r.Policy), byte(r.Placement), published, 0)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(r.Name)))
	return append(b, r.Name...)
}

// append appends the operation's encoding to a payload.
func (o *op) append(b []byte) []byte {
	b = append(b, byte(o.kind))
	if o.kind == opSet || o.kind == opCopy {
		return appendRecord(b, &o.rec)
	}
	if o.kind != opEpoch && o.kind != opEnd {
		b = append(b, o.id[:]...)
	}
	switch o.kind {
	case opMark, opPut, opPatch, opFold, opCarry:
		b = binary.LittleEndian.AppendUint32(b, o.block)
	}
	if o.kind != opDelete {
		b = binary.LittleEndian.AppendUint64(b, o.version)
	}
	switch o.kind {
	case opPut, opFold:
		b = binary.LittleEndian.AppendUint32(b, o.slot)
		b = binary.LittleEndian.AppendUint32(b, o.sum)
		b = binary.LittleEndian.AppendUint64(b, o.stamp)
	}
	switch o.kind {
	case opFold:
		b = binary.LittleEndian.AppendUint32(b, o.from)
		b = binary.LittleEndian.AppendUint32(b, o.fromSum)
		b = binary.LittleEndian.AppendUint64(b, o.upto)
	case opCarry:
		b = binary.LittleEndian.AppendUint64(b, o.upto)
	}
	switch o.kind {
	case opPatch, opCarry:
		b = binary.LittleEndian.AppendUint32(b, uint32(len(o.runs)))
		b = binary.LittleEndian.AppendUint32(b, uint32(len(o.data)))
		b = binary.LittleEndian.AppendUint32(b, crc32c.Checksum(o.data))
		for _, r := range o.runs {
			b = binary.LittleEndian.AppendUint32(b, r.Offset)
			b = binary.LittleEndian.AppendUint32(b, r.Length)
		}
		o.dataOff = int64(len(b))
		b = append(b, o.data...)
	}
	return b
}

// A decoder takes values from the front of bytes. After the first that is not
// there it returns zeros, and fail says so.
type decoder struct {
	b       []byte
	at      int
	fail    error
	lenient bool // patches' checksums are not verified
}

var errShort = errors.New("ends within a value")

func (d *decoder) bytes(n int) []byte {
	if d.fail == nil && (n < 0 || n > len(d.b)-d.at) {
		d.fail = errShort
	}
	if d.fail != nil {
		return nil
	}
	p := d.b[d.at : d.at+n : d.at+n]
	d.at += n
	return p
}

func (d *decoder) u8() byte {
	if p := d.bytes(1); p != nil {
		return p[0]
	}
	return 0
}

func (d *decoder) u16() uint16 {
	if p := d.bytes(2); p != nil {
		return binary.LittleEndian.Uint16(p)
	}
	return 0
}

func (d *decoder) u32() uint32 {
	if p := d.bytes(4); p != nil {
		return binary.LittleEndian.Uint32(p)
	}
	return 0
}

func (d *decoder) u64() uint64 {
	if p := d.bytes(8); p != nil {
		return binary.LittleEndian.Uint64(p)
	}
	return 0
}

func (d *decoder) id() (id ID) {
	copy(id[:], d.bytes(16))
	return id
}

func (d *decoder) record() (r Record) {
	r.ID = d.id()
	r.Size = int64(d.u64())
	if created := int64(d.u64()); created != math.MinInt64 {
		r.Created = time.Unix(0, created)
	}
	r.Version = d.u64()
	r.Tier, r.Home = coherency.Tier(d.u8()), coherency.Tier(d.u8())
	r.Policy, r.Placement = coherency.WritePolicy(d.u8()), tier.Placement(d.u8())
	r.Published = d.u8()&1 != 0
	d.u8()
	r.Name = string(d.bytes(int(d.u16())))
	if d.fail == nil {
		d.fail = r.check()
	}
	return r
}

// runs decodes n runs, which must be within a block and hold total bytes.
func (d *decoder) runs(n, total uint32) []Run {
	p := d.bytes(int(n) * 8)
	if d.fail != nil {
		return nil
	}
	runs := make([]Run, n)
	sum := uint64(0)
	for i := range runs {
		r := Run{binary.LittleEndian.Uint32(p[8*i:]), binary.LittleEndian.Uint32(p[8*i+4:])}
		if uint64(r.Offset)+uint64(r.Length) > tier.BlockSize {
			d.fail = fmt.Errorf("run [%d, +%d) is outside a block", r.Offset, r.Length)
			return nil
		}
		sum += uint64(r.Length)
		runs[i] = r
	}
	if sum != uint64(total) {
		d.fail = fmt.Errorf("runs of %d bytes have %d", sum, total)
	}
	return runs
}

// next decodes one operation. Its data is part of the payload.
func (d *decoder) next() (o op) {
	o.kind = opKind(d.u8())
	if d.fail == nil && (o.kind == 0 || o.kind > opLast) {
		d.fail = fmt.Errorf("unknown operation %d", o.kind)
	}
	if d.fail != nil {
		return o
	}
	if o.kind == opSet || o.kind == opCopy {
		o.rec = d.record()
		o.id = o.rec.ID
		return o
	}
	if o.kind != opEpoch && o.kind != opEnd {
		o.id = d.id()
	}
	switch o.kind {
	case opMark, opPut, opPatch, opFold, opCarry:
		o.block = d.u32()
	}
	if o.kind != opDelete {
		o.version = d.u64()
	}
	switch o.kind {
	case opPut, opFold:
		o.slot, o.sum, o.stamp = d.u32(), d.u32(), d.u64()
		if d.fail == nil && o.slot == 0 {
			d.fail = errors.New("slot 0")
		}
	}
	switch o.kind {
	case opFold:
		o.from, o.fromSum, o.upto = d.u32(), d.u32(), d.u64()
	case opCarry:
		o.upto = d.u64()
	}
	switch o.kind {
	case opPatch, opCarry:
		n, total, sum := d.u32(), d.u32(), d.u32()
		if n > tier.BlockSize || total > tier.BlockSize {
			d.fail = errShort
			return o
		}
		o.runs = d.runs(n, total)
		o.dataOff = int64(d.at)
		o.data = d.bytes(int(total))
		if d.fail == nil && !d.lenient && crc32c.Checksum(o.data) != sum {
			d.fail = errors.New("bytes of a patch have another checksum")
		}
	}
	return o
}

// decodeOps decodes a record's payload; lenient, of one that is known damaged.
func decodeOps(payload []byte, lenient bool) ([]op, error) {
	d := decoder{b: payload, lenient: lenient}
	var ops []op
	for d.at < len(payload) {
		o := d.next()
		if d.fail != nil {
			return nil, fmt.Errorf("operation %d at byte %d: %w", len(ops), d.at, d.fail)
		}
		ops = append(ops, o)
	}
	return ops, nil
}
