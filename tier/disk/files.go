// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/memspan/memspan/internal/durable"
)

// A directory is where the tier's files are. Tests put another in its place,
// which fails, or forgets what was not synced.
type directory interface {
	open(name string, create bool) (file, error)
	list() ([]string, error)
	rename(from, to string) error
	remove(name string) error
	sync() error // which files there are
}

// A file is what *durable.File does.
type file interface {
	Readv(bufs [][]byte, off int64) (int, error)
	Writev(bufs [][]byte, off int64) (int, error)
	Sync() error
	Size() (int64, error)
	Truncate(size int64) error
	Allocate(off, n int64) error
	Punch(off, n int64) error
	StartWriteback(off, n int64) error
	WillNeed(off, n int64) error
	Close() error
}

// A realDirectory is one of the file system.
type realDirectory string

func (d realDirectory) open(name string, create bool) (file, error) {
	f, err := durable.Open(filepath.Join(string(d), name), create)
	if err != nil {
		return nil, err // not a nil *durable.File in an interface
	}
	return f, nil
}

func (d realDirectory) list() ([]string, error) {
	entries, err := os.ReadDir(string(d))
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

func (d realDirectory) rename(from, to string) error {
	return os.Rename(filepath.Join(string(d), from), filepath.Join(string(d), to))
}

func (d realDirectory) remove(name string) error { return os.Remove(filepath.Join(string(d), name)) }

func (d realDirectory) sync() error { return durable.SyncDir(string(d)) }

// The names of files. Numbered ones have a dot and the number behind.
const (
	formatName = "format"
	lockName   = "LOCK"
	blocksName = "blocks"
	indexName  = "index"
	logName    = "log"
	freshTail  = ".new" // of a file that is being written, to be renamed
)

func numbered(name string, n uint64) string { return fmt.Sprintf("%s.%d", name, n) }

// numberOf returns the number of a file called base.N, which is not 0.
func numberOf(base, name string) (n uint64, ok bool) {
	text, ok := strings.CutPrefix(name, base+".")
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(text, 10, 64)
	return n, err == nil && n > 0 && numbered(base, n) == name
}

// writeWhole makes a durable file of what it is given, all of it or nothing.
func writeWhole(dir directory, name string, parts ...[]byte) error {
	fresh := name + freshTail
	if err := dir.remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := dir.open(fresh, true)
	if err != nil {
		return err
	}
	_, err = f.Writev(parts, 0)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := dir.rename(fresh, name); err != nil {
		return err
	}
	return dir.sync()
}

// readWhole returns a file's contents.
func readWhole(dir directory, name string) ([]byte, error) {
	f, err := dir.open(name, false)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	p := make([]byte, size)
	if _, err := f.Readv([][]byte{p}, 0); err != nil {
		return nil, err
	}
	return p, nil
}
