// SPDX-License-Identifier: Apache-2.0

package surface

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/zeebo/blake3"
	"golang.org/x/sync/errgroup"
)

const (
	piece      = 256 << 10 // bytes that are copied, and hashed while they are warm
	inline     = 64 << 10  // bytes that are hashed at once rather than by others
	batch      = 1 << 20   // bytes of small chunks that are one piece of work
	maxExtents = 64 << 10  // of a sparse source; what is behind is taken for data
)

func outOfMemory(err error) bool {
	return errors.Is(err, syscall.ENOMEM) || errors.Is(err, syscall.ENOSPC)
}

func (e *Exposure) failed(op string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s surface %v: %w", op, e.header.ID, err)
}

// Append brings the next stored bytes. Each chunk is there for pullers as soon as
// it is whole and hashed. When ctx ends, or there is no room, what was
// brought stays, and the error does not say how much: fail the surface, or
// let [Exposure.Appended] tell where to go on.
func (e *Exposure) Append(ctx context.Context, p []byte) error {
	return e.failed("append to", e.append(ctx, p))
}

func (e *Exposure) append(ctx context.Context, p []byte) error {
	if err := e.begin(); err != nil {
		return err
	}
	defer e.done()
	e.writing.Lock()
	defer e.writing.Unlock()
	if err := e.open(); err != nil {
		return err
	}
	for len(p) > 0 {
		n := min(int64(len(p)), batch)
		if err := e.prepare(e.pos, n); err != nil {
			return err
		}
		memfd.Copy(e.mem.Writable()[e.pos:e.pos+n], p[:n])
		e.copied.Add(n)
		e.pos += n
		p = p[n:]
		if err := e.hash(ctx, e.pos/e.header.StoredChunk()); err != nil {
			return err
		}
	}
	return nil
}

// Appended returns the number of stored bytes that were brought.
func (e *Exposure) Appended() int64 {
	e.writing.Lock()
	defer e.writing.Unlock()
	return e.pos
}

// open fails unless bytes can be brought in order; e.writing is held.
func (e *Exposure) open() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.reason != nil:
		return e.reason
	case e.state != Open || e.replica != nil:
		return fmt.Errorf("%w: it is sealed", ErrState)
	}
	return nil
}

// prepare has memory for the stored bytes [off, off+n), which follow those there are.
func (e *Exposure) prepare(off, n int64) error {
	end := off + n
	if end > e.mem.Limit() {
		if !e.known {
			return &RoomError{limitSystem, end, e.mem.Limit()}
		}
		return fmt.Errorf("%w: %d bytes, and the surface was to store %d", ErrRange, end, e.mem.Limit())
	}
	if end <= e.ready {
		if !e.known { // the file ends where its bytes do
			return e.mem.Grow(end)
		}
		return nil
	}
	page := int64(os.Getpagesize())
	ready := (end + page - 1) / page * page
	if !e.known {
		if err := e.charge(ready - e.ready); err != nil {
			return err
		}
		if err := e.mem.Grow(end); err != nil {
			return err
		}
	}
	if err := e.populate(e.ready, end-e.ready); err != nil {
		return err
	}
	e.ready = ready
	return nil
}

// hash has the whole chunks before end hashed, and published.
func (e *Exposure) hash(ctx context.Context, end int64) error {
	chunk := e.header.StoredChunk()
	if !e.known && end > e.hashed {
		e.mu.Lock()
		e.header.Size = end * e.header.Chunk
		e.page.resize(e.header.Size, end)
		e.mu.Unlock()
	}
	for e.hashed < end {
		first, stop := e.hashed, min(end, e.hashed+max(1, batch/chunk))
		if (stop-first)*chunk <= inline {
			e.hashed = stop
			e.hashChunks(first, stop)
			continue
		}
		if err := e.store.slot(ctx); err != nil {
			return err
		}
		e.hashed = stop
		e.mu.Lock()
		e.holds++ // beside the operation's, which ends sooner
		e.mu.Unlock()
		e.store.ops.Add(1)
		e.hashing.Add(1)
		go func() { // Seal waits for it, and the store's Close
			defer e.done()
			defer e.hashing.Done()
			e.hashChunks(first, stop)
			<-e.store.slots
		}()
	}
	return nil
}

func (e *Exposure) hashChunks(first, stop int64) {
	chunk := e.header.StoredChunk()
	for i := first; i < stop; i++ {
		e.publish(i, Sum(e.mem.Bytes()[i*chunk:(i+1)*chunk]))
	}
}

