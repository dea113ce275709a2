// SPDX-License-Identifier: Apache-2.0

package pull

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/memspan/memspan/internal/durable"
	"github.com/memspan/memspan/internal/filelock"
	"github.com/memspan/memspan/surface"
)

const (
	// What has been written since the state was saved last is pulled again
	// after a kill: so many bytes, or so much time.
	saveBytes = 16 << 20
	saveTime  = 250 * time.Millisecond
)

// ToFile pulls a range of the content, the zero Range for all that the ticket
// opens, into the file at path, which appears, or is replaced, in one step once all of it
// is there, verified and durable. Through a symbolic link it replaces what that points to;
// what is there and no plain file is refused, with fs.ErrExist.
//
// Until then it is in path.part, and what of it is there in path.part.state:
// ToFile goes on with it when called again after it has failed, was canceled
// or killed. What the state claims is believed on the machine, and until it
// restarts; afterwards it is hashed again. A path.part that is not the beginning of the same pull is
// ErrPart, another puller at work there ErrBusy, a full disk ENOSPC.
func (s *Surface) ToFile(ctx context.Context, path string, r surface.Range) error {
	w, err := s.window(r)
	if err == nil {
		err = s.readable()
	}
	if err == nil {
		err = s.toFile(ctx, path, w)
	}
	if err == nil {
		return nil
	}
	e := s.failed("pull", w, err).(*Error)
	e.Message = "to " + path
	return e
}

func (s *Surface) toFile(ctx context.Context, path string, w window) (err error) {
	if path, err = replaceable(path); err != nil {
		return err
	}
	part := path + ".part"
	lock, err := filelock.Try(part + ".lock")
	if errors.Is(err, filelock.ErrHeld) {
		return ErrBusy
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	p, err := s.openPart(ctx, part, w)
	if err != nil {
		return err
	}
	if err := s.rehash(ctx, p); err != nil {
		p.file.Close()
		return err
	}
	if err := s.fillPart(ctx, p); err != nil {
		// What is there is worth more than this error of saving it.
		_ = p.save()
		p.file.Close()
		if errors.Is(err, syscall.ENOSPC) {
			return fmt.Errorf("%w; make room and run it again: it goes on with what it has", err)
		}
		return err
	}
	if err := p.file.Close(); err != nil {
		return err
	}
	if err := os.Rename(part, path); err != nil {
		return err
	}
	return errors.Join(os.Remove(p.path), durable.SyncDir(filepath.Dir(path)))
}

// replaceable returns the file that path is or will be, behind links: it is not for a pull
// to put a file in the place of a device, nor of a link to something.
func replaceable(path string) (string, error) {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return path, nil
	case err != nil:
		return "", err
	case info.Mode()&fs.ModeSymlink != 0:
		return behind(path)
	case !info.Mode().IsRegular():
		return "", notPlain(path)
	}
	return path, nil
}

