// SPDX-License-Identifier: Apache-2.0

package blocks

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/s2"

	"github.com/memspan/memspan/internal/crc32c"
)

// A record is a block on its way. All numbers are big-endian:
//
//	0  u32  which block; lastRecord: none, these were all
//	4  u32  length of what follows the header; its top bit: it is compressed (s2)
//	8  u32  CRC-32C of the first eight bytes and of what follows the header
//
// The last record has length 0, or 1, without a byte to follow, if its sender
// gave up: then what was to be done with the blocks is not to be done.
const (
	recordHeader = 12
	lastRecord   = 1<<32 - 1
	compressed   = 1 << 31
)

// flushSize is how many bytes a Writer lets come together.
const flushSize = 256 << 10

// leastGain is the part of a block that compressing it must save.
const leastGain = 8

// Errors of a Reader.
var (
	ErrFormat  = errors.New("blocks: the peer broke the protocol")
	ErrCorrupt = errors.New("blocks: a block was damaged on its way")
	ErrGivenUp = errors.New("blocks: the peer gave up")
)

// A Writer writes records: when enough has come together, and at the end.
type Writer struct {
	w    io.Writer
	buf  []byte
	vain int // blocks in a row that would not have been shorter
}

// After so many blocks that cannot be compressed only one in so many is tried.
const (
	patience = 4
	oneIn    = 8
)

// NewWriter returns a writer of records to w.
func NewWriter(w io.Writer) *Writer {
	writer := new(Writer)
	writer.Reset(w)
	return writer
}

// Reset makes it a new writer, to w.
func (w *Writer) Reset(to io.Writer) {
	w.w, w.buf = to, w.buf[:0]
	if w.buf == nil {
		w.buf = make([]byte, 0, flushSize+recordHeader+s2.MaxEncodedLen(Size)+recordHeader)
	}
}

// Add appends block i, compressed if that makes it notably shorter. It writes
// nothing yet.
func (w *Writer) Add(i int, block []byte) {
	at := len(w.buf)
	room := w.buf[at+recordHeader : cap(w.buf)]
	var body []byte
	flag := uint32(compressed)
	if w.vain < patience || w.vain%oneIn == 0 {
		body = s2.Encode(room, block)
	}
	if body != nil && len(body) <= len(block)-len(block)/leastGain {
		w.vain = 0
	} else {
		body, flag = room[:copy(room, block)], 0
		w.vain++
	}
	w.buf = w.buf[:at+recordHeader+len(body)]
	w.finish(w.buf[at:], uint32(i), uint32(len(body))|flag)
}

func (w *Writer) finish(record []byte, index, length uint32) {
	binary.BigEndian.PutUint32(record, index)
	binary.BigEndian.PutUint32(record[4:], length)
	binary.BigEndian.PutUint32(record[8:], recordSum(record[:8], record[recordHeader:]))
}

func recordSum(header, body []byte) uint32 {
	return crc32c.Update(crc32c.Update(0, header), body)
}

// Flush writes what was added, if that is worth a write. It must be called after
// each Add.
func (w *Writer) Flush() error {
	if len(w.buf) < flushSize {
		return nil
	}
	return w.write()
}

// End writes the last record, which says whether the sender gave up, and all
// before it.
func (w *Writer) End(gaveUp bool) error {
	at := len(w.buf)
	w.buf = w.buf[:at+recordHeader]
	length := uint32(0)
	if gaveUp {
		length = 1
	}
	w.finish(w.buf[at:], lastRecord, length)
	return w.write()
}

func (w *Writer) write() error {
	_, err := w.w.Write(w.buf)
	w.buf = w.buf[:0]
	return err
}

// A Reader reads the records of one buffer.
type Reader struct {
	r    io.Reader
	size int64 // negative: any, and blocks are passed over
	head [recordHeader]byte
	body []byte
	raw  []byte
}

// NewReader returns a reader of the records of a buffer of size bytes; if size is
// negative, of any buffer: its blocks have no bytes then.
func NewReader(r io.Reader, size int64) *Reader { return &Reader{r: r, size: size} }

// Next returns the next block, which is valid until the next call; io.EOF after
// the last, or ErrGivenUp. Other errors end the connection: ErrFormat, ErrCorrupt
// or the connection's.
func (r *Reader) Next() (i int, block []byte, err error) {
	if _, err := io.ReadFull(r.r, r.head[:]); err != nil {
		return 0, nil, unexpected(err)
	}
	index, length := binary.BigEndian.Uint32(r.head[:]), binary.BigEndian.Uint32(r.head[4:])
	if index == lastRecord {
		return 0, nil, r.last(length)
	}
	n := int(length &^ compressed)
	want := Size
	if r.size >= 0 {
		if int64(index) >= int64(Count(r.size)) {
			return 0, nil, fmt.Errorf("%w: block %d of a buffer of %d bytes", ErrFormat, index, r.size)
		}
		want = int(min(Size, r.size-int64(index)*Size))
	}
	if n == 0 || n > want {
		return 0, nil, fmt.Errorf("%w: block %d of %d bytes is sent as %d", ErrFormat, index, want, n)
	}
	if r.body == nil {
		r.body = make([]byte, Size)
	}
	body := r.body[:n]
	if _, err := io.ReadFull(r.r, body); err != nil {
		return 0, nil, unexpected(err)
	}
	if recordSum(r.head[:8], body) != binary.BigEndian.Uint32(r.head[8:]) {
		return 0, nil, fmt.Errorf("%w: block %d", ErrCorrupt, index)
	}
	switch {
	case r.size < 0:
		return int(index), nil, nil
	case length&compressed != 0:
		if body, err = r.decode(body, want); err != nil {
			return 0, nil, fmt.Errorf("%w: block %d: %w", ErrFormat, index, err)
		}
	case n != want:
		return 0, nil, fmt.Errorf("%w: block %d of %d bytes is sent as %d", ErrFormat, index, want, n)
	}
	return int(index), body, nil
}

func (r *Reader) last(length uint32) error {
	switch {
	case recordSum(r.head[:8], nil) != binary.BigEndian.Uint32(r.head[8:]):
		return fmt.Errorf("%w: the last record", ErrCorrupt)
	case length == 0:
		return io.EOF
	case length == 1:
		return ErrGivenUp
	}
	return fmt.Errorf("%w: a last record of length %d", ErrFormat, length)
}

func (r *Reader) decode(body []byte, want int) ([]byte, error) {
	n, err := s2.DecodedLen(body)
	if err != nil {
		return nil, err
	}
	if n != want {
		return nil, fmt.Errorf("it is %d bytes long, not %d", n, want)
	}
	if r.raw == nil {
		r.raw = make([]byte, Size)
	}
	return s2.Decode(r.raw[:n], body)
}

// unexpected says that the end of the connection is none of the records'.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