// CopyFile brings all stored bytes from file, which is not to be changed
// meanwhile: if it is, as far as its size and times tell, the surface fails with ErrChanged.
// Each byte is copied once, by all processors; holes stay holes. The file's
// size is to be what the surface stores.
func (e *Exposure) CopyFile(ctx context.Context, file *os.File) error {
	return e.failed("copy "+file.Name()+" to", e.copyFile(ctx, file, file.ReadAt))
}

func (e *Exposure) copyFile(ctx context.Context, file *os.File, readAt func([]byte, int64) (int, error)) error {
	before, err := settled(ctx, file)
	if err != nil {
		return err
	}
	if !before.Mode().IsRegular() {
		return fmt.Errorf("%w: it is no file", ErrState)
	}
	size := before.Size()
	if !e.known || size != e.mem.Limit() {
		return fmt.Errorf("%w: it has %d bytes, and the surface is to store %d", ErrChanged, size, e.mem.Limit())
	}
	data, err := memfd.Data(file, size, maxExtents)
	if err != nil {
		return err
	}
	err = e.copyFrom(ctx, data, func(p []byte, off int64) error {
		if _, err := readAt(p, off); err != nil {
			if errors.Is(err, io.EOF) {
				return fmt.Errorf("%w: it was cut short", ErrChanged)
			}
			return err
		}
		return nil
	})
	if err != nil {
		return err
	}
	after, err := file.Stat()
	if err == nil && (after.Size() != size || !after.ModTime().Equal(before.ModTime()) || !changeTime(after).Equal(changeTime(before))) {
		err = ErrChanged
		e.Fail(err) // chunks of it were given out
	}
	return err
}

// granularity is more than the time in which a file can change twice without its
// times telling, as kernels do that do not count finer when they are asked.
const granularity = 10 * time.Millisecond

