// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"syscall"

	"github.com/memspan/memspan/internal/crc32c"
)

var errReadOnly error = syscall.EROFS

const (
	formatText    = "memspan data directory\n"
	formatVersion = 1
)

// encodeFormat returns the text of the file format.
func encodeFormat(store ID) []byte {
	text := fmt.Sprintf("%sversion %d\nstore %x\n", formatText, formatVersion, store)
	return fmt.Appendf(nil, "%ssum %08x\n", text, crc32c.Checksum([]byte(text)))
}

func decodeFormat(p []byte) (store ID, err error) {
	damaged := func(found string) error {
		return &CorruptError{Block: -1, File: formatName, What: "the format", Found: found}
	}
	if !bytes.HasPrefix(p, []byte(formatText)) {
		return store, fmt.Errorf("%w: its file %q is another's, or damaged", ErrFormat, formatName)
	}
	var version int
	var id, sum string
	if _, err := fmt.Sscanf(string(p[len(formatText):]), "version %d\nstore %32s\nsum %8s\n", &version, &id, &sum); err != nil {
		return store, damaged(fmt.Sprintf("%q", p))
	}
	end := bytes.LastIndex(p, []byte("sum "))
	if want := fmt.Sprintf("%08x", crc32c.Checksum(p[:end])); want != sum {
		return store, damaged(fmt.Sprintf("checksum %s, its bytes have %s", sum, want))
	}
	if version != formatVersion {
		return store, fmt.Errorf("%w: it has version %d, this program knows %d: use a later memspan", ErrFormat, version, formatVersion)
	}
	raw, err := hex.DecodeString(id)
	if err != nil {
		return store, damaged("store " + id)
	}
	return ID(raw), nil
}

// files is what a directory has.
type files struct {
	format, blocks bool
	indexes, logs  []uint64 // ascending
	foreign        []string
	fresh          []string // that were being written
}

func listFiles(dir directory) (*files, error) {
	names, err := dir.list()
	if err != nil {
		return nil, err
	}
	var f files
	for _, name := range names {
		index, isIndex := numberOf(indexName, name)
		log, isLog := numberOf(logName, name)
		switch {
		case name == formatName:
			f.format = true
		case name == blocksName:
			f.blocks = true
		case isIndex:
			f.indexes = append(f.indexes, index)
		case isLog:
			f.logs = append(f.logs, log)
		case name == lockName || name == "lost+found":
		case strings.HasSuffix(name, freshTail):
			f.fresh = append(f.fresh, name)
		default:
			f.foreign = append(f.foreign, name)
		}
	}
	slices.Sort(f.indexes)
	slices.Sort(f.logs)
	return &f, nil
}

// recover brings the tier to the state of the last commit that returned.
func (t *Tier) recover(ctx context.Context) error {
	f, err := listFiles(t.dir)
	if err != nil {
		return err
	}
	if err := t.identify(f); err != nil {
		return err
	}
	// What is found here may be in the kernel's memory only, if the process
	// that wrote it was killed: what follows must not outlive it.
	if err := t.dir.sync(); err != nil {
		return err
	}
	if t.slots.f, err = t.dir.open(blocksName, true); err != nil {
		return err
	}
	t.state = state{spans: make(map[ID]*spanState)}
	if len(f.indexes) == 0 {
		if err := t.begin(f); err != nil {
			return err
		}
	}
	number := f.indexes[len(f.indexes)-1]
	size, err := t.restore(number)
	if err != nil {
		return err
	}
	t.covered = t.state.seq
	clean, err := t.replay(ctx, number, f.logs)
	if err != nil {
		return err
	}
	if !t.state.seqFits() {
		return errors.New("sequence numbers are used up")
	}
	t.state.dropUnpublished()
	t.stamp.Store(t.state.stamp)
	used, err := t.state.slotsUsed()
	if err != nil {
		return err
	}
	if err := t.slots.found(used); err != nil {
		return full(err)
	}
	t.checkpointAt = max(leastLog, size)
	if !clean {
		// What follows the tail might be taken for records later: none may.
		if err := t.rotate(); err != nil {
			return full(err)
		}
	}
	t.sweep(f, number)
	if t.tail.number-number >= mostLogs {
		t.wake <- struct{}{}
	}
	return nil
}

func (s *state) seqFits() bool { return s.seq < 1<<62 }

// identify reads which store the directory is, or makes it one.
func (t *Tier) identify(f *files) error {
	if f.format {
		p, err := readWhole(t.dir, formatName)
		if err != nil {
			return err
		}
		t.store, err = decodeFormat(p)
		return err
	}
	if f.blocks || len(f.indexes)+len(f.logs) > 0 {
		return &CorruptError{Block: -1, File: formatName, What: "the format", Expected: "a file", Found: "none"}
	}
	if len(f.foreign) > 0 {
		return fmt.Errorf("%w: it has other files, as %q: name an empty directory", ErrFormat, f.foreign[0])
	}
	rand.Read(t.store[:])
	return full(writeWhole(t.dir, formatName, encodeFormat(t.store)))
}

// begin makes the first log and index, which were never made whole, or reports
// that an index is missing.
func (t *Tier) begin(f *files) error {
	size, err := t.slots.f.Size()
	if err != nil {
		return err
	}
	missing := size > 0 || len(f.logs) > 1 || len(f.logs) == 1 && f.logs[0] != 1
	if !missing && len(f.logs) == 1 {
		l, err := openLog(t.dir, t.store, 1)
		if err != nil {
			return err
		}
		_, err = l.replay(nil, func(record, int64) error { missing = true; return nil })
		if err = errors.Join(err, l.f.Close()); err != nil {
			return err
		}
	}
	if missing {
		return &CorruptError{Block: -1, File: indexName, What: "the index", Expected: "a file", Found: "none"}
	}
	l, err := newLog(t.dir, t.store, 1, 1, 0)
	if err != nil {
		return full(err)
	}
	if err := l.f.Close(); err != nil {
		return err
	}
	if _, err := writeIndex(t.dir, t.store, t.state.snapshot(1)); err != nil {
		return full(err)
	}
	f.logs, f.indexes = []uint64{1}, []uint64{1}
	return nil
}

