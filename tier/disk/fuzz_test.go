// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"bytes"
	"context"
	"testing"
)

func sampleOps() []op {
	rec := Record{ID: ID{1}, Name: "a", Size: 3 << 20, Published: true}
	return []op{
		{kind: opSet, rec: rec, id: rec.ID},
		{kind: opDelete, id: ID{2}},
		{kind: opMark, id: ID{1}, block: 1, version: 3},
		{kind: opPut, id: ID{1}, block: 2, version: 3, slot: 4, sum: 5, stamp: 6},
		{kind: opPatch, id: ID{1}, block: 0, version: 1, runs: []Run{{5, 3}}, data: []byte("abc")},
		{kind: opVersion, id: ID{1}, version: 9},
		{kind: opEpoch, version: 2},
		{kind: opFold, id: ID{1}, block: 2, version: 3, slot: 7, sum: 8, stamp: 9, from: 4, fromSum: 5, upto: 1},
		{kind: opCarry, id: ID{1}, block: 0, version: 1, upto: 1, runs: []Run{{5, 3}}, data: []byte("abd")},
		{kind: opEnd, version: 2},
		{kind: opCopy, rec: rec, id: rec.ID},
	}
}

// Whatever a payload is: it is refused, or decodes to what encodes to it, and
// can be applied.
func FuzzOps(f *testing.F) {
	var all []byte
	for _, o := range sampleOps() {
		one := o.append(nil)
		f.Add(one)
		all = append(all, one...)
	}
	f.Add(all)
	f.Fuzz(func(t *testing.T, payload []byte) {
		ops, err := decodeOps(payload, false)
		if err != nil {
			return
		}
		var again []byte
		s := state{spans: make(map[ID]*spanState)}
		for i := range ops {
			if sp := ops[i].rec.Size; sp > 1<<40 {
				return // its table would take the fuzzer's memory
			}
			again = ops[i].append(again)
			s.apply(&ops[i], 1, &logFile{}, 0, nil)
		}
		if twice, err := decodeOps(again, false); err != nil || len(twice) != len(ops) {
			t.Fatalf("%d operations, then %d: %v", len(ops), len(twice), err)
		}
		if s.used < 0 {
			t.Fatalf("%d bytes in use", s.used)
		}
		x := s.snapshot(1)
		p := bytes.Join([][]byte{x.header(ID{}), x.sections[0], x.sections[1], x.sections[2]}, nil)
		y, err := decodeIndex(p, ID{}, 1)
		if err != nil {
			t.Fatal(err)
		}
		back := state{spans: make(map[ID]*spanState)}
		if err := y.restore(&back, func(uint64) (*logFile, error) { return &logFile{}, nil }); err != nil {
			t.Fatal(err)
		}
		if back.used != s.used || len(back.spans) != len(s.spans) {
			t.Fatalf("restored: %d bytes in use of %d, %d spans of %d", back.used, s.used, len(back.spans), len(s.spans))
		}
	})
}

// Whatever a log has: it is read without a panic.
func FuzzLog(f *testing.F) {
	var payload []byte
	for _, o := range sampleOps() {
		payload = o.append(payload)
	}
	records := appendLogRecord(nil, 7, 1, 0, 0, payload)
	records = appendLogRecord(records, 7, 2, 1, 0, payload)
	f.Add(records)
	f.Add(appendLogRecord(records, 7, 0, 2, 0, nil))
	f.Fuzz(func(t *testing.T, p []byte) {
		d := newMemDisk()
		file, _ := d.open("log.1", true)
		if _, err := file.Writev([][]byte{p}, logHeaderSize); err != nil {
			t.Fatal(err)
		}
		l := &logFile{number: 1, f: file, salt: 7, first: 1, size: logHeaderSize + int64(len(p))}
		last := uint64(0)
		_, err := l.replay(nil, func(r record, at int64) error {
			if r.seq != last+1 {
				t.Fatalf("record %d after %d", r.seq, last)
			}
			last = r.seq
			return nil
		})
		s := &salvage{t: newTier(d, Config{}), lost: make(map[place]uint64)}
		whole := uint64(0)
		s.log(l, 0, func(o *op, r record, at int64, ok bool) {
			if ok {
				whole = max(whole, r.seq)
			}
		})
		if err == nil && whole > last {
			t.Fatalf("%d records, salvage has %d", last, whole)
		}
	})
}

// Whatever an index has: it is refused or restored.
func FuzzIndex(f *testing.F) {
	s := state{spans: make(map[ID]*spanState)}
	for _, o := range sampleOps() {
		s.apply(&o, 1, &logFile{number: 1}, 0, nil)
	}
	x := s.snapshot(1)
	f.Add(x.sections[0], x.sections[1], x.sections[2])
	f.Fuzz(func(t *testing.T, spans, blocks, patches []byte) {
		x := &index{number: 1, sections: [sections][]byte{spans, blocks, patches}}
		d := decoder{b: spans}
		for d.fail == nil && d.at < len(spans) {
			if d.record().Size > 1<<40 {
				return // its table would take the fuzzer's memory
			}
		}
		s := state{spans: make(map[ID]*spanState)}
		if x.restore(&s, func(uint64) (*logFile, error) { return &logFile{}, nil }) == nil {
			s.snapshot(2)
			_, _ = s.slotsUsed()
		}
	})
}

// Whatever a slot's header has: it is refused, or encodes to what it was.
func FuzzHeader(f *testing.F) {
	p := make([]byte, headerSize)
	h := header{store: ID{1}, block: 2, version: 3, stamp: 4, length: 5000, rec: Record{ID: ID{5}, Name: "x", Size: 3 << 20}, sums: []uint32{6, 7}}
	h.encode(p)
	f.Add(p, true)
	f.Add(p[:100], false)
	f.Fuzz(func(t *testing.T, p []byte, sign bool) {
		if sign && len(p) >= headerSize { // lest the checksum stop it
			computed, _ := headerSum(p)
			p = append([]byte(nil), p[:headerSize]...)
			copy(p[headerSumAt:], []byte{byte(computed), byte(computed >> 8), byte(computed >> 16), byte(computed >> 24)})
		}
		h, sum, err := decodeHeader(p)
		if err != nil {
			return
		}
		again := make([]byte, headerSize)
		h.encode(again)
		if g, _, err := decodeHeader(again); err != nil || g.rec.ID != h.rec.ID || g.version != h.version || len(g.sums) != len(h.sums) {
			t.Fatalf("%+v, then %+v: %v (%#x)", h, g, err, sum)
		}
	})
}

// A directory of arbitrary files is refused or opened, and checked, without a
// panic.
func FuzzDirectory(f *testing.F) {
	f.Add([]byte("x"), []byte("y"), []byte("z"))
	f.Fuzz(func(t *testing.T, index, log, blocks []byte) {
		d := newMemDisk()
		for name, p := range map[string][]byte{formatName: encodeFormat(ID{}), "index.1": index, "log.1": log, blocksName: blocks} {
			if err := writeWhole(d, name, p); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := checkDirectory(context.Background(), d, true); err != nil {
			return
		}
		tr, err := openDirectory(context.Background(), d, Config{})
		if err != nil {
			t.Fatalf("it does not open after repair: %v", err)
		}
		tr.abandon()
	})
}
