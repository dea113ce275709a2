// SPDX-License-Identifier: Apache-2.0

package pull

import (
	"bytes"
	"context"
	"io"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/wire"
)

// each waits for the chunks of [first, end), one after the other, and calls f with the
// content of each.
func (d *direct) each(ctx context.Context, first, end int64, f func(i int64, content []byte) error) error {
	var buf, plain []byte
	for i := first; end < 0 || i < end; i++ {
		if ctx.Err() != nil {
			return &wire.Error{Code: wire.Canceled, Err: context.Cause(ctx)}
		}
		if there, err := d.await(ctx, i); !there || err != nil {
			return err
		}
		m := d.layout()
		b, err := d.stored(&m, i, &buf)
		if err != nil {
			return err
		}
		if m.Encrypted {
			if plain, err = d.s.sealer.Open(plain[:0], i, b); err != nil {
				return err
			}
			b = plain
		}
		if err := f(i, b); err != nil {
			return err
		}
	}
	return nil
}

// bring gives the content of chunks to a sink.
func (d *direct) bring(ctx context.Context, to sink, first, end int64, have bitset) error {
	if _, sealed := d.size(); sealed {
		m := d.layout()
		if count := m.Count(); end < 0 || end > count {
			end = max(first, count)
		}
	}
	var done int64
	arrived := func(n int64) {
		if done += n; d.s.options.Progress == nil {
			return
		}
		p := Progress{Done: done, Total: -1}
		if size, sealed := d.size(); sealed {
			if end >= 0 {
				size = min(size, end*d.header.Chunk)
			}
			p.Total = max(0, size-first*d.header.Chunk)
		}
		d.s.options.Progress(p)
	}
	zero := make([]byte, 64<<10)
	put := func(i int64, content []byte) (err error) {
		switch {
		case have.has(i):
		case isZero(content, zero):
			err = to.hole(i, int64(len(content)))
		default:
			err = to.put(i, content)
		}
		arrived(int64(len(content)))
		return err
	}
	data, err := d.data()
	if err != nil {
		return err
	}
	if data == nil {
		return d.each(ctx, first, end, put)
	}
	m := d.layout()
	skip := func(from, stop int64) error {
		for i := from; i < stop; i++ {
			_, n := m.ContentRange(i)
			if err := to.hole(i, n); err != nil {
				return err
			}
			arrived(n)
		}
		return nil
	}
	at := first
	for _, r := range data {
		from, stop := max(at, min(r[0]/m.Chunk, end)), min((r[1]-1)/m.Chunk+1, end)
		if from >= stop {
			continue
		}
		if err := skip(at, from); err != nil {
			return err
		}
		if err := d.each(ctx, from, stop, put); err != nil {
			return err
		}
		at = stop
	}
	return skip(at, end)
}

// maxExtents is how many parts of a memory with holes are told apart; what is behind is read.
const maxExtents = 64 << 10

// data returns where a surface that is all there has data, and nil where there is nothing
// to be gained by knowing it.
func (d *direct) data() ([][2]int64, error) {
	m := d.layout()
	if _, sealed := d.size(); !sealed || m.Encrypted || !d.whole() {
		return nil, nil
	}
	if solid, err := d.solid(&m); solid || err != nil {
		return nil, err
	}
	data, err := memfd.Data(d.file, m.Size, maxExtents)
	return append([][2]int64{}, data...), err
}

func isZero(b, zero []byte) bool {
	for len(b) > 0 {
		n := min(len(b), len(zero))
		if !bytes.Equal(b[:n], zero[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}

// copy writes the bytes of w.
func (d *direct) copy(ctx context.Context, to io.Writer, w window) (done int64, err error) {
	first, end := w.chunks(d.header.Chunk)
	if size, sealed := d.size(); sealed && w.open {
		w.end = min(w.end, size)
		if w.end <= w.off {
			return 0, nil
		}
		first, end = window{off: w.off, end: w.end}.chunks(d.header.Chunk)
	}
	err = d.each(ctx, first, end, func(i int64, content []byte) error {
		part, _ := w.cut(i*d.header.Chunk, content)
		n, err := to.Write(part)
		done += int64(n)
		return err
	})
	return done, err
}
