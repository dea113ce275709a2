// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"slices"
	"sync"
)

// A memDisk is a directory in memory that remembers all that was done to it, so
// that a test can make the directory that a loss of power would have left at any
// moment.
type memDisk struct {
	mu     sync.Mutex
	files  map[string]*memFile
	events []event
	nextID int
	// fault, if set, is asked before something is done; its error is returned
	// instead. Of a write the first n bytes are done.
	fault func(e *event) (n int, err error)
}

type eventKind int

const (
	evWrite eventKind = iota
	evTruncate
	evPunch
	evSync
	evSyncFailed // what it was to sync is lost, though a later one succeed
	evCreate
	evRename
	evRemove
	evSyncDir
	evRead // is not recorded
)

type event struct {
	kind     eventKind
	id       int // of the file
	name, to string
	off, n   int64
	data     []byte
}

type memFile struct {
	d     *memDisk
	id    int
	name  string
	pages map[int64][]byte // by number, 4 KiB each; absent: zeros
	size  int64
}

func newMemDisk() *memDisk { return &memDisk{files: make(map[string]*memFile)} }

// moment is how much was done until now.
func (d *memDisk) moment() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.events)
}

// do records e, after fault had its say, and carries it out.
func (d *memDisk) do(e event, f *memFile) (n int, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n = len(e.data)
	if d.fault != nil {
		var done int
		if done, err = d.fault(&e); err != nil {
			if e.kind == evSync {
				e.kind = evSyncFailed
				d.events = append(d.events, e)
			}
			if e.kind != evWrite || done == 0 {
				return 0, err
			}
			n = done
			e.data = e.data[:n]
		}
	}
	d.events = append(d.events, e)
	if f != nil {
		f.apply(&e, nil)
	}
	return n, err
}

// apply carries out an event on the file; sectors that keep refuses stay as they
// are.
func (f *memFile) apply(e *event, keep func() bool) {
	switch e.kind {
	case evWrite:
		for at := 0; at < len(e.data); {
			n := min(len(e.data)-at, 512-int(e.off+int64(at))%512)
			if keep == nil || keep() {
				f.store(e.off+int64(at), e.data[at:at+n])
			}
			at += n
		}
	case evTruncate:
		if e.n < f.size {
			f.zero(e.n, f.size-e.n)
		}
		f.size = e.n
	case evPunch:
		f.zero(e.off, min(e.n, max(0, f.size-e.off)))
	}
}

func (f *memFile) store(off int64, p []byte) {
	f.size = max(f.size, off+int64(len(p)))
	page := f.pages[off/4096]
	if page == nil {
		if !slices.ContainsFunc(p, func(b byte) bool { return b != 0 }) {
			return
		}
		page = make([]byte, 4096)
		f.pages[off/4096] = page
	}
	copy(page[off%4096:], p)
}

func (f *memFile) zero(off, n int64) {
	for end := off + n; off < end; {
		n := min(end-off, 4096-off%4096)
		if n == 4096 {
			delete(f.pages, off/4096)
		} else if page := f.pages[off/4096]; page != nil {
			clear(page[off%4096 : off%4096+n])
		}
		off += n
	}
}

func (f *memFile) load(p []byte, off int64) {
	for len(p) > 0 {
		n := min(len(p), 4096-int(off%4096))
		if page := f.pages[off/4096]; page != nil {
			copy(p[:n], page[off%4096:])
		} else {
			clear(p[:n])
		}
		p, off = p[n:], off+int64(n)
	}
}

// crash returns the directory as a loss of power after the first k events may
// leave it: keep says of what was not synced whether it is there.
func (d *memDisk) crash(k int, keep func() bool) *memDisk {
	after := newMemDisk()
	byID := make(map[int]*memFile)
	pending := make(map[int][]int) // events of a file that were not synced yet
	synced := make([]bool, k)
	dirSynced := -1
	for i, e := range d.events[:k] {
		switch e.kind {
		case evWrite, evTruncate, evPunch:
			pending[e.id] = append(pending[e.id], i)
		case evSync, evSyncFailed:
			for _, i := range pending[e.id] {
				synced[i] = e.kind == evSync
			}
			delete(pending, e.id)
		case evSyncDir:
			dirSynced = i
		case evCreate:
			byID[e.id] = &memFile{d: after, id: e.id, name: e.name, pages: make(map[int64][]byte)}
		}
	}
	named := true // a file system's journal keeps the order of names
	for i := range d.events[:k] {
		e := &d.events[i]
		switch e.kind {
		case evWrite, evTruncate, evPunch:
			switch {
			case synced[i]:
				byID[e.id].apply(e, nil)
			case e.kind == evWrite:
				byID[e.id].apply(e, keep)
			case keep():
				byID[e.id].apply(e, nil)
			}
		case evCreate, evRename, evRemove:
			if named = named && (i < dirSynced || keep()); !named {
				continue
			}
			switch e.kind {
			case evCreate:
				after.files[e.name] = byID[e.id]
			case evRename:
				after.files[e.to] = after.files[e.name]
				delete(after.files, e.name)
			case evRemove:
				delete(after.files, e.name)
			}
		}
	}
	after.nextID = d.nextID
	// The image is what the next crash is of: all that it has was synced.
	for name, f := range after.files {
		after.events = append(after.events, event{kind: evCreate, id: f.id, name: name}, event{kind: evTruncate, id: f.id, n: f.size})
		for n, page := range f.pages {
			p := slices.Clone(page)
			p = p[:max(0, min(4096, f.size-n*4096))]
			after.events = append(after.events, event{kind: evWrite, id: f.id, off: n * 4096, data: p})
		}
		after.events = append(after.events, event{kind: evSync, id: f.id})
	}
	after.events = append(after.events, event{kind: evSyncDir})
	return after
}

