// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/memspan/memspan/internal/crc32c"
)

const (
	indexMagic      = "memspanI"
	indexVersion    = 1
	indexHeaderSize = 4 << 10
	sectionSpans    = 0
	sectionBlocks   = 1
	sectionPatches  = 2
	sections        = 3
	blockEntry      = 32 // bytes
)

var sectionNames = [sections]string{"spans", "blocks", "patches"}

// An index is a snapshot of the state: with the records of logs from number on
// that are later than seq, it is all that was committed.
type index struct {
	number, seq, epoch, stamp uint64
	sections                  [sections][]byte
}

// snapshot encodes the state. The caller keeps it from changing.
func (s *state) snapshot(number uint64) *index {
	x := &index{number: number, seq: s.seq, epoch: s.epoch, stamp: s.stamp}
	n := uint32(0)
	spans, blocks, patches := x.sections[0], x.sections[1], x.sections[2]
	for _, sp := range s.spans {
		if !sp.known {
			continue
		}
		spans = appendRecord(spans, &sp.rec)
		for b, st := range sp.each() {
			blocks = binary.LittleEndian.AppendUint32(blocks, n)
			blocks = binary.LittleEndian.AppendUint32(blocks, uint32(b))
			blocks = binary.LittleEndian.AppendUint64(blocks, st.version)
			blocks = binary.LittleEndian.AppendUint64(blocks, st.marked)
			blocks = binary.LittleEndian.AppendUint32(blocks, st.slot)
			blocks = binary.LittleEndian.AppendUint32(blocks, st.sum)
		}
		for b, list := range sp.patches {
			for _, p := range list { // oldest first
				patches = binary.LittleEndian.AppendUint32(patches, n)
				patches = binary.LittleEndian.AppendUint32(patches, uint32(b))
				patches = binary.LittleEndian.AppendUint64(patches, p.log.number)
				patches = binary.LittleEndian.AppendUint64(patches, uint64(p.off))
				patches = binary.LittleEndian.AppendUint64(patches, p.seq)
				patches = binary.LittleEndian.AppendUint32(patches, p.size)
				patches = binary.LittleEndian.AppendUint32(patches, p.sum)
				patches = binary.LittleEndian.AppendUint32(patches, uint32(len(p.runs)))
				for _, r := range p.runs {
					patches = binary.LittleEndian.AppendUint32(patches, r.Offset)
					patches = binary.LittleEndian.AppendUint32(patches, r.Length)
				}
			}
		}
		n++
	}
	x.sections = [sections][]byte{spans, blocks, patches}
	return x
}

// header returns the first bytes of the index file; the sections follow.
func (x *index) header(store ID) []byte {
	p := make([]byte, indexHeaderSize)
	copy(p, indexMagic)
	binary.LittleEndian.PutUint32(p[8:], indexVersion)
	copy(p[16:], store[:])
	for i, v := range []uint64{x.number, x.seq, x.epoch, x.stamp} {
		binary.LittleEndian.PutUint64(p[32+8*i:], v)
	}
	for i, s := range x.sections {
		binary.LittleEndian.PutUint64(p[64+16*i:], uint64(len(s)))
		binary.LittleEndian.PutUint32(p[72+16*i:], crc32c.Checksum(s))
	}
	binary.LittleEndian.PutUint32(p[headerSumAt:], crc32c.Checksum(p))
	return p
}

// writeIndex makes a snapshot durable, and returns how many bytes it has.
func writeIndex(dir directory, store ID, x *index) (int64, error) {
	size := int64(indexHeaderSize)
	for _, s := range x.sections {
		size += int64(len(s))
	}
	return size, writeWhole(dir, numbered(indexName, x.number), x.header(store), x.sections[0], x.sections[1], x.sections[2])
}