// behind returns the plain file that a link leads to, if the system lets this process follow
// it to write there: in a directory that all may write to, a link may be a trap.
func behind(link string) (string, error) {
	if info, err := os.Stat(link); err != nil || !info.Mode().IsRegular() {
		return "", cmp.Or(err, notPlain(link))
	}
	f, err := os.OpenFile(link, os.O_WRONLY, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	path, err := filepath.EvalSymlinks(link)
	if err != nil {
		return "", err
	}
	meant, err := f.Stat()
	if err != nil {
		return "", err
	}
	if info, err := os.Lstat(path); err != nil || !os.SameFile(info, meant) {
		return "", cmp.Or(err, notPlain(link))
	}
	return path, nil
}

func notPlain(path string) error {
	return fmt.Errorf("%s is there and no plain file: %w", path, fs.ErrExist)
}

// A part is a file that is being made.
type part struct {
	file *durable.File
	path string // of the state

	writerSink

	mu    sync.Mutex // guards what follows
	state partState
	// believed: what the state says is in the file is there.
	believed bool
	dirty    int64 // bytes written since the state was saved
	saved    time.Time
}

// openPart opens the partial file at path for w, with what is there already.
func (s *Surface) openPart(ctx context.Context, path string, w window) (*part, error) {
	m := s.Header()
	here, err := surface.ThisMachine()
	if err != nil { // nothing is believed then
		here = surface.Machine{}
	}
	p := &part{path: path + ".state", saved: time.Now()}
	p.state = partState{id: m.ID, boot: here, root: s.ticket.Root, chunk: m.Chunk, window: w}
	p.state.have.base, _ = w.chunks(m.Chunk)
	text, err := os.ReadFile(p.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	switch _, missing := os.Lstat(path); {
	case missing != nil:
		// The state first: without, the file would be nobody's.
		if err := p.save(); err != nil {
			return nil, err
		}
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o666)
		if err != nil {
			return nil, err
		}
		f.Close()
	case err != nil:
		return nil, fmt.Errorf("%s is there without what a pull keeps beside it; remove it: %w", path, ErrPart)
	default:
		old, err := parseState(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w; remove it and %s: %w", p.path, err, path, ErrPart)
		}
		if why := old.differs(&p.state); why != "" {
			return nil, fmt.Errorf("%s is the beginning of %s; finish that, or remove it and %s: %w", path, why, p.path, ErrPart)
		}
		p.state.have, p.believed = old.have, here != (surface.Machine{}) && old.boot == here
	}
	if p.file, err = durable.Open(path, false); err != nil {
		return nil, err
	}
	p.writerSink = writerSink{fileWriter{p.file}, w, m.Chunk}
	return p, nil
}

// differs says of what else p is the state, if it is.
func (p *partState) differs(now *partState) string {
	switch {
	case p.id != now.id:
		return fmt.Sprintf("surface %v", p.id)
	case p.chunk != now.chunk || p.root != nil && now.root != nil && *p.root != *now.root:
		return "another state of this surface"
	case p.window.off != now.window.off || p.window.end != now.window.end:
		return fmt.Sprintf("its bytes [%d, %d)", p.window.off, p.window.end)
	}
	return ""
}

// fillPart brings what is missing and makes the file as it shall be.
func (s *Surface) fillPart(ctx context.Context, p *part) error {
	w := p.writerSink.window
	n, known, err := s.settled(w)
	if err != nil {
		return err
	}
	if known {
		if err := p.file.Truncate(n); err != nil {
			return err
		}
		if err := s.preallocate(p, n); err != nil {
			return err
		}
	}
	first, end := w.chunks(p.chunk)
	p.mu.Lock()
	have := p.state.have.clone()
	p.mu.Unlock()
	if err := s.bring(ctx, p, first, end, have); err != nil {
		return err
	}
	if n, _, err = s.settled(w); err != nil {
		return err
	}
	if err := p.file.Truncate(n); err != nil {
		return err
	}
	return p.file.Sync()
}

// preallocate takes the room for the chunks of n bytes that are to be written,
// and leaves holes where zeros are.
func (s *Surface) preallocate(p *part, n int64) error {
	m := s.layout()
	if s.direct != nil || int64(len(m.Digests)) < m.Count() {
		return nil
	}
	w := p.writerSink.window
	first, end := m.ChunksOf(w.off, n)
	take := func(from, to int64) error { // chunks
		a, b := max(from*m.Chunk, w.off)-w.off, min(to*m.Chunk-w.off, n)
		if a >= b {
			return nil
		}
		err := p.file.Allocate(a, b-a)
		if errors.Is(err, errors.ErrUnsupported) {
			return nil
		}
		return err
	}
	from := first
	for i := first; i < end; i++ {
		if p.state.have.has(i) || s.zeros.Zero(&m, i) {
			if err := take(from, i); err != nil {
				return err
			}
			from = i + 1
		}
	}
	return take(from, end)
}

// put writes a chunk and notes that it is there.
func (p *part) put(i int64, b []byte) error {
	if err := p.writerSink.put(i, b); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state.have.set(i)
	if p.dirty += int64(len(b)); p.dirty < saveBytes && time.Since(p.saved) < saveTime {
		return nil
	}
	return p.saveLocked()
}

func (p *part) save() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.saveLocked()
}

func (p *part) saveLocked() error {
	p.dirty, p.saved = 0, time.Now()
	return p.state.save(p.path)
}

// fileWriter writes to a durable.File.
type fileWriter struct{ f *durable.File }

func (w fileWriter) WriteAt(b []byte, off int64) (int, error) { return w.f.Writev([][]byte{b}, off) }

// rehash forgets what a partial file does not have although its state says so,
// unless that is to be believed: the machine may have stopped before all was
// written.
func (s *Surface) rehash(ctx context.Context, p *part) error {
	claimed, last := p.state.have, int64(-1)
	for i := claimed.base; i < claimed.end(); i++ {
		if claimed.has(i) {
			last = i
		}
	}
	size, err := p.file.Size()
	if err != nil || last < 0 {
		return err
	}
	w, m := p.writerSink.window, s.Header()
	if p.believed && size >= min((last+1)*p.chunk, m.Size, w.end)-w.off {
		return nil
	}
	p.state.have = bitset{base: claimed.base}
	if s.direct != nil { // copying is as fast
		return nil
	}
	// Of a surface that is being written the source tells as much as there is.
	if err := s.until(ctx, func() (bool, error) {
		return s.usableLocked() > last || s.rooted, s.err
	}); err != nil {
		return err
	}
	m = s.layout()
	var next atomic.Int64
	next.Store(claimed.base)
	var work sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		work.Go(func() {
			buf := make([]byte, m.Chunk)
			var sealed []byte
			for i := next.Add(1) - 1; i <= min(last, m.Count()-1) && ctx.Err() == nil; i = next.Add(1) - 1 {
				at, n := m.ContentRange(i)
				if !claimed.has(i) || at < w.off || at+n > w.end {
					continue // of a part of a chunk there is no digest
				}
				if _, err := p.file.Readv([][]byte{buf[:n]}, at-w.off); err != nil {
					continue // it is pulled again
				}
				stored := buf[:n]
				if m.Encrypted {
					sealed = s.sealer.Seal(sealed[:0], i, stored)
					stored = sealed
				}
				if surface.Sum(stored) == m.Digests[i] {
					p.mu.Lock()
					p.state.have.set(i)
					p.mu.Unlock()
				}
			}
		})
	}
	work.Wait()
	return context.Cause(ctx)
}