// kill returns the directory as the end of the process alone leaves it after the
// first k events: all is there, and what was not synced may be lost yet.
func (d *memDisk) kill(k int) *memDisk {
	after := d.crash(k, func() bool { return true })
	after.events = slices.Clone(d.events[:k])
	return after
}

// keepers are ways of losing what was not synced.
func keepers(r *rand.Rand) []func() bool {
	run, kept := 0, false
	return []func() bool{
		func() bool { return true },  // the end of the process alone
		func() bool { return false }, // nothing was written back
		func() bool { return r.IntN(2) == 0 },
		func() bool { return r.IntN(50) > 0 },
		func() bool { return r.IntN(50) == 0 },
		func() bool { // runs of sectors
			if run--; run < 0 {
				run, kept = r.IntN(40), !kept
			}
			return kept
		},
	}
}

func (d *memDisk) open(name string, create bool) (file, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.files[name]
	if f == nil {
		if !create {
			return nil, fmt.Errorf("open %s: %w", name, fs.ErrNotExist)
		}
		e := event{kind: evCreate, id: d.nextID, name: name}
		if d.fault != nil {
			if _, err := d.fault(&e); err != nil {
				return nil, err
			}
		}
		f = &memFile{d: d, id: d.nextID, name: name, pages: make(map[int64][]byte)}
		d.nextID++
		d.files[name] = f
		d.events = append(d.events, e)
	}
	return f, nil
}

func (d *memDisk) list() ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var names []string
	for name := range d.files {
		names = append(names, name)
	}
	return names, nil
}

func (d *memDisk) rename(from, to string) error {
	if _, err := d.do(event{kind: evRename, name: from, to: to}, nil); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.files[from]
	f.name = to
	delete(d.files, from)
	d.files[to] = f
	return nil
}

func (d *memDisk) remove(name string) error {
	d.mu.Lock()
	there := d.files[name] != nil
	d.mu.Unlock()
	if !there {
		return fs.ErrNotExist
	}
	if _, err := d.do(event{kind: evRemove, name: name}, nil); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.files, name)
	return nil
}

func (d *memDisk) sync() error {
	_, err := d.do(event{kind: evSyncDir}, nil)
	return err
}

func (f *memFile) Readv(bufs [][]byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.d.fault != nil {
		if _, err := f.d.fault(&event{kind: evRead, id: f.id, name: f.name, off: off}); err != nil {
			return 0, err
		}
	}
	done := 0
	for _, p := range bufs {
		n := int(max(0, min(int64(len(p)), f.size-off)))
		f.load(p[:n], off)
		done += n
		off += int64(n)
		if n < len(p) {
			return done, io.EOF
		}
	}
	return done, nil
}

func (f *memFile) Writev(bufs [][]byte, off int64) (int, error) {
	return f.d.do(event{kind: evWrite, id: f.id, name: f.name, off: off, data: slices.Concat(bufs...)}, f)
}

func (f *memFile) Sync() error {
	_, err := f.d.do(event{kind: evSync, id: f.id, name: f.name}, f)
	return err
}

func (f *memFile) Size() (int64, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	return f.size, nil
}

func (f *memFile) Truncate(size int64) error {
	_, err := f.d.do(event{kind: evTruncate, id: f.id, name: f.name, n: size}, f)
	return err
}

func (f *memFile) Allocate(off, n int64) error {
	if size, _ := f.Size(); size < off+n {
		return f.Truncate(off + n)
	}
	return nil
}

func (f *memFile) Punch(off, n int64) error {
	_, err := f.d.do(event{kind: evPunch, id: f.id, name: f.name, off: off, n: n}, f)
	return err
}

func (f *memFile) StartWriteback(off, n int64) error { return nil }
func (f *memFile) WillNeed(off, n int64) error       { return nil }
func (f *memFile) Close() error                      { return nil }
