// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/memspan/memspan/internal/crc32c"
	"github.com/memspan/memspan/tier"
)

// buffer returns a block of memory for the tier's own use.
func (t *Tier) buffer() []byte {
	if p, ok := t.buffers.Get().(*[tier.BlockSize]byte); ok {
		return p[:]
	}
	return new([tier.BlockSize]byte)[:]
}

func (t *Tier) putBuffer(p []byte) { t.buffers.Put((*[tier.BlockSize]byte)(p[:tier.BlockSize])) }

// page returns a page of memory for the tier's own use.
func (t *Tier) page() *[pageSize]byte {
	if p, ok := t.pages.Get().(*[pageSize]byte); ok {
		return p
	}
	return new([pageSize]byte)
}

// readBlock reads the published bytes of a block from off on. It takes no lock
// on the block: when what it was reading is replaced meanwhile, and its room
// used for something else, it begins again.
func (t *Tier) readBlock(ctx context.Context, sp *spanState, b int, off int64, dst []byte) error {
	_, err := t.readVersion(ctx, sp, b, off, dst)
	return err
}

// readVersion is readBlock that returns which contents it has read.
func (t *Tier) readVersion(ctx context.Context, sp *spanState, b int, off int64, dst []byte) (content, error) {
	c, err := t.contentOf(sp, b)
	if err != nil {
		return c, err
	}
	for {
		if ctx.Err() != nil {
			return c, context.Cause(ctx)
		}
		err := t.readContent(sp, b, c, off, dst)
		if err == nil {
			return c, nil
		}
		now, gone := t.contentOf(sp, b)
		if gone != nil || now.same(c) {
			clear(dst) // no bad byte is left behind
			return c, errors.Join(gone, err)
		}
		c = now
	}
}

func (t *Tier) contentOf(sp *spanState, b int) (content, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if sp.gone {
		return content{}, errGone
	}
	return sp.content(b), nil
}

// readContent reads bytes of a block that has contents c.
func (t *Tier) readContent(sp *spanState, b int, c content, off int64, dst []byte) error {
	if len(dst) == 0 {
		return nil
	}
	if c.slot == 0 {
		clear(dst)
	} else if err := t.readSlot(sp, b, c.slot, c.sum, off, dst); err != nil {
		return err
	}
	for i := range c.patches {
		if err := t.overlay(sp, b, &c.patches[i], off, dst); err != nil {
			return err
		}
	}
	return nil
}

// overlay puts a patch's bytes over those of a block from off on.
func (t *Tier) overlay(sp *spanState, b int, p *patch, off int64, dst []byte) error {
	end := off + int64(len(dst))
	touches := false
	for _, r := range p.runs {
		touches = touches || int64(r.Offset) < end && int64(r.Offset+r.Length) > off
	}
	if !touches {
		return nil
	}
	buf := t.buffer()
	defer t.putBuffer(buf)
	data := buf[:p.size]
	if _, err := p.log.f.Readv([][]byte{data}, p.off); err != nil && !errors.Is(err, io.EOF) {
		return err
	} else if err != nil {
		return t.corrupt(sp, b, numbered(logName, p.log.number), p.off, "a patch", fmt.Sprintf("%d bytes", p.size), "the end of the file")
	}
	if sum := crc32c.Checksum(data); sum != p.sum {
		return t.corrupt(sp, b, numbered(logName, p.log.number), p.off, "a patch", fmt.Sprintf("checksum %#x", p.sum), fmt.Sprintf("%#x", sum))
	}
	for _, r := range p.runs {
		lo, hi := max(off, int64(r.Offset)), min(end, int64(r.Offset+r.Length))
		if lo < hi {
			copy(dst[lo-off:hi-off], data[lo-int64(r.Offset):])
		}
		data = data[r.Length:]
	}
	return nil
}

func (t *Tier) corrupt(sp *spanState, b int, file string, at int64, what, expected, found string) error {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return &CorruptError{Span: sp.rec.label(), Block: b, File: file, Offset: at, What: what, Expected: expected, Found: found}
}

// readSlot reads bytes of a block from its slot, whose header has checksum sum,
// and verifies every page it touches.
func (t *Tier) readSlot(sp *spanState, b int, slot, sum uint32, off int64, dst []byte) error {
	head, first, last := t.page(), t.page(), t.page()
	defer t.pages.Put(head)
	defer t.pages.Put(first)
	defer t.pages.Put(last)
	length, end := sp.blockLen(b), off+int64(len(dst))
	// Whole pages are read; those that dst has only a part of by way of others.
	lo, hi := off&^(pageSize-1), min((end+pageSize-1)&^(pageSize-1), length)
	var pieces [4][]byte
	bufs := pieces[:0]
	middle := dst
	var firstPage, lastPage []byte
	if off > lo || end < hi && hi-lo <= pageSize {
		firstPage = first[:min(pageSize, length-lo)]
		middle = dst[min(int64(len(dst)), lo+int64(len(firstPage))-off):]
	}
	if end < hi && hi-lo > pageSize {
		at := (hi - 1) &^ (pageSize - 1)
		lastPage = last[:hi-at]
		middle = middle[:int64(len(middle))-(end-at)]
	}
	data := slotOffset(slot) + headerSize
	at := data + lo
	if lo == 0 {
		bufs, at = append(bufs, head[:]), at-headerSize
	} else if err := t.readFull(sp, b, [][]byte{head[:]}, data-headerSize); err != nil {
		return err
	}
	bufs = append(bufs, firstPage, middle, lastPage)
	if err := t.readFull(sp, b, bufs, at); err != nil {
		return err
	}
	computed, stored := headerSum(head[:])
	if computed != sum || stored != sum {
		return t.corrupt(sp, b, blocksName, data-headerSize, "the slot's header", fmt.Sprintf("checksum %#x", sum), fmt.Sprintf("%#x", computed))
	}
	page := int(lo / pageSize)
	for _, part := range [][]byte{firstPage, middle, lastPage} {
		for len(part) > 0 {
			n := min(len(part), pageSize)
			if got, want := crc32c.Checksum(part[:n]), sumOf(head[:], page); got != want {
				return t.corrupt(sp, b, blocksName, data+int64(page)*pageSize, fmt.Sprintf("page %d of the data", page),
					fmt.Sprintf("checksum %#x", want), fmt.Sprintf("%#x", got))
			}
			part = part[n:]
			page++
		}
	}
	if firstPage != nil {
		copy(dst, firstPage[off-lo:])
	}
	if lastPage != nil {
		copy(dst[len(dst)-int(end-(hi-1)&^(pageSize-1)):], lastPage)
	}
	return nil
}

// readFull reads from the file of slots.
func (t *Tier) readFull(sp *spanState, b int, bufs [][]byte, at int64) error {
	n, err := t.slots.f.Readv(bufs, at)
	if errors.Is(err, io.EOF) {
		return t.corrupt(sp, b, blocksName, at+int64(n), "the slot", "data", "the end of the file")
	}
	return err
}