// restore reads the index.
func (t *Tier) restore(number uint64) (size int64, err error) {
	p, err := readWhole(t.dir, numbered(indexName, number))
	if err != nil {
		return 0, err
	}
	x, err := decodeIndex(p, t.store, number)
	if err != nil {
		return 0, err
	}
	return int64(len(p)), x.restore(&t.state, t.openLog)
}

// openLog returns a log file, which it opens if it is not.
func (t *Tier) openLog(number uint64) (*logFile, error) {
	if l := t.logs[number]; l != nil {
		return l, nil
	}
	l, err := openLog(t.dir, t.store, number)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &CorruptError{Block: -1, File: numbered(logName, number), What: "a log", Expected: "a file", Found: "none"}
	}
	if err != nil {
		return nil, err
	}
	t.logs[number] = l
	return l, nil
}

// replay repeats the commits that the index does not have. Clean reports whether
// the last log can be appended to.
func (t *Tier) replay(ctx context.Context, number uint64, have []uint64) (clean bool, err error) {
	for {
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
		l, err := t.openLog(number)
		if err != nil {
			return false, err
		}
		if l.first > t.state.seq+1 || t.tail != nil && l.first != t.state.seq+1 {
			return false, &CorruptError{Block: -1, File: numbered(logName, number), What: "the log's first record",
				Expected: fmt.Sprintf("record %d", t.state.seq+1), Found: fmt.Sprintf("record %d", l.first)}
		}
		next := uint64(0)
		clean, err = l.replay(t.torn, func(r record, at int64) error {
			ops, err := decodeOps(r.payload, false)
			if err != nil {
				return &CorruptError{Block: -1, File: numbered(logName, number), Offset: at, What: fmt.Sprintf("record %d", r.seq), Found: err.Error()}
			}
			for i := range ops {
				if ops[i].kind == opEnd {
					next = ops[i].version
				}
				if r.seq > t.state.seq {
					t.state.apply(&ops[i], r.seq, l, at+recordHeader, nil)
				}
			}
			t.state.seq = max(t.state.seq, r.seq)
			return nil
		})
		if err == nil {
			err = errors.Join(l.f.Sync(), t.slots.f.Sync())
		}
		if err != nil {
			return false, err
		}
		t.tail = l
		if next == 0 {
			break
		}
		number = next
	}
	// One that was begun and never used may follow.
	if slices.Contains(have, number+1) {
		l, err := openLog(t.dir, t.store, number+1)
		if err != nil {
			return false, err
		}
		_, err = l.replay(nil, func(r record, at int64) error {
			return &CorruptError{Block: -1, File: numbered(logName, number), Offset: t.tail.tail, What: "the log's last record",
				Expected: fmt.Sprintf("one that says that %s follows", numbered(logName, number+1)), Found: "none"}
		})
		if err = errors.Join(err, l.f.Close()); err != nil {
			return false, err
		}
		clean = false
	}
	return clean, nil
}

// torn returns how many of the last records of a log, which nothing says are
// durable, have all the slots that were to become durable with them.
func (t *Tier) torn(last []placed) int {
	ops := make([][]op, len(last))
	for i, r := range last {
		ops[i], _ = decodeOps(r.payload, true) // what is wrong is reported later
	}
	// What a later one of them replaced or deleted may be wiped already.
	replaced := func(o *op, by [][]op) bool {
		for _, later := range by {
			for _, l := range later {
				if l.id == o.id && (l.kind == opDelete || l.kind == opPut && l.block == o.block) {
					return true
				}
			}
		}
		return false
	}
	n := len(last)
	for i := 0; i < n; i++ {
		for j := range ops[i] {
			o := &ops[i][j]
			if o.kind != opPut || last[i].flags&flagSlots == 0 || last[i].seq <= t.state.seq || replaced(o, ops[i+1:n]) || t.slotWhole(o) {
				continue
			}
			n, i = i, -1 // and once more: what followed replaces nothing
			break
		}
	}
	return n
}

// slotWhole reports whether a slot has all that a put says.
func (t *Tier) slotWhole(o *op) bool {
	head := t.page()
	defer t.pages.Put(head)
	if _, err := t.slots.f.Readv([][]byte{head[:]}, slotOffset(o.slot)); err != nil {
		return false
	}
	h, sum, err := decodeHeader(head[:])
	if err != nil || sum != o.sum {
		return false
	}
	buf := t.buffer()
	defer t.putBuffer(buf)
	if _, err := t.slots.f.Readv([][]byte{buf[:h.length]}, slotOffset(o.slot)+headerSize); err != nil {
		return false
	}
	return slices.Equal(pageSums(nil, buf[:h.length]), h.sums)
}

// sweep removes files that nothing needs. What it cannot remove is in nobody's
// way.
func (t *Tier) sweep(f *files, index uint64) {
	for _, name := range f.fresh {
		_ = t.dir.remove(name)
	}
	for _, n := range f.indexes {
		if n != index {
			_ = t.dir.remove(numbered(indexName, n))
		}
	}
	for _, n := range f.logs {
		if t.logs[n] == nil {
			_ = t.dir.remove(numbered(logName, n))
		}
	}
}
