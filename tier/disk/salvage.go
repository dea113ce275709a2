// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
)

// A place is a block of a span.
type place struct {
	id ID
	b  int
}

// A salvage is a directory that is read for all that can be had of it, where
// recovery would stop at the first damage.
type salvage struct {
	t     *Tier
	r     Report
	files *files
	// lost are blocks whose bytes are gone, with the highest version that is
	// known of them.
	lost map[place]uint64

	// suspect: changes are missing that nobody knows. What later patches lie on
	// may be older than they suppose; sure are blocks that were put whole since.
	suspect bool
	sure    map[place]bool

	rebuilt bool
	base    map[place]uint64 // rebuilt: version of the bytes in the block's slot
	deleted map[ID]bool
}

// load reads the directory. Its error is why that cannot be done; damage goes
// into the report.
func (s *salvage) load(ctx context.Context) (err error) {
	t := s.t
	t.state = state{spans: make(map[ID]*spanState)}
	if s.files, err = listFiles(t.dir); err != nil {
		return err
	}
	f := s.files
	if !f.format && !f.blocks && len(f.indexes)+len(f.logs) == 0 {
		return fmt.Errorf("%w: it has none of the files", ErrFormat)
	}
	if t.slots.f, err = t.dir.open(blocksName, false); errors.Is(err, fs.ErrNotExist) {
		t.slots.f, err = noFile{}, nil
		// A directory that was never made whole has none, nor anything else.
		if len(f.indexes) > 0 {
			s.r.add(&CorruptError{Block: -1, File: blocksName, What: "the blocks", Expected: "a file", Found: "none"}, "an empty file is made")
		}
	}
	if err != nil {
		return err
	}
	if err := s.identify(); err != nil {
		return err
	}
	if f.format && len(f.indexes) == 0 && s.neverMade() {
		return nil
	}
	from, err := s.index()
	if err != nil {
		return err
	}
	if err := s.logs(ctx, from); err != nil {
		return err
	}
	t.stamp.Store(t.state.stamp)
	for _, sp := range t.state.spans {
		if !sp.rec.Published && !s.rebuilt {
			t.state.drop(sp, nil)
		}
	}
	for p := range s.lost {
		if sp := t.state.spans[p.id]; sp != nil && sp.blockLen(p.b) > 0 {
			s.lost[p] = max(s.lost[p], sp.at(p.b).version, sp.at(p.b).marked)
			s.lose(p)
		}
	}
	return nil
}

// neverMade reports whether power was lost before the directory was made whole.
func (s *salvage) neverMade() bool {
	if size, err := s.t.slots.f.Size(); err != nil || size > 0 || len(s.files.logs) > 1 || len(s.files.logs) == 1 && s.files.logs[0] != 1 {
		return false
	}
	if len(s.files.logs) == 0 {
		return true
	}
	l, err := openLog(s.t.dir, s.t.store, 1)
	if err != nil {
		return false
	}
	defer l.f.Close()
	_, err = l.replay(nil, func(record, int64) error { return errNone })
	return err == nil
}

// identify finds which store the directory is, in whatever file says so.
func (s *salvage) identify() error {
	p, err := readWhole(s.t.dir, formatName)
	if err == nil {
		if s.t.store, err = decodeFormat(p); err == nil {
			return nil
		}
	}
	ours := s.files.blocks || len(s.files.indexes)+len(s.files.logs) > 0
	var corrupt *CorruptError
	if err != nil && !ours && !errors.As(err, &corrupt) {
		return err
	}
	if errors.Is(err, ErrFormat) && !errors.As(err, &corrupt) {
		// Of a later version, or damaged in its first line?
		var version int
		if n, _ := fmt.Sscanf(string(p), formatText+"version %d\n", &version); n == 1 {
			return err
		}
	}
	s.r.add(&CorruptError{Block: -1, File: formatName, What: "the format", Expected: "the store's text", Found: err.Error()}, repairFormat)
	for _, n := range s.files.indexes {
		if s.storeOf(numbered(indexName, n), indexMagic) {
			return nil
		}
	}
	for _, n := range s.files.logs {
		if s.storeOf(numbered(logName, n), logMagic) {
			return nil
		}
	}
	for _, h := range s.slots(func(h *header) bool { return true }) {
		s.t.store = h.store
		return nil
	}
	return fmt.Errorf("%w: nothing in it says which store it is", ErrFormat)
}

// storeOf takes the store's id from a file's header, if that is whole.
func (s *salvage) storeOf(name, magic string) bool {
	f, err := s.t.dir.open(name, false)
	if err != nil {
		return false
	}
	defer f.Close()
	p := make([]byte, headerSize)
	if _, err := f.Readv([][]byte{p}, 0); err != nil || string(p[:8]) != magic {
		return false
	}
	computed, stored := headerSum(p)
	s.t.store = ID(p[16:32])
	return computed == stored
}

