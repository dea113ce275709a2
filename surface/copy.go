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
	"time"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/zeebo/blake3"
	"golang.org/x/sync/errgroup"
)

const (
	piece      = 256 << 10 // bytes that are copied, and hashed while they are warm
	maxExtents = 64 << 10  // of a sparse source; what is behind is taken for data
)

// CopyFile brings all stored bytes from file, which is not to be changed
// meanwhile: if it is, as far as its size and times tell, the surface fails with ErrChanged.
// Each byte is copied once, by all processors; holes stay holes. The file's
// size is to be what the surface stores.
func (e *Exposure) CopyFile(ctx context.Context, file *os.File) error {
	return e.failed("copy "+file.Name()+" to", e.copyFile(ctx, file, file.ReadAt))
}

func (e *Exposure) copyFile(ctx context.Context, file *os.File, readAt func([]byte, int64) (int, error)) error {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%w: it is no file", ErrState)
	}
	size, unchanged, err := Settled(ctx, file)
	if err != nil {
		return err
	}
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
	if err = unchanged(); err != nil {
		e.Fail(err) // chunks of it were given out
	}
	return err
}

// granularity is more than the time in which a file can change twice without its
// times telling, as kernels do that do not count finer when they are asked.
const granularity = 10 * time.Millisecond

// Settled returns the size of a file, in bytes, and what says with ErrChanged, as far as the
// file's size and times tell, that it was changed since. If it was changed just now Settled waits
// for a moment, so that these do tell; a file that is changed all the time is ErrChanged.
func Settled(ctx context.Context, file *os.File) (size int64, unchanged func() error, err error) {
	for waited := false; ; waited = true {
		before, err := file.Stat()
		if err != nil {
			return 0, nil, err
		}
		age := time.Since(changeTime(before))
		if age < 0 || age > granularity {
			return before.Size(), func() error { return compare(file, before) }, nil
		}
		if waited {
			return 0, nil, fmt.Errorf("%w: it changes all the time", ErrChanged)
		}
		select {
		case <-time.After(granularity - age + 1):
		case <-ctx.Done():
			return 0, nil, context.Cause(ctx)
		}
	}
}

// compare fails with ErrChanged if the file is not as it was before.
func compare(file *os.File, before os.FileInfo) error {
	if n, _ := file.ReadAt(make([]byte, 1), before.Size()); n > 0 {
		return fmt.Errorf("%w: it has more bytes than its size said", ErrChanged)
	}
	after, err := file.Stat()
	if err == nil && (after.Size() != before.Size() || !after.ModTime().Equal(before.ModTime()) || !changeTime(after).Equal(changeTime(before))) {
		err = ErrChanged
	}
	return err
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
	err = e.eachChunk(ctx, func() stored {
		buf := make([]byte, min(piece, e.mem.Limit())) // stays in this processor's cache
		return func(off, end int64) ([]byte, error) {
			p := buf[:end-off]
			if err := read(p, off); err != nil {
				return nil, err
			}
			if err := e.write(p, off); err != nil {
				return nil, err
			}
			e.backed(off, end-off)
			return p, nil
		}
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
	e.mu.Unlock()
	if less > 0 {
		e.refund(less)
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

// stored returns the stored bytes [off, end), a piece at most, which are data.
type stored func(off, end int64) ([]byte, error)

// eachChunk publishes the digest of each chunk, whose bytes each processor gets from a
// stored of its own.
func (e *Exposure) eachChunk(ctx context.Context, source func() stored) error {
	var next atomic.Int64
	count := e.header.Count()
	step := max(1, batch/e.header.StoredChunk())
	group, ctx := errgroup.WithContext(ctx)
	for range min(int64(runtime.GOMAXPROCS(0)), (count+step-1)/step) {
		group.Go(func() error {
			h, digests, bytes := blake3.New(), make([]Digest, 0, step), source()
			for {
				first := next.Add(step) - step
				if first >= count {
					return nil
				}
				if err := e.stopped(); err != nil {
					return err
				}
				digests = digests[:0]
				for i := first; i < min(first+step, count); i++ {
					if ctx.Err() != nil {
						return context.Cause(ctx)
					}
					d, err := e.digest(h, i, bytes)
					if err != nil {
						return err
					}
					digests = append(digests, d)
				}
				e.publish(first, digests...)
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

// digest returns chunk i's, without touching its holes.
func (e *Exposure) digest(h *blake3.Hasher, i int64, bytes stored) (d Digest, err error) {
	off, n := e.header.StoredRange(i)
	end := off + n
	data := e.dataIn(off, end)
	if len(data) == 0 {
		return e.store.zeros.Digest(n), nil
	}
	h.Reset()
	for _, r := range data {
		hashZeros(h, r[0]-off)
		for off = r[0]; off < r[1]; {
			part, err := bytes(off, min(off+piece, r[1]))
			if err != nil {
				return d, err
			}
			h.Write(part)
			off += int64(len(part))
		}
	}
	hashZeros(h, end-off)
	h.Sum(d[:0])
	return d, nil
}
