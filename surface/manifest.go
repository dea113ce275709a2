// SPDX-License-Identifier: Apache-2.0

package surface

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/bits"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/zeebo/blake3"
)

// Limits of the format.
const (
	MinChunk     = 4 << 10         // bytes of content in a chunk
	MaxChunk     = 64 << 20        // bytes of content in a chunk
	DefaultChunk = 1 << 20         // bytes of content in a chunk
	MaxSize      = 1 << 62         // bytes of content in a surface
	MaxName      = 255             // bytes of a name, and of a content type
	Overhead     = 16              // bytes that sealing adds to a chunk
	DigestSize   = 32              // bytes of a digest
	maxTime      = 253402300799999 // 9999-12-31, the last time that every client can print
)

// An ID names a surface: 128 random bits.
type ID [16]byte

// NewID returns a random ID.
func NewID() ID {
	var id ID
	rand.Read(id[:]) // never fails
	return id
}

// ParseID reads what ID.String returns.
func ParseID(text string) (ID, error) {
	var id ID
	if hex.DecodedLen(len(text)) != len(id) {
		return ID{}, fmt.Errorf("surface id of %d characters, want %d: %w", len(text), 2*len(id), ErrFormat)
	}
	if _, err := hex.Decode(id[:], []byte(text)); err != nil {
		return ID{}, fmt.Errorf("surface id: %w: %w", ErrFormat, err)
	}
	return id, nil
}

// String returns 32 hexadecimal digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// A Digest is the BLAKE3 hash of a stored chunk, or of a manifest.
type Digest [DigestSize]byte

// String returns 64 hexadecimal digits.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// Sum returns the digest of a stored chunk.
func Sum(stored []byte) Digest { return blake3.Sum256(stored) }

// A Manifest says what a surface is. It is not changed once it is shared.
type Manifest struct {
	ID          ID
	Name        string    // for people; at most MaxName bytes of UTF-8 without control characters
	ContentType string    // a media type or ""; like Name
	Size        int64     // bytes of content, 0 to MaxSize
	Chunk       int64     // bytes of content in each chunk but the last: a power of two, MinChunk to MaxChunk
	Encrypted   bool      // what is stored is sealed chunks
	Created     time.Time // to the millisecond; zero: not said
	Expires     time.Time // to the millisecond; zero: never
	Digests     []Digest  // of the stored chunks; nil in a header
}

// Count returns the number of chunks.
func (m *Manifest) Count() int64 { return chunks(m.Size, m.Chunk) }

func chunks(size, chunk int64) int64 {
	n := size / chunk
	if size%chunk != 0 {
		n++
	}
	return n
}

// StoredChunk returns the bytes that a whole chunk takes where it is stored.
func (m *Manifest) StoredChunk() int64 {
	if m.Encrypted {
		return m.Chunk + Overhead
	}
	return m.Chunk
}

// StoredSize returns the bytes that all chunks take where they are stored.
func (m *Manifest) StoredSize() int64 {
	if m.Encrypted {
		return m.Size + m.Count()*Overhead
	}
	return m.Size
}

// StoredRange returns where chunk i, of [0, Count), is stored, and its length.
func (m *Manifest) StoredRange(i int64) (off, n int64) {
	off = i * m.StoredChunk()
	return off, min(m.StoredChunk(), m.StoredSize()-off)
}

// ContentRange returns which bytes of the content chunk i, of [0, Count), has.
func (m *Manifest) ContentRange(i int64) (off, n int64) {
	off = i * m.Chunk
	return off, min(m.Chunk, m.Size-off)
}

// ChunksOf returns the chunks [first, end) that have bytes [off, off+n) of the
// content. What lies outside of the content has none.
func (m *Manifest) ChunksOf(off, n int64) (first, end int64) {
	off = max(off, 0)
	if n <= 0 || off >= m.Size {
		return 0, 0
	}
	n = min(n, m.Size-off)
	return off / m.Chunk, (off+n-1)/m.Chunk + 1
}

const (
	manifestMagic   = "MSPMANIF"
	manifestVersion = 1
	flagEncrypted   = 1
)

// fixedHeader is the header's length without name and content type: magic,
// version, flags, id, size, chunk, count, created, expires, two lengths.
const fixedHeader = 8 + 4 + 4 + 16 + 5*8 + 2*2

// AppendHeader appends the manifest without its digests.
func (m *Manifest) AppendHeader(b []byte) []byte {
	var flags uint32
	if m.Encrypted {
		flags |= flagEncrypted
	}
	b = append(b, manifestMagic...)
	b = binary.LittleEndian.AppendUint32(b, manifestVersion)
	b = binary.LittleEndian.AppendUint32(b, flags)
	b = append(b, m.ID[:]...)
	for _, v := range []int64{m.Size, m.Chunk, m.Count(), millis(m.Created), millis(m.Expires)} {
		b = binary.LittleEndian.AppendUint64(b, uint64(v))
	}
	for _, s := range []string{m.Name, m.ContentType} {
		b = binary.LittleEndian.AppendUint16(b, uint16(len(s)))
		b = append(b, s...)
	}
	return b
}

// AppendBinary appends the whole manifest. It implements
// [encoding.BinaryAppender] and fails if the manifest breaks a rule of its fields.
func (m *Manifest) AppendBinary(b []byte) ([]byte, error) {
	if err := m.check(); err != nil {
		return b, err
	}
	if int64(len(m.Digests)) != m.Count() {
		return b, fmt.Errorf("manifest of %v: %d digests for %d chunks: %w", m.ID, len(m.Digests), m.Count(), ErrFormat)
	}
	return m.appendAll(b), nil
}

func (m *Manifest) appendAll(b []byte) []byte {
	b = m.AppendHeader(b)
	for i := range m.Digests {
		b = append(b, m.Digests[i][:]...)
	}
	return b
}

