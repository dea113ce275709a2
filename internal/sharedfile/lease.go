// SPDX-License-Identifier: Apache-2.0

package sharedfile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"
)

// LeaseSuffix is what a lease's name has more than the name of its file.
const LeaseSuffix = ".lease"

// A lease is a small file beside the file it is for, locked while the maker of
// that one lives:
//
//	 0  8 bytes   "MSPLEASE"
//	 8  u64       generation, little-endian
//	16  48 bytes  the maker's boot id, padded with zeros
const (
	leaseMagic = "MSPLEASE"
	leaseSize  = 64
)

// unrecorded is how long a lease may be without its record, and no longer.
const unrecorded = time.Minute

// A Lease says that a file's maker lives. It is not safe for concurrent use.
type Lease struct {
	dir  *Dir
	name string // of the file it is for
	f    *os.File
}

// TakeLease makes and locks the lease of the file name, which need not exist
// yet. An error that matches fs.ErrExist says that somebody else has, or had,
// a file of that name.
func TakeLease(dir *Dir, name, boot string) (*Lease, error) {
	f, err := dir.Create(name + LeaseSuffix)
	if err != nil {
		return nil, err
	}
	l := &Lease{dir, name, f}
	// Until it is locked it looks abandoned, and may be removed.
	locked, err := TryLock(f)
	if err == nil && locked {
		locked, err = dir.Same(name+LeaseSuffix, f)
	}
	if err == nil && !locked {
		f.Close()
		return nil, &fs.PathError{Op: "lock", Path: name + LeaseSuffix, Err: fs.ErrExist}
	}
	if err == nil {
		var record [leaseSize]byte
		copy(record[:], leaseMagic)
		copy(record[16:], boot)
		_, err = f.WriteAt(record[:], 0)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// SetGeneration writes the file's generation.
func (l *Lease) SetGeneration(generation uint64) error {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], generation)
	_, err := l.f.WriteAt(b[:], int64(len(leaseMagic)))
	return err
}

// Close removes the lease and unlocks it. The file it is for goes first.
func (l *Lease) Close() error {
	return errors.Join(l.dir.Remove(l.name+LeaseSuffix), l.f.Close())
}

// Generation returns the generation of the file at rel, as its lease has it. An
// error that matches fs.ErrNotExist says that the file has no lease.
func Generation(dir *Dir, rel string) (uint64, error) {
	f, err := dir.Open(rel+LeaseSuffix, false)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	generation, _, err := readLease(f)
	return generation, err
}

func readLease(f *os.File) (generation uint64, boot string, err error) {
	var record [leaseSize]byte
	if _, err := f.ReadAt(record[:], 0); err != nil {
		return 0, "", fmt.Errorf("lease %s: %w", f.Name(), err)
	}
	if string(record[:8]) != leaseMagic {
		return 0, "", fmt.Errorf("lease %s: it does not begin as one", f.Name())
	}
	return binary.LittleEndian.Uint64(record[8:]), strings.TrimRight(string(record[16:]), "\x00"), nil
}

// RemoveAbandoned removes the files in dir, of names that begin with prefix,
// whose makers are dead, and their leases. It returns the files' names. Files
// without a lease stay, and those whose maker runs on another kernel than boot,
// because locks may not be seen across.
func RemoveAbandoned(dir *Dir, prefix, boot string) (removed []string, err error) {
	names, err := dir.Names(prefix)
	if err != nil {
		return nil, err
	}
	var failed []error
	for _, lease := range names {
		name, ok := strings.CutSuffix(lease, LeaseSuffix)
		if !ok {
			continue
		}
		done, err := removeAbandoned(dir, name, boot)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // its maker was faster
			failed = append(failed, err)
		}
		if done {
			removed = append(removed, name)
		}
	}
	return removed, errors.Join(failed...)
}

func removeAbandoned(dir *Dir, name, boot string) (done bool, err error) {
	f, err := dir.Open(name+LeaseSuffix, true)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, ErrEscape) || errors.Is(err, ErrNotRegular) {
		return false, nil // another user's, or no lease of ours
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	if locked, err := TryLock(f); err != nil || !locked {
		return false, err
	}
	if _, from, err := readLease(f); err != nil {
		// It was made a moment ago, perhaps by a maker whose lock is not seen
		// here, or whoever made it died over it.
		if info, err := f.Stat(); err != nil || time.Since(info.ModTime()) < unrecorded {
			return false, err
		}
	} else if from != boot {
		return false, nil
	}
	if same, err := dir.Same(name+LeaseSuffix, f); err != nil || !same {
		return false, err
	}
	// The file first: while its lease is there nobody makes another.
	if err := dir.Remove(name); err == nil {
		done = true
	} else if !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	return done, dir.Remove(name + LeaseSuffix)
}
