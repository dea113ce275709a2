// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/memspan/memspan/internal/crc32c"
)

const (
	logMagic      = "memspanL"
	logVersion    = 1
	logHeaderSize = 4 << 10 // of the file; records follow
	sector        = 512     // records begin on one, so that writing one touches no other
	logGrowth     = 1 << 20 // zeros written ahead: appending needs no metadata then
	recordMagic   = 0x5253534d
	recordHeader  = 40
	maxRecord     = 1 << 30 // of payload
)

// A logFile is one file of the redo log.
type logFile struct {
	number uint64
	f      file
	salt   uint64 // in its records, lest bytes of others be taken for them
	first  uint64 // sequence number of its first record
	stamp  uint64 // no slot's header had a higher one when the log was begun
	tail   int64  // where the next record begins
	size   int64  // of the file
	live   int    // patches of blocks that are in it; guarded by the tier's mu
}

// encodeLogHeader returns the first bytes of a log.
func encodeLogHeader(store ID, l *logFile) []byte {
	p := make([]byte, logHeaderSize)
	copy(p, logMagic)
	binary.LittleEndian.PutUint32(p[8:], logVersion)
	copy(p[16:], store[:])
	binary.LittleEndian.PutUint64(p[32:], l.number)
	binary.LittleEndian.PutUint64(p[40:], l.salt)
	binary.LittleEndian.PutUint64(p[48:], l.first)
	binary.LittleEndian.PutUint64(p[56:], l.stamp)
	binary.LittleEndian.PutUint32(p[headerSumAt:], crc32c.Checksum(p))
	return p
}

// newLog makes log file number, durable and empty, whose first record will have
// sequence number first.
func newLog(dir directory, store ID, number, first, stamp uint64) (*logFile, error) {
	l := &logFile{number: number, first: first, stamp: stamp, tail: logHeaderSize, size: logHeaderSize + logGrowth}
	var salt [8]byte
	rand.Read(salt[:])
	l.salt = binary.LittleEndian.Uint64(salt[:])
	name := numbered(logName, number)
	if err := writeWhole(dir, name, encodeLogHeader(store, l), make([]byte, logGrowth)); err != nil {
		return nil, err
	}
	var err error
	l.f, err = dir.open(name, false)
	return l, err
}

// openLog opens log file number and verifies its header.
func openLog(dir directory, store ID, number uint64) (*logFile, error) {
	name := numbered(logName, number)
	f, err := dir.open(name, false)
	if err != nil {
		return nil, err
	}
	l := &logFile{number: number, f: f, tail: logHeaderSize}
	if err := l.readHeader(store); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return l, nil
}

func (l *logFile) readHeader(store ID) (err error) {
	damaged := func(what, expected, found string) error {
		return &CorruptError{Block: -1, File: numbered(logName, l.number), What: what, Expected: expected, Found: found}
	}
	if l.size, err = l.f.Size(); err != nil {
		return err
	}
	p := make([]byte, logHeaderSize)
	if _, err := l.f.Readv([][]byte{p}, 0); errors.Is(err, io.EOF) {
		return damaged("the log's header", fmt.Sprintf("%d bytes", logHeaderSize), fmt.Sprintf("%d bytes", l.size))
	} else if err != nil {
		return err
	}
	if string(p[:8]) != logMagic {
		return damaged("the log's header", fmt.Sprintf("%q", logMagic), fmt.Sprintf("%q", p[:8]))
	}
	if computed, stored := headerSum(p); computed != stored {
		return damaged("the log's header", fmt.Sprintf("checksum %#x", stored), fmt.Sprintf("%#x", computed))
	}
	if v := binary.LittleEndian.Uint32(p[8:]); v != logVersion {
		return fmt.Errorf("%w: %s has version %d, this program knows %d", ErrFormat, numbered(logName, l.number), v, logVersion)
	}
	if id := ID(p[16:32]); id != store {
		return damaged("the log's store", fmt.Sprintf("%x", store), fmt.Sprintf("%x", id))
	}
	if n := binary.LittleEndian.Uint64(p[32:]); n != l.number {
		return damaged("the log's number", fmt.Sprint(l.number), fmt.Sprint(n))
	}
	l.salt = binary.LittleEndian.Uint64(p[40:])
	l.first = binary.LittleEndian.Uint64(p[48:])
	l.stamp = binary.LittleEndian.Uint64(p[56:])
	return nil
}