// decodeIndex decodes an index file and verifies its checksums. Its errors are
// *CorruptErrors, or ErrFormat.
func decodeIndex(p []byte, store ID, number uint64) (*index, error) {
	name := numbered(indexName, number)
	damaged := func(at int64, what, expected, found string) error {
		return &CorruptError{Block: -1, File: name, Offset: at, What: what, Expected: expected, Found: found}
	}
	if len(p) < indexHeaderSize {
		return nil, damaged(0, "the index's header", fmt.Sprintf("%d bytes", indexHeaderSize), fmt.Sprintf("%d", len(p)))
	}
	head := p[:indexHeaderSize]
	if string(head[:8]) != indexMagic {
		return nil, damaged(0, "the index's header", fmt.Sprintf("%q", indexMagic), fmt.Sprintf("%q", head[:8]))
	}
	if computed, stored := headerSum(head); computed != stored {
		return nil, damaged(0, "the index's header", fmt.Sprintf("checksum %#x", stored), fmt.Sprintf("%#x", computed))
	}
	if v := binary.LittleEndian.Uint32(head[8:]); v != indexVersion {
		return nil, fmt.Errorf("%w: %s has version %d, this program knows %d", ErrFormat, name, v, indexVersion)
	}
	d := decoder{b: head, at: 16}
	if id := d.id(); id != store {
		return nil, damaged(16, "the index's store", fmt.Sprintf("%x", store), fmt.Sprintf("%x", id))
	}
	x := &index{number: d.u64(), seq: d.u64(), epoch: d.u64(), stamp: d.u64()}
	if x.number != number {
		return nil, damaged(32, "the index's number", fmt.Sprint(number), fmt.Sprint(x.number))
	}
	at := int64(indexHeaderSize)
	for i := range x.sections {
		n, sum := d.u64(), d.u32()
		d.u32()
		if n > uint64(int64(len(p))-at) {
			return nil, damaged(at, "section "+sectionNames[i], fmt.Sprintf("%d bytes", n), fmt.Sprintf("%d", int64(len(p))-at))
		}
		x.sections[i] = p[at : at+int64(n)]
		if got := crc32c.Checksum(x.sections[i]); got != sum {
			return nil, damaged(at, "section "+sectionNames[i], fmt.Sprintf("checksum %#x", sum), fmt.Sprintf("%#x", got))
		}
		at += int64(n)
	}
	return x, nil
}

// restore brings a fresh state to the snapshot. Log returns the file that a
// patch is in.
func (x *index) restore(s *state, log func(number uint64) (*logFile, error)) error {
	s.seq, s.epoch, s.stamp = x.seq, x.epoch, x.stamp
	fail := func(section int, d *decoder, err error) error {
		return &CorruptError{Block: -1, File: numbered(indexName, x.number), What: fmt.Sprintf("section %s, byte %d", sectionNames[section], d.at), Found: err.Error()}
	}
	var spans []*spanState
	d := &decoder{b: x.sections[sectionSpans]}
	for d.at < len(d.b) {
		rec := d.record()
		if d.fail != nil {
			return fail(sectionSpans, d, d.fail)
		}
		sp := newSpanState(rec)
		sp.known = true
		if s.spans[rec.ID] != nil {
			return fail(sectionSpans, d, fmt.Errorf("span %x twice", rec.ID))
		}
		s.spans[rec.ID] = sp
		spans = append(spans, sp)
	}
	span := func(n, b uint32) (*spanState, error) {
		if uint64(n) >= uint64(len(spans)) {
			return nil, fmt.Errorf("span %d of %d", n, len(spans))
		}
		if spans[n].blockLen(int(b)) == 0 {
			return nil, fmt.Errorf("block %d of %d", b, spans[n].blocks())
		}
		return spans[n], nil
	}
	d = &decoder{b: x.sections[sectionBlocks]}
	for d.at < len(d.b) {
		n, b := d.u32(), d.u32()
		st := blockState{version: d.u64(), marked: d.u64(), slot: d.u32(), sum: d.u32()}
		sp, err := span(n, b)
		if err = errors.Join(d.fail, err); err != nil {
			return fail(sectionBlocks, d, err)
		}
		*sp.ref(int(b)) = st
		if st.slot != 0 {
			s.used += sp.charge(int(b))
		}
	}
	d = &decoder{b: x.sections[sectionPatches]}
	for d.at < len(d.b) {
		n, b, number := d.u32(), d.u32(), d.u64()
		p := patch{off: int64(d.u64()), seq: d.u64(), size: d.u32(), sum: d.u32()}
		p.runs = d.runs(min(d.u32(), 1<<20), p.size)
		sp, err := span(n, b)
		if err = errors.Join(d.fail, err); err != nil {
			return fail(sectionPatches, d, err)
		}
		if p.log, err = log(number); err != nil {
			return err
		}
		if sp.content(int(b)).empty() {
			s.used += sp.charge(int(b))
		}
		sp.setPatches(int(b), append(sp.patches[int(b)], p))
	}
	return nil
}