// index restores the newest index that is whole, or else rebuilds the state from
// the slots. It returns the number of the first log to repeat.
func (s *salvage) index() (from uint64, err error) {
	indexes := slices.Clone(s.files.indexes)
	slices.Reverse(indexes)
	if len(indexes) == 0 {
		s.r.add(&CorruptError{Block: -1, File: indexName, What: "the index", Expected: "a file", Found: "none"}, repairIndex)
	}
	for _, number := range indexes {
		p, err := readWhole(s.t.dir, numbered(indexName, number))
		if err == nil {
			var x *index
			if x, err = decodeIndex(p, s.t.store, number); err == nil {
				fresh := state{spans: make(map[ID]*spanState)}
				if err = x.restore(&fresh, s.openLog); err == nil {
					s.t.state = fresh
					return number, nil
				}
			}
		}
		if errors.Is(err, ErrFormat) {
			return 0, err
		}
		s.r.add(err, repairIndex)
	}
	return 0, s.rebuild()
}

// openLog returns a log, though it be damaged or missing: reading from it shows
// that.
func (s *salvage) openLog(number uint64) (*logFile, error) {
	if l := s.t.logs[number]; l != nil {
		return l, nil
	}
	l := &logFile{number: number, f: noFile{}, tail: logHeaderSize}
	s.t.logs[number] = l
	f, err := s.t.dir.open(numbered(logName, number), false)
	if errors.Is(err, fs.ErrNotExist) {
		s.r.add(&CorruptError{Block: -1, File: numbered(logName, number), What: "a log", Expected: "a file", Found: "none"}, repairUnknown)
		s.suspect = true
		return l, nil
	}
	if err != nil {
		return nil, err
	}
	l.f = f
	if err := l.readHeader(s.t.store); err != nil {
		if errors.Is(err, ErrFormat) {
			return nil, err
		}
		s.headless(l, err)
	}
	return l, nil
}

// headless takes what a log's header ought to say from its first record.
func (s *salvage) headless(l *logFile, damage error) {
	l.stamp = math.MaxUint64
	p := make([]byte, sector)
	_, err := l.f.Readv([][]byte{p}, logHeaderSize)
	if err == nil && !slices.ContainsFunc(p, func(b byte) bool { return b != 0 }) {
		s.r.add(damage, repairHeader) // there never was any record
		return
	}
	if err == nil && binary.LittleEndian.Uint32(p) == recordMagic {
		l.salt = binary.LittleEndian.Uint64(p[32:])
		l.first = binary.LittleEndian.Uint64(p[16:])
		if l.first == 0 { // a note
			l.first = binary.LittleEndian.Uint64(p[24:]) + 1
		}
		s.r.add(damage, repairHeader)
		return
	}
	s.suspect = true
	s.r.add(damage, repairUnknown)
}

