// SPDX-License-Identifier: Apache-2.0

package sharedfile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
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
//	 0  8 bytes   "MSPLEAS2"
//	 8  u64       generation, little-endian
//	16  48 bytes  the maker's boot id, padded with zeros
//	64  u32       length of the terms, little-endian
//	68            the terms
//
// The first version, "MSPLEASE", ends before the terms and has none.
const (
	leaseMagic   = "MSPLEAS2"
	leaseMagic1  = "MSPLEASE"
	leaseSize1   = 64
	leaseSize    = 68
	maxTermsSize = 4 << 10
	usualLease   = 512 // bytes that most have: each request reads one
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
// yet. The terms, at most 4 KiB, are for those who read the lease. An error that
// matches fs.ErrExist says that somebody else has, or had, a file of that name.
func TakeLease(dir *Dir, name, boot string, terms []byte) (*Lease, error) {
	if len(terms) > maxTermsSize {
		return nil, fmt.Errorf("lease of %s: terms of %d bytes, at most %d fit", name, len(terms), maxTermsSize)
	}
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
		record := make([]byte, leaseSize, leaseSize+len(terms))
		copy(record, leaseMagic)
		copy(record[16:leaseSize1], boot)
		binary.LittleEndian.PutUint32(record[leaseSize1:], uint32(len(terms)))
		_, err = f.WriteAt(append(record, terms...), 0)
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

// Chmod lets others read the lease as far as mode lets them read its file.
func (l *Lease) Chmod(mode fs.FileMode) error { return l.f.Chmod(0o600 | mode&0o444) }

// A Record is what a lease says.
type Record struct {
	Generation uint64
	Boot       string // identifies the maker's kernel
	Terms      []byte // empty: none
}

// ReadLease returns what the lease of file, which is at rel, says. An error that
// matches fs.ErrNotExist says that the file has none: nobody gives a lease to the
// file of another user.
func ReadLease(dir *Dir, rel string, file *os.File) (Record, error) {
	f, err := dir.Open(rel+LeaseSuffix, false)
	if err != nil {
		return Record{}, err
	}
	defer f.Close()
	if same, err := sameOwner(f, file); err != nil {
		return Record{}, err
	} else if !same {
		return Record{}, &fs.PathError{Op: "lease by its owner", Path: rel + LeaseSuffix, Err: fs.ErrNotExist}
	}
	return readLease(f)
}

func sameOwner(f, g *os.File) (bool, error) {
	one, err := Owner(f)
	if err != nil {
		return false, err
	}
	two, err := Owner(g)
	return err == nil && one == two, err
}

func readLease(f *os.File) (Record, error) {
	failed := func(err error) (Record, error) { return Record{}, fmt.Errorf("lease %s: %w", f.Name(), err) }
	b := make([]byte, usualLease)
	n, err := f.ReadAt(b, 0)
	if err == nil { // it is longer than most
		b = append(b, make([]byte, leaseSize+maxTermsSize-len(b))...)
		var more int
		more, err = f.ReadAt(b[n:], int64(n))
		n += more
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return failed(err)
	}
	b = b[:n]
	if len(b) < leaseSize1 {
		return failed(io.ErrUnexpectedEOF)
	}
	r := Record{
		Generation: binary.LittleEndian.Uint64(b[8:]),
		Boot:       strings.TrimRight(string(b[16:leaseSize1]), "\x00"),
	}
	switch string(b[:8]) {
	case leaseMagic1:
		return r, nil
	case leaseMagic:
	default:
		return failed(errors.New("it does not begin as one"))
	}
	if len(b) < leaseSize {
		return failed(io.ErrUnexpectedEOF)
	}
	size := binary.LittleEndian.Uint32(b[leaseSize1:])
	if uint64(size) > uint64(len(b)-leaseSize) {
		return failed(fmt.Errorf("it has %d bytes of terms, and says %d", len(b)-leaseSize, size))
	}
	r.Terms = b[leaseSize : leaseSize+size]
	return r, nil
}

// RemoveAbandoned removes the files in dir, of names that begin with prefix,
// whose makers are dead, and their leases. It returns the files' names. Files
// without a lease of their owner stay, and those whose maker runs on another
// kernel than boot, because locks may not be seen across.
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
	if isForeign(err) {
		return false, nil // another user's, or no lease of ours
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	if locked, err := TryLock(f); err != nil || !locked {
		return false, err
	}
	if record, err := readLease(f); err != nil {
		// It was made a moment ago, perhaps by a maker whose lock is not seen
		// here, or whoever made it died over it.
		if info, err := f.Stat(); err != nil || time.Since(info.ModTime()) < unrecorded {
			return false, err
		}
	} else if record.Boot != boot {
		return false, nil
	}
	if same, err := dir.Same(name+LeaseSuffix, f); err != nil || !same {
		return false, err
	}
	if is, err := isOf(dir, f, name); err != nil || !is {
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

// isOf reports whether the lease f may be that of the file name: where several
// users make files, one may have put a lease beside another's. A file that is
// gone had it.
func isOf(dir *Dir, f *os.File, name string) (bool, error) {
	file, err := dir.Open(name, false)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return true, nil
	case isForeign(err):
		return false, nil
	case err != nil:
		return false, err
	}
	defer file.Close()
	return sameOwner(f, file)
}

// isForeign reports whether err says that something is not this user's to open,
// or no file that a guest makes.
func isForeign(err error) bool {
	return errors.Is(err, fs.ErrPermission) || errors.Is(err, ErrEscape) || errors.Is(err, ErrNotRegular)
}