// appendLogRecord appends a record, filled up to whole sectors, to a buffer.
func appendLogRecord(b []byte, salt, seq, durable uint64, flags uint32, payload []byte) []byte {
	start := len(b)
	b = binary.LittleEndian.AppendUint32(b, recordMagic)
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
	b = binary.LittleEndian.AppendUint32(b, flags)
	b = binary.LittleEndian.AppendUint64(b, seq)
	b = binary.LittleEndian.AppendUint64(b, durable)
	b = binary.LittleEndian.AppendUint64(b, salt)
	b = append(b, payload...)
	binary.LittleEndian.PutUint32(b[start+4:], crc32c.Checksum(b[start+8:]))
	return append(b, make([]byte, -(len(b)-start)&(sector-1))...)
}

// A record is one commit. One without a payload is no commit but a note, behind
// the last record and overwritten by the next, of what is durable.
type record struct {
	seq     uint64
	durable uint64 // the highest sequence number known durable when it was written
	flags   uint32
	payload []byte
	size    int64 // in the file, with header and filling
}

// flagSlots: the slots that the record names became durable with it, not before.
const flagSlots = 1

// decodeRecord decodes the record that p begins with. It fails with errNone if
// there is none of a log with this salt, whole.
func decodeRecord(p []byte, salt uint64) (r record, err error) {
	if len(p) < recordHeader || binary.LittleEndian.Uint32(p) != recordMagic ||
		binary.LittleEndian.Uint64(p[32:]) != salt {
		return r, errNone
	}
	n := int64(binary.LittleEndian.Uint32(p[8:]))
	if n > maxRecord || n > int64(len(p)-recordHeader) {
		return r, errNone
	}
	if crc32c.Checksum(p[8:recordHeader+n]) != binary.LittleEndian.Uint32(p[4:]) {
		return r, errNone
	}
	return record{
		seq:     binary.LittleEndian.Uint64(p[16:]),
		durable: binary.LittleEndian.Uint64(p[24:]),
		flags:   binary.LittleEndian.Uint32(p[12:]),
		payload: p[recordHeader : recordHeader+n],
		size:    (recordHeader + n + sector - 1) &^ (sector - 1),
	}, nil
}

var errNone = errors.New("no whole record")

// A placed record is one in a log.
type placed struct {
	record
	at int64 // in the file
}

// ends reports whether the log goes on in the next file. What stands behind such
// a record is nobody's: where the last commits were torn it may be the rest of
// them, and look whole.
func (r record) ends() bool { return len(r.payload) > 0 && opKind(r.payload[0]) == opEnd }