// logs repeats the logs from number on.
func (s *salvage) logs(ctx context.Context, from uint64) error {
	chain, next := s.chain(), uint64(0)
	s.sure = make(map[place]bool)
	numbers := s.files.logs
	if from > 0 && !slices.Contains(numbers, from) {
		numbers = append([]uint64{from}, numbers...)
	}
	for _, n := range numbers {
		if n < from {
			continue
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		for ; next != 0 && next < n; next++ {
			if _, err := s.openLog(next); err != nil { // reports that it is missing
				return err
			}
		}
		l, err := s.openLog(n)
		if err != nil {
			return err
		}
		next = 0
		if seq := s.t.state.seq; !s.rebuilt && l.first > seq+1 {
			s.r.add(&CorruptError{Block: -1, File: numbered(logName, n), What: "the log's first record", Expected: fmt.Sprintf("record %d", seq+1),
				Found: fmt.Sprintf("record %d", l.first)}, repairUnknown)
			s.suspect = true
		}
		s.log(l, s.t.state.seq, func(o *op, r record, at int64, whole bool) {
			if o.kind == opEnd {
				next = o.version
			}
			p := place{o.id, int(o.block)}
			switch {
			case !whole:
				s.doubtful(o, r, at, l)
				s.t.state.seq = max(s.t.state.seq, r.seq)
				return
			case s.rebuilt:
				s.again(o, r, at, l, n >= chain)
			default:
				s.t.state.apply(o, r.seq, l, at, nil)
			}
			switch {
			case s.rebuilt && (o.kind == opPut || o.kind == opFold):
				s.sure[p] = s.base[p] >= o.version
			case o.kind == opPut || o.kind == opFold:
				s.sure[p] = true
				delete(s.lost, p)
			case (o.kind == opPatch || o.kind == opCarry) && s.suspect && !s.sure[p]:
				s.lost[p] = max(s.lost[p], o.version)
			}
			s.t.state.seq = max(s.t.state.seq, r.seq)
		})
	}
	if next != 0 && !slices.Contains(numbers, next) {
		if _, err := s.openLog(next); err != nil {
			return err
		}
	}
	return nil
}

// log calls use with each operation of records later than seq that can be made
// out; whole is false for those of a record that is damaged. At is where the
// record's payload begins.
func (s *salvage) log(l *logFile, seq uint64, use func(o *op, r record, at int64, whole bool)) {
	p := make([]byte, max(0, l.size-logHeaderSize))
	n, _ := l.f.Readv([][]byte{p}, logHeaderSize)
	p = p[:n]
	// The records that are whole, and how far something says they are durable.
	var all []placed
	durable := uint64(0)
	for at := int64(0); at+recordHeader <= int64(len(p)); {
		r, err := decodeRecord(p[at:], l.salt)
		if err != nil {
			at += sector
			continue
		}
		durable = max(durable, r.durable)
		if len(r.payload) > 0 && (len(all) == 0 || r.seq > all[len(all)-1].seq) {
			all = append(all, placed{r, at})
		}
		at += r.size
		if r.ends() {
			break
		}
	}
	all, _ = cutTorn(all, durable, s.t.torn)
	next, at := l.first, int64(0)
	gap := func(to int64, until uint64) {
		// Records next to until-1 are missing between at and to.
		if next >= until || next > durable {
			return
		}
		what := fmt.Sprintf("record %d", next)
		if until > next+1 {
			what = fmt.Sprintf("records %d to %d", next, until-1)
		}
		repair := repairUnknown
		if until <= seq+1 {
			repair = repairCovered
		} else if r, ops := damagedRecord(p[at:to], l.salt, next); ops != nil && until == next+1 {
			repair = "the blocks that it names become known losses, unless verified; if their names are what is damaged, other changes are lost"
			for i := range ops {
				use(&ops[i], r, logHeaderSize+at+recordHeader, false)
			}
		}
		s.suspect = s.suspect || until > seq+1
		err := l.damaged(at, what, "none that is whole").(*CorruptError)
		s.r.add(err, repair)
	}
	for _, f := range all {
		if f.seq < next {
			continue
		}
		if f.seq > next && f.seq > durable {
			return // torn: their commits never returned
		}
		gap(f.at, f.seq)
		ops, err := decodeOps(f.payload, false)
		if err != nil {
			s.r.add(&CorruptError{Block: -1, File: numbered(logName, l.number), Offset: logHeaderSize + f.at, What: fmt.Sprintf("record %d", f.seq), Found: err.Error()},
				repairUnknown)
			s.suspect = true
		}
		for i := range ops {
			if f.seq > seq {
				use(&ops[i], f.record, logHeaderSize+f.at+recordHeader, true)
			}
		}
		next, at = f.seq+1, f.at+f.size
	}
	gap(int64(len(p)), durable+1)
	l.tail = logHeaderSize + at
}

// damagedRecord makes out what a record changed whose checksum is wrong.
func damagedRecord(p []byte, salt, seq uint64) (record, []op) {
	if len(p) < recordHeader {
		return record{}, nil
	}
	n := int(min(binary.LittleEndian.Uint32(p[8:]), maxRecord))
	if n > len(p)-recordHeader {
		n = len(p) - recordHeader
	}
	ops, err := decodeOps(p[recordHeader:recordHeader+n], true)
	if err != nil {
		return record{}, nil
	}
	return record{seq: seq, payload: p[recordHeader : recordHeader+n]}, ops
}

// doubtful takes from an operation of a damaged record what can be verified.
// Blocks whose bytes it had are lost.
func (s *salvage) doubtful(o *op, r record, at int64, l *logFile) {
	p := place{o.id, int(o.block)}
	switch o.kind {
	case opSet, opDelete, opMark:
		s.t.state.apply(o, r.seq, l, at, nil)
	case opPut, opFold:
		head := make([]byte, headerSize)
		_, err := s.t.slots.f.Readv([][]byte{head}, slotOffset(o.slot))
		if err == nil {
			var h header
			var sum uint32
			if h, sum, err = decodeHeader(head); err == nil && sum == o.sum && h.rec.ID == o.id && h.block == o.block && h.version == o.version {
				if !s.rebuilt {
					s.t.state.apply(o, r.seq, l, at, nil)
				}
				return
			}
		}
		if o.kind == opPut {
			s.lost[p] = max(s.lost[p], o.version)
		}
	case opPatch:
		s.lost[p] = max(s.lost[p], o.version)
	}
}