// Root returns the digest of the whole encoding, which binds every field and
// every chunk.
func (m *Manifest) Root() Digest {
	h := blake3.New()
	buf := m.AppendHeader(make([]byte, 0, 32<<10))
	for i := range m.Digests {
		if len(buf)+DigestSize > cap(buf) {
			h.Write(buf)
			buf = buf[:0]
		}
		buf = append(buf, m.Digests[i][:]...)
	}
	h.Write(buf)
	var root Digest
	h.Sum(root[:0])
	return root
}

// ParseManifest reads what AppendBinary writes, and nothing else.
func ParseManifest(data []byte) (*Manifest, error) {
	m, rest, err := parseHeader(data)
	if err != nil {
		return nil, err
	}
	// Count is at most 2^50, so that nothing overflows.
	if want := m.Count() * DigestSize; int64(len(rest)) != want {
		return nil, fmt.Errorf("manifest of %v: %d bytes of digests, want %d: %w", m.ID, len(rest), want, ErrFormat)
	}
	m.Digests = make([]Digest, m.Count())
	for i := range m.Digests {
		copy(m.Digests[i][:], rest[i*DigestSize:])
	}
	return m, nil
}

// ParseHeader reads what AppendHeader writes, and nothing else. The manifest has no
// digests.
func ParseHeader(data []byte) (*Manifest, error) {
	m, rest, err := parseHeader(data)
	if err != nil {
		return nil, err
	}
	if len(rest) != 0 {
		return nil, fmt.Errorf("header of %v: %d bytes too many: %w", m.ID, len(rest), ErrFormat)
	}
	return m, nil
}

func parseHeader(data []byte) (m *Manifest, rest []byte, err error) {
	if len(data) < fixedHeader || string(data[:8]) != manifestMagic {
		return nil, nil, fmt.Errorf("manifest: %d bytes that do not begin as one: %w", len(data), ErrFormat)
	}
	if v := binary.LittleEndian.Uint32(data[8:]); v != manifestVersion {
		return nil, nil, fmt.Errorf("manifest: version %d, want %d: %w", v, manifestVersion, ErrFormat)
	}
	flags := binary.LittleEndian.Uint32(data[12:])
	if flags&^flagEncrypted != 0 {
		return nil, nil, fmt.Errorf("manifest: flags %#x: %w", flags, ErrFormat)
	}
	m = &Manifest{ID: ID(data[16:32]), Encrypted: flags&flagEncrypted != 0}
	var fields [5]uint64
	for i := range fields {
		fields[i] = binary.LittleEndian.Uint64(data[32+8*i:])
	}
	if fields[0] > MaxSize || fields[1] > MaxChunk || fields[3] > maxTime || fields[4] > maxTime {
		return nil, nil, fmt.Errorf("manifest of %v: %d bytes in chunks of %d, from %d to %d: %w",
			m.ID, fields[0], fields[1], fields[3], fields[4], ErrFormat)
	}
	m.Size, m.Chunk = int64(fields[0]), int64(fields[1])
	m.Created, m.Expires = fromMillis(int64(fields[3])), fromMillis(int64(fields[4]))
	rest = data[fixedHeader-4:]
	for _, s := range []*string{&m.Name, &m.ContentType} {
		if len(rest) < 2 {
			return nil, nil, fmt.Errorf("manifest of %v: cut short: %w", m.ID, ErrFormat)
		}
		n := int(binary.LittleEndian.Uint16(rest))
		if len(rest) < 2+n {
			return nil, nil, fmt.Errorf("manifest of %v: cut short: %w", m.ID, ErrFormat)
		}
		*s = string(rest[2 : 2+n])
		rest = rest[2+n:]
	}
	if err := m.check(); err != nil {
		return nil, nil, err
	}
	if fields[2] != uint64(m.Count()) {
		return nil, nil, fmt.Errorf("manifest of %v: %d chunks of %d bytes for %d: %w", m.ID, fields[2], m.Chunk, m.Size, ErrFormat)
	}
	return m, rest, nil
}

// check holds the rules of the fields but for the digests.
func (m *Manifest) check() error {
	switch {
	case m.Size < 0 || m.Size > MaxSize:
		return fmt.Errorf("manifest of %v: size %d is not within [0, 2^62]: %w", m.ID, m.Size, ErrFormat)
	case m.Chunk < MinChunk || m.Chunk > MaxChunk || bits.OnesCount64(uint64(m.Chunk)) != 1:
		return fmt.Errorf("manifest of %v: chunk size %d is no power of two from 4 KiB to 64 MiB: %w", m.ID, m.Chunk, ErrFormat)
	case outside(m.Created) || outside(m.Expires):
		return fmt.Errorf("manifest of %v: a time is not within 1970 to 9999: %w", m.ID, ErrFormat)
	}
	for _, s := range []string{m.Name, m.ContentType} {
		if err := checkText(s); err != nil {
			return fmt.Errorf("manifest of %v: %w", m.ID, err)
		}
	}
	return nil
}

// checkText keeps what is shown to people from steering their terminals.
func checkText(s string) error {
	if len(s) > MaxName {
		return fmt.Errorf("a name or content type of %d bytes, at most %d: %w", len(s), MaxName, ErrFormat)
	}
	if !utf8.ValidString(s) {
		return fmt.Errorf("%+q is not UTF-8: %w", s, ErrFormat)
	}
	for _, r := range s {
		if unicode.IsControl(r) {
			return fmt.Errorf("%+q has control characters: %w", s, ErrFormat)
		}
	}
	return nil
}

func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func fromMillis(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

func outside(t time.Time) bool {
	return !t.IsZero() && (t.UnixMilli() < 1 || t.UnixMilli() > maxTime)
}