// replay calls use with each record of the log, in order, and leaves tail at the
// end of the last. A record that is not whole ends the log if it may be one
// whose commit never returned, and so does one whose slots are not whole, which
// torn tells; if a later record says that it was durable it is damaged. Clean
// reports whether nothing but zeros and other logs' records follow, so that more
// can be appended.
func (l *logFile) replay(torn func(last []placed) int, use func(r record, at int64) error) (clean bool, err error) {
	p := make([]byte, max(0, l.size-logHeaderSize))
	if _, err := l.f.Readv([][]byte{p}, logHeaderSize); err != nil {
		return false, err
	}
	var all []placed
	next, durable := l.first, uint64(0)
	at := int64(0)
	for {
		r, err := decodeRecord(p[min(at, int64(len(p))):], l.salt)
		if err != nil {
			break
		}
		durable = max(durable, r.durable)
		if len(r.payload) == 0 {
			break
		}
		if r.seq != next {
			return false, l.damaged(at, fmt.Sprintf("record %d", next), fmt.Sprintf("record %d", r.seq))
		}
		all = append(all, placed{r, logHeaderSize + at})
		at += r.size
		next++
		if r.ends() {
			break
		}
	}
	clean = true
	all, cut := cutTorn(all, durable, torn)
	if cut {
		n := len(all)
		at, next, clean = 0, l.first, false
		if n > 0 {
			at, next = all[n-1].at+all[n-1].size-logHeaderSize, all[n-1].seq+1
		}
	}
	for _, r := range all {
		if err := use(r.record, r.at); err != nil {
			return false, err
		}
	}
	l.tail = logHeaderSize + at
	if n := len(all); n > 0 && all[n-1].ends() {
		return true, nil
	}
	for ; at+recordHeader <= int64(len(p)); at += sector {
		r, err := decodeRecord(p[at:], l.salt)
		if err == nil && r.durable >= next {
			return false, l.damaged(l.tail-logHeaderSize, fmt.Sprintf("record %d: a later one says that it is durable", next), "none")
		}
		trace := binary.LittleEndian.Uint64(p[at+32:]) == l.salt || binary.LittleEndian.Uint32(p[at:]) == recordMagic
		if trace && (err != nil || len(r.payload) > 0) {
			clean = false
		}
	}
	return clean, nil
}

// cutTorn removes from the records of a log the last ones that nothing says are
// durable, from the first one on that torn finds.
func cutTorn(all []placed, durable uint64, torn func(last []placed) int) (kept []placed, cut bool) {
	first := len(all)
	for first > 0 && all[first-1].seq > durable {
		first--
	}
	if first == len(all) || torn == nil {
		return all, false
	}
	n := first + torn(all[first:])
	return all[:n], n < len(all)
}

func (l *logFile) damaged(at int64, expected, found string) error {
	return &CorruptError{Block: -1, File: numbered(logName, l.number), Offset: logHeaderSize + at,
		What: "a log record", Expected: expected, Found: found}
}

// append writes records at the tail and makes them durable. If certain is true,
// an error has changed nothing; if not, the disk may hold the records, or not.
func (l *logFile) append(b []byte) (certain bool, err error) {
	end := l.tail + int64(len(b))
	if end > l.size {
		if err := l.grow(end); err != nil {
			return true, full(err)
		}
	}
	if _, err := l.f.Writev([][]byte{b}, l.tail); err != nil {
		return l.undo(int64(len(b))), full(err)
	}
	if err := l.f.Sync(); err != nil {
		return false, err
	}
	l.tail = end
	return true, nil
}

// note writes behind the last record that records up to seq are durable, so that
// damage of them can be told from a commit that power loss cut short. It is not
// synced: after the end of the process it is there, after a loss of power maybe.
func (l *logFile) note(seq uint64) {
	if l.tail+sector <= l.size {
		_, _ = l.f.Writev([][]byte{appendLogRecord(nil, l.salt, 0, seq, 0, nil)}, l.tail)
	}
}

// grow makes room up to end and beyond. The next Sync makes it durable, with
// what is written into it.
func (l *logFile) grow(end int64) (err error) {
	size := (end-logHeaderSize+logGrowth-1)/logGrowth*logGrowth + logHeaderSize
	defer func() {
		if err != nil {
			err = errors.Join(err, l.f.Truncate(l.size))
		}
	}()
	if err := l.f.Allocate(l.size, size-l.size); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	from := max(end, l.size)
	if _, err := l.f.Writev([][]byte{make([]byte, size-from)}, from); err != nil {
		return err
	}
	l.size = size
	return nil
}

// undo overwrites n bytes at the tail that were written in part, so that nobody
// ever takes them for records, and reports whether that is certain.
func (l *logFile) undo(n int64) bool {
	_, err := l.f.Writev([][]byte{make([]byte, n)}, l.tail)
	return err == nil && l.f.Sync() == nil
}
