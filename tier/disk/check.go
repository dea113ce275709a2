// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// A Report is what a check has found.
type Report struct {
	Spans  int   // durable ones
	Blocks int   // of them that have bytes
	Bytes  int64 // of the blocks that were read and verified
	Faults []Fault
}

// A Fault is damage that a check has found.
type Fault struct {
	CorruptError
	// Repair is what mends it, or what is lost.
	Repair string
	// Repaired: that was done.
	Repaired bool
}

func (r *Report) add(err error, repair string) {
	f := Fault{CorruptError: CorruptError{Block: -1, What: "reading", Found: err.Error()}, Repair: repair}
	var corrupt *CorruptError
	if errors.As(err, &corrupt) {
		f.CorruptError = *corrupt
	}
	r.Faults = append(r.Faults, f)
}

// What is to be done about damage.
const (
	repairBlock   = "the block becomes a known loss: write it anew, or accept the loss"
	repairIndex   = "the index is rebuilt from the blocks' headers and the log"
	repairFormat  = "the file is written anew"
	repairHeader  = "the header is known from the records"
	repairUnknown = "what only it had is lost, and not known: blocks may be older than they were"
	repairCovered = "the index has it; blocks whose bytes were there are reported"
	repairOnline  = "stop the daemon and run memspan fsck with --repair"
)

// Check reads and verifies all that is durable, while the tier is in use. It
// changes nothing, and fails only if it cannot go on. Blocks that are deleted or
// changed meanwhile count as they were or as they are.
func (t *Tier) Check(ctx context.Context) (Report, error) {
	var r Report
	if p, err := readWhole(t.dir, formatName); err != nil {
		r.add(err, repairOnline)
	} else if _, err := decodeFormat(p); err != nil {
		r.add(err, repairOnline)
	}
	if err := t.checkIndex(&r); err != nil {
		return r, fmt.Errorf("tier/disk: check %s: %w", t.dirName, err)
	}
	t.checkLogs(&r)
	err := t.checkBlocks(ctx, &r, func(sp *spanState, b int, err error) { r.add(err, repairOnline) })
	if err != nil {
		return r, fmt.Errorf("tier/disk: check %s: %w", t.dirName, err)
	}
	return r, nil
}

// checkIndex verifies the newest index. A checkpoint may remove it meanwhile:
// then there is a newer one.
func (t *Tier) checkIndex(r *Report) error {
	for {
		f, err := listFiles(t.dir)
		if err != nil {
			return err
		}
		if len(f.indexes) == 0 {
			r.add(&CorruptError{Block: -1, File: indexName, What: "the index", Expected: "a file", Found: "none"}, repairOnline)
			return nil
		}
		number := f.indexes[len(f.indexes)-1]
		p, err := readWhole(t.dir, numbered(indexName, number))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			_, err = decodeIndex(p, t.store, number)
		}
		if err != nil {
			r.add(err, repairOnline)
		}
		return nil
	}
}

// checkLogs verifies the logs up to where they are durable now.
func (t *Tier) checkLogs(r *Report) {
	t.logTurn <- struct{}{}
	var logs []logFile
	t.mu.RLock()
	for _, l := range t.logs {
		logs = append(logs, logFile{number: l.number, f: l.f, tail: l.tail})
	}
	t.mu.RUnlock()
	<-t.logTurn
	for i := range logs {
		l := &logs[i]
		tail := l.tail
		err := l.readHeader(t.store)
		if err == nil {
			l.size = tail
			_, err = l.replay(nil, func(record, int64) error { return nil })
		}
		if err == nil && l.tail < tail {
			err = l.damaged(l.tail-logHeaderSize, "a record", "none that is whole")
		}
		if err != nil && !errors.Is(err, os.ErrClosed) { // else a checkpoint was faster
			r.add(err, repairOnline)
		}
	}
}

// checkBlocks reads all blocks, and calls damaged for those it cannot read.
func (t *Tier) checkBlocks(ctx context.Context, r *Report, damaged func(sp *spanState, b int, err error)) error {
	var spans []*spanState
	t.mu.RLock()
	for _, sp := range t.state.spans {
		if sp.known {
			spans = append(spans, sp)
		}
	}
	t.mu.RUnlock()
	r.Spans = len(spans)
	buf := t.buffer()
	defer t.putBuffer(buf)
	for _, sp := range spans {
		for b := range sp.blocks() {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if c, err := t.contentOf(sp, b); err != nil || c.empty() {
				continue
			}
			r.Blocks++
			n := sp.blockLen(b)
			err := t.readBlock(ctx, sp, b, 0, buf[:n])
			switch {
			case err == nil:
				r.Bytes += n
			case ctx.Err() != nil || errors.Is(err, errGone):
			default:
				damaged(sp, b, err)
			}
		}
	}
	return nil
}

// Check verifies all that a directory holds durably, while no tier is open on
// it: it fails with ErrInUse if one is. If repair is set it mends what can be
// mended, so that the directory opens and no bad byte is read: a lost index is
// rebuilt, a damaged block becomes a known loss (see [BlockState]). Without, the
// directory stays as it is. The report has every fault, mended or not; the error
// is why the check could not be done.
func Check(ctx context.Context, dir string, repair bool) (Report, error) {
	fail := func(r Report, err error) (Report, error) {
		return r, fmt.Errorf("tier/disk: check %s: %w", dir, err)
	}
	if _, err := os.Stat(dir); err != nil {
		return fail(Report{}, err)
	}
	lock, err := lockDirectory(dir)
	if err != nil {
		return fail(Report{}, err)
	}
	r, err := checkDirectory(ctx, realDirectory(dir), repair)
	if err := errors.Join(err, lock.Close()); err != nil {
		return fail(r, err)
	}
	return r, nil
}

// checkDirectory is Check for a directory that nobody else uses.
func checkDirectory(ctx context.Context, dir directory, repair bool) (Report, error) {
	s := &salvage{t: newTier(dir, Config{}), lost: make(map[place]uint64)}
	err := s.load(ctx)
	if err == nil {
		err = s.t.checkBlocks(ctx, &s.r, func(sp *spanState, b int, err error) {
			s.r.add(err, repairBlock)
			s.lost[place{sp.rec.ID, b}] = 0
		})
	}
	if err == nil && repair && (len(s.r.Faults) > 0) {
		if err = s.repair(ctx); err == nil {
			for i := range s.r.Faults {
				s.r.Faults[i].Repaired = true
			}
		}
	}
	return s.r, errors.Join(err, s.t.closeFiles())
}
