// SPDX-License-Identifier: Apache-2.0

package pull

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"
)

// FS returns a file system whose files, in its one directory, are the given
// surfaces by name, which stay the caller's. Files can be read concurrently; they are also
// io.ReaderAt and io.Seeker. The length of one that is still being written is what it is so far,
// and reading goes on to its end. It fails if a name is none of a file:
// fs.ValidPath, and no slash in it.
func FS(surfaces map[string]*Surface) (fs.FS, error) {
	for name := range surfaces {
		if !fs.ValidPath(name) || name == "." || strings.Contains(name, "/") {
			return nil, fmt.Errorf("a file of surfaces called %q: %w", name, fs.ErrInvalid)
		}
	}
	return files(maps.Clone(surfaces)), nil
}

type files map[string]*Surface

// Open implements fs.FS.
func (f files) Open(name string) (fs.File, error) {
	if name == "." {
		return &directory{files: f}, nil
	}
	info, err := f.Stat(name)
	if err != nil {
		err.(*fs.PathError).Op = "open"
		return nil, err
	}
	s := f[name]
	ctx, cancel := context.WithCancel(s.ctx)
	return &file{Reader: s.Reader(ctx), info: info, cancel: cancel}, nil
}

// Stat implements fs.StatFS.
func (f files) Stat(name string) (fs.FileInfo, error) {
	s, ok := f[name]
	switch {
	case name == ".":
		return info{name: ".", mode: fs.ModeDir | 0o555}, nil
	case !fs.ValidPath(name):
		return nil, &fs.PathError{Op: "stat", Path: name, Err: fs.ErrInvalid}
	case !ok:
		return nil, &fs.PathError{Op: "stat", Path: name, Err: fs.ErrNotExist}
	}
	size, _ := s.Size()
	return info{name: name, size: size, mode: 0o444, time: s.Header().Created}, nil
}

// ReadDir implements fs.ReadDirFS.
func (f files) ReadDir(name string) ([]fs.DirEntry, error) {
	if name != "." {
		_, err := f.Stat(name)
		if err == nil {
			err = &fs.PathError{Err: errors.New("not a directory")}
		}
		bad := err.(*fs.PathError)
		bad.Op, bad.Path = "readdir", name
		return nil, bad
	}
	var entries []fs.DirEntry
	for _, name := range slices.Sorted(maps.Keys(f)) {
		info, err := f.Stat(name)
		if err != nil {
			return nil, err
		}
		entries = append(entries, fs.FileInfoToDirEntry(info))
	}
	return entries, nil
}

// A file is a surface that was opened by a name.
type file struct {
	*Reader
	info   fs.FileInfo
	cancel context.CancelFunc
}

func (f *file) Stat() (fs.FileInfo, error) { return f.info, nil }

// ReadAt implements io.ReaderAt.
func (f *file) ReadAt(p []byte, off int64) (int, error) { return f.s.ReadAtContext(f.ctx, p, off) }

// Close ends reads that are under way.
func (f *file) Close() error {
	f.cancel()
	return nil
}

type directory struct {
	files files
	at    int
}

func (d *directory) Stat() (fs.FileInfo, error) { return d.files.Stat(".") }
func (d *directory) Close() error               { return nil }

func (d *directory) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: ".", Err: errors.New("is a directory")}
}

// ReadDir implements fs.ReadDirFile.
func (d *directory) ReadDir(n int) ([]fs.DirEntry, error) {
	entries, err := d.files.ReadDir(".")
	if err != nil {
		return nil, err
	}
	entries = entries[min(d.at, len(entries)):]
	if n > 0 {
		if len(entries) == 0 {
			return nil, io.EOF
		}
		entries = entries[:min(n, len(entries))]
	}
	d.at += len(entries)
	return entries, nil
}

type info struct {
	name string
	size int64
	mode fs.FileMode
	time time.Time
}

func (i info) Name() string       { return i.name }
func (i info) Size() int64        { return i.size }
func (i info) Mode() fs.FileMode  { return i.mode }
func (i info) ModTime() time.Time { return i.time }
func (i info) IsDir() bool        { return i.mode.IsDir() }
func (i info) Sys() any           { return nil }