// settled returns the file's size and times, such that a change from now on changes them.
func settled(ctx context.Context, file *os.File) (os.FileInfo, error) {
	for waited := false; ; waited = true {
		info, err := file.Stat()
		if err != nil {
			return nil, err
		}
		age := time.Since(changeTime(info))
		if age < 0 || age > granularity {
			return info, nil
		}
		if waited {
			return nil, fmt.Errorf("%w: it changes all the time", ErrChanged)
		}
		select {
		case <-time.After(granularity - age + 1):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// CopyFrom brings all stored bytes from read, which fills p with those from off on,
// and is called by several goroutines at once. data are the parts that are not
// zeros, ascending ranges {offset, end}; the others are not read and take no
// memory. nil: all is data. An error of read fails the surface.
func (e *Exposure) CopyFrom(ctx context.Context, data [][2]int64, read func(p []byte, off int64) error) error {
	if data == nil && e.known {
		data = [][2]int64{{0, e.mem.Limit()}}
	}
	return e.failed("copy to", e.copyFrom(ctx, data, read))
}

func (e *Exposure) copyFrom(ctx context.Context, data [][2]int64, read func(p []byte, off int64) error) error {
	if err := e.begin(); err != nil {
		return err
	}
	defer e.done()
	e.writing.Lock()
	defer e.writing.Unlock()
	if err := e.open(); err != nil {
		return err
	}
	if !e.known || e.pos != 0 {
		return fmt.Errorf("%w: a copy brings all bytes of a size that is known", ErrState)
	}
	data, err := e.clean(data)
	if err != nil {
		return err
	}
	if err := e.chargeData(data); err != nil {
		return err
	}
	e.setData(data)
	memory := e.mem.Writable()
	err = e.eachChunk(ctx, func(h *blake3.Hasher, i, off, end int64) error {
		for _, d := range e.dataIn(off, end) {
			if err := e.populate(d[0], d[1]-d[0]); err != nil {
				return err
			}
		}
		d, err := e.digest(h, i, func(p []byte, off int64) error {
			e.copied.Add(int64(len(p)))
			return read(memory[off:off+int64(len(p))], off)
		})
		if err == nil {
			e.publish(i, d)
		}
		return err
	})
	if err != nil {
		e.Fail(err)
		return err
	}
	e.pos, e.hashed = e.mem.Limit(), e.header.Count()
	return nil
}

// clean checks that data are ascending ranges, and drops empty ones.
func (e *Exposure) clean(data [][2]int64) ([][2]int64, error) {
	kept, at := make([][2]int64, 0, len(data)), int64(0)
	for _, d := range data {
		if d[0] < at || d[1] < d[0] || d[1] > e.mem.Limit() {
			return nil, fmt.Errorf("%w: data in [%d, %d) of %d", ErrFormat, d[0], d[1], e.mem.Limit())
		}
		if at = d[1]; d[0] < d[1] {
			kept = append(kept, d)
		}
	}
	return kept, nil
}

// chargeData takes room for what is not charged yet of the pages of data, and gives
// back what was charged for holes.
func (e *Exposure) chargeData(data [][2]int64) error {
	page := int64(os.Getpagesize())
	need, last := int64(0), int64(0)
	for _, d := range data {
		begin, end := max(d[0]/page*page, last), (d[1]+page-1)/page*page
		if end > begin {
			need += end - begin
			last = end
		}
	}
	e.mu.Lock()
	less := e.charged - need
	if less > 0 {
		e.charged -= less
		e.unbacked -= less
	}
	e.mu.Unlock()
	if less > 0 {
		e.store.room.give(less, less)
		return nil
	}
	return e.charge(-less)
}

// setData notes where there is data, for who hashes and reads.
func (e *Exposure) setData(data [][2]int64) {
	if len(data) == 1 && data[0] == [2]int64{0, e.header.StoredSize()} {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.data = data
	count := e.header.Count()
	e.holes = make([]uint64, (count+63)/64)
	next := 0 // the first range that ends behind the chunk's beginning
	for i := range count {
		off, n := e.header.StoredRange(i)
		for next < len(data) && data[next][1] <= off {
			next++
		}
		if next == len(data) || data[next][0] > off || data[next][1] < off+n {
			e.holes[i/64] |= 1 << (i % 64)
		}
	}
}

// eachChunk calls f for each chunk, with all processors.
func (e *Exposure) eachChunk(ctx context.Context, f func(h *blake3.Hasher, i, off, end int64) error) error {
	var next atomic.Int64
	count := e.header.Count()
	step := max(1, batch/e.header.StoredChunk())
	group, ctx := errgroup.WithContext(ctx)
	for range min(int64(runtime.GOMAXPROCS(0)), (count+step-1)/step) {
		group.Go(func() error {
			h := blake3.New()
			for {
				first := next.Add(step) - step
				if first >= count {
					return nil
				}
				if err := e.ended(); err != nil {
					return err
				}
				for i := first; i < min(first+step, count); i++ {
					if ctx.Err() != nil {
						return context.Cause(ctx)
					}
					off, n := e.header.StoredRange(i)
					if err := f(h, i, off, off+n); err != nil {
						return err
					}
				}
			}
		})
	}
	return group.Wait()
}

// dataIn returns the parts of [off, end) that hold data.
func (e *Exposure) dataIn(off, end int64) [][2]int64 {
	if e.holes == nil {
		return [][2]int64{{off, end}}
	}
	lo, hi := 0, len(e.data)
	for lo < hi {
		if mid := (lo + hi) / 2; e.data[mid][1] <= off {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	var in [][2]int64
	for ; lo < len(e.data) && e.data[lo][0] < end; lo++ {
		in = append(in, [2]int64{max(off, e.data[lo][0]), min(end, e.data[lo][1])})
	}
	return in
}

// digest returns chunk i's, without touching its holes. fill is called for each
// piece of data before it is hashed.
func (e *Exposure) digest(h *blake3.Hasher, i int64, fill func(p []byte, off int64) error) (d Digest, err error) {
	off, n := e.header.StoredRange(i)
	end := off + n
	data := e.dataIn(off, end)
	if len(data) == 0 {
		return e.store.zeros.Digest(n), nil
	}
	memory, zero := e.mem.Bytes(), new(zeros)
	h.Reset()
	hashZeros := func(n int64) {
		for ; n > 0; n -= int64(len(zero)) {
			h.Write(zero[:min(n, int64(len(zero)))])
		}
	}
	for _, r := range data {
		hashZeros(r[0] - off)
		for off = r[0]; off < r[1]; {
			part := memory[off:min(off+piece, r[1])]
			if err := fill(part, off); err != nil {
				return d, err
			}
			h.Write(part)
			off += int64(len(part))
		}
	}
	hashZeros(end - off)
	h.Sum(d[:0])
	return d, nil
}

// Seal ends bringing: there is a last chunk, the memory can be changed by nobody any
// more, and the manifest is final. It fails with ErrState if bytes are missing. It is
// idempotent.
func (e *Exposure) Seal(ctx context.Context) (*Manifest, error) {
	m, err := e.seal(ctx)
	return m, e.failed("seal", err)
}

func (e *Exposure) seal(ctx context.Context) (*Manifest, error) {
	if err := e.begin(); err != nil {
		return nil, err
	}
	defer e.done()
	e.writing.Lock()
	defer e.writing.Unlock()
	if m := e.Manifest(); m != nil {
		return m, nil
	}
	if err := e.open(); err != nil {
		return nil, err
	}
	if e.known && e.pos != e.mem.Limit() {
		return nil, fmt.Errorf("%w: %d of %d bytes are missing", ErrState, e.mem.Limit()-e.pos, e.mem.Limit())
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err := e.sealLast(); err != nil {
		return nil, err
	}
	e.hashing.Wait()
	if err := e.mem.Freeze(); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.reason != nil {
		return nil, e.reason
	}
	return e.final(), nil
}

// final makes the manifest; e.mu is held, and all chunks are there.
func (e *Exposure) final() *Manifest {
	m := e.header
	m.Digests = e.digests
	e.manifest, e.root, e.state = &m, m.Root(), Sealed
	e.tell()
	return &m
}

// sealLast hashes the chunk that is not whole, if there is one.
func (e *Exposure) sealLast() error {
	chunk := e.header.StoredChunk()
	whole, rest := e.pos/chunk, e.pos%chunk
	if rest == 0 || e.hashed > whole {
		return nil
	}
	content := rest - (chunk - e.header.Chunk)
	if content <= 0 {
		return fmt.Errorf("%w: the last chunk has %d bytes, too few for a sealed one", ErrFormat, rest)
	}
	if !e.known {
		e.mu.Lock()
		e.header.Size = whole*e.header.Chunk + content
		e.page.resize(e.header.Size, whole+1)
		e.mu.Unlock()
	}
	e.hashed = whole + 1
	e.publish(whole, Sum(e.mem.Bytes()[whole*chunk:e.pos]))
	return nil
}

// Take makes a surface of a memfd as it is, without copying it: one whose owner
// has sealed it against writing, shrinking and growing. Its size is Spec.Size,
// as it is stored, or more; if Spec.Size is -1 all of it. It is hashed before Take returns,
// and there is nothing more to do with the exposure. file stays the caller's.
func (s *Store) Take(ctx context.Context, spec Spec, file *os.File) (*Exposure, error) {
	e, err := s.take(ctx, spec, file)
	if err != nil {
		return nil, fmt.Errorf("expose memory %q: %w", spec.Name, err)
	}
	return e, nil
}

func (s *Store) take(ctx context.Context, spec Spec, file *os.File) (*Exposure, error) {
	if err := s.begin(); err != nil {
		return nil, err
	}
	defer s.ops.Done()
	e, err := s.newExposure(ctx, spec)
	if err != nil {
		return nil, err
	}
	if err := e.adopt(ctx, spec, file); err != nil {
		e.free()
		return nil, err
	}
	if err := s.add(e); err != nil {
		e.release()
		return nil, err
	}
	return e, nil
}

func (e *Exposure) adopt(ctx context.Context, spec Spec, file *os.File) (err error) {
	if e.mem, err = memfd.Adopt(file); err != nil {
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	limit, chunk := e.mem.Limit(), e.header.StoredChunk()
	if spec.Size < 0 {
		e.header.Size = limit - chunks(limit, chunk)*(chunk-e.header.Chunk)
	}
	if e.header.Size < 0 || e.header.StoredSize() > limit || spec.Size < 0 && e.header.StoredSize() != limit {
		return fmt.Errorf("%w: memory of %d bytes for a surface of %d", ErrFormat, limit, e.header.Size)
	}
	resident, err := e.mem.Resident()
	if err != nil {
		return err
	}
	if err := e.charge(resident); err != nil {
		return err
	}
	e.mu.Lock()
	e.unbacked = 0
	e.mu.Unlock()
	e.store.room.backed(resident)
	if err := e.makePage(e.header.Count()); err != nil {
		return err
	}
	data, err := memfd.Data(e.mem.File(), e.header.StoredSize(), maxExtents)
	if err != nil {
		return err
	}
	e.setData(data)
	err = e.eachChunk(ctx, func(h *blake3.Hasher, i, off, end int64) error {
		d, err := e.digest(h, i, func([]byte, int64) error { return nil })
		if err == nil {
			e.publish(i, d)
		}
		return err
	})
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.final()
	return nil
}
