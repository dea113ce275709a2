// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/binary"
	"fmt"
	"github.com/memspan/memspan/internal/crc32c"
)

// What the protocol fixes.
const (
	Version    = 1          // of the protocol, in every header
	HeaderSize = 32         // bytes
	MaxData    = 1 << 20    // bytes of a data part, decoded
	MaxPrefix  = 1<<20 + 64 // bytes of a prefix: the runs of any Flush of one block fit
	MaxControl = MaxData    // bytes of a JSON message, which is a data part
	sumSize    = 4          // bytes of the sum after a payload
)

// magic is what every frame begins with: "MSPN" read as a little-endian number.
const magic = 'M' | 'S'<<8 | 'P'<<16 | 'N'<<24

// IsMagic reports whether b begins as a frame of any version does: by it who
// expects another protocol, like TLS, recognises this one.
func IsMagic(b []byte) bool { return len(b) >= 4 && binary.LittleEndian.Uint32(b) == magic }

// Kind says what a frame is about. A reply has the kind of its request.
type Kind uint8

// The kinds. Data frames (Transfer, Read, Flush) of one connection are carried
// out in the order in which they are sent; control requests are not bound to
// any order.
const (
	KindHello    Kind = 1 + iota // the first frame of each side; JSON
	KindControl                  // a control message; JSON
	KindTransfer                 // client to server: store data, see MemoryCommand
	KindRead                     // client to server: fetch data, see MemoryCommand
	KindFlush                    // client to server: a block's changed byte runs, see Flush
	KindEvent                    // server to client, unasked; JSON
	KindStream                   // both ways, once a session is a Vulkan stream; see package vulkan/stream

	kindEnd
)

var kindNames = [kindEnd]string{"", "hello", "control", "transfer", "read", "flush", "event", "stream"}

// String returns the kind's name, as in "transfer".
func (k Kind) String() string {
	if k == 0 || k >= kindEnd {
		return fmt.Sprintf("Kind(%d)", uint8(k))
	}
	return kindNames[k]
}

// Flags qualify a frame.
type Flags uint8

// The flags. The other bits are zero.
const (
	FlagReply Flags = 1 << iota // answers the request of the same id and kind
	FlagError                   // with FlagReply: the request failed, the data part is a JSON Error
	FlagMore                    // further frames of the same write or flush follow
	FlagSum                     // a CRC-32C of the payload follows it; set by Conn
	FlagFirst                   // the first frame of a write or flush, or the only one

	knownFlags = FlagReply | FlagError | FlagMore | FlagSum | FlagFirst
)

// Encoding says how a frame's data part is written.
type Encoding uint8

// The encodings.
const (
	EncodingRaw  Encoding = iota // as it is
	EncodingS2                   // one block of the S2 format, shorter than the data
	EncodingFill                 // 4 bytes, repeated to the length of the data

	encodingEnd
)

var encodingNames = [encodingEnd]string{"raw", "s2", "fill"}

// String returns "raw", "s2" or "fill".
func (e Encoding) String() string {
	if e >= encodingEnd {
		return fmt.Sprintf("Encoding(%d)", uint8(e))
	}
	return encodingNames[e]
}

// A Header begins every frame. Whoever writes a frame with [Conn.WriteFrame]
// sets Kind, Flags and ID; the connection sets the rest.
type Header struct {
	Kind     Kind
	Flags    Flags
	Encoding Encoding // of the data part
	ID       uint64   // of the request; 0 in events
	Length   uint32   // bytes of the payload as sent: prefix and encoded data, without the sum
	Raw      uint32   // bytes of the data part, decoded; at most MaxData
	Prefix   uint32   // bytes of the payload before the data part; at most MaxPrefix
}

// Has reports whether all of the given flags are set.
func (h Header) Has(f Flags) bool { return h.Flags&f == f }

// encoded returns the bytes of the data part as sent.
func (h Header) encoded() int { return int(h.Length - h.Prefix) }

// Append appends the header's 32 bytes to dst.
func (h Header) Append(dst []byte) []byte {
	start := len(dst)
	dst = binary.LittleEndian.AppendUint32(dst, magic)
	dst = append(dst, Version, byte(h.Kind), byte(h.Flags), byte(h.Encoding))
	dst = binary.LittleEndian.AppendUint64(dst, h.ID)
	dst = binary.LittleEndian.AppendUint32(dst, h.Length)
	dst = binary.LittleEndian.AppendUint32(dst, h.Raw)
	dst = binary.LittleEndian.AppendUint32(dst, h.Prefix)
	return binary.LittleEndian.AppendUint32(dst, crc32c.Checksum(dst[start:]))
}

// ParseHeader reads a header from the first 32 bytes of b and checks that it
// contradicts neither itself nor the protocol's limits. Its errors are
// ErrTruncated, ErrMagic, *VersionError, ErrHeaderSum, ErrTooLarge and
// ErrMalformed, wrapped with what was found. After any of them the connection
// cannot be read further.
func ParseHeader(b []byte) (Header, error) {
	if len(b) < HeaderSize {
		return Header{}, fmt.Errorf("%w: %d bytes of a header of %d", ErrTruncated, len(b), HeaderSize)
	}
	b = b[:HeaderSize]
	if !IsMagic(b) {
		return Header{}, fmt.Errorf("%w: % x", ErrMagic, b[:4])
	}
	// The version comes before the sum: another version may lay out the rest
	// of its header as it likes.
	if b[4] != Version {
		return Header{}, &VersionError{Got: int(b[4])}
	}
	if binary.LittleEndian.Uint32(b[28:]) != crc32c.Checksum(b[:28]) {
		return Header{}, ErrHeaderSum
	}
	h := Header{
		Kind:     Kind(b[5]),
		Flags:    Flags(b[6]),
		Encoding: Encoding(b[7]),
		ID:       binary.LittleEndian.Uint64(b[8:]),
		Length:   binary.LittleEndian.Uint32(b[16:]),
		Raw:      binary.LittleEndian.Uint32(b[20:]),
		Prefix:   binary.LittleEndian.Uint32(b[24:]),
	}
	if err := h.check(); err != nil {
		return Header{}, err
	}
	return h, nil
}

func (h Header) check() error {
	switch {
	case h.Prefix > MaxPrefix:
		return fmt.Errorf("%w: prefix of %d bytes, at most %d", ErrTooLarge, h.Prefix, MaxPrefix)
	case h.Raw > MaxData:
		return fmt.Errorf("%w: %d bytes of data, at most %d", ErrTooLarge, h.Raw, MaxData)
	case h.Kind == 0 || h.Kind >= kindEnd:
		return fmt.Errorf("%w: unknown kind %d", ErrMalformed, uint8(h.Kind))
	case h.Flags&^knownFlags != 0:
		return fmt.Errorf("%w: unknown flags %#x", ErrMalformed, uint8(h.Flags&^knownFlags))
	case h.Flags&FlagError != 0 && h.Flags&FlagReply == 0:
		return fmt.Errorf("%w: an error that is no reply", ErrMalformed)
	case h.Flags&FlagSum != 0 && h.Length == 0:
		return fmt.Errorf("%w: a sum of nothing", ErrMalformed)
	case h.Length < h.Prefix:
		return fmt.Errorf("%w: prefix of %d bytes in a payload of %d", ErrMalformed, h.Prefix, h.Length)
	}
	wire, fits := h.Length-h.Prefix, false
	switch h.Encoding {
	case EncodingRaw:
		fits = wire == h.Raw
	case EncodingS2:
		fits = 0 < wire && wire < h.Raw
	case EncodingFill:
		fits = wire == 4 && wire < h.Raw
	default:
		return fmt.Errorf("%w: unknown encoding %d", ErrMalformed, uint8(h.Encoding))
	}
	if !fits {
		return fmt.Errorf("%w: %d bytes of data in %d as %v", ErrMalformed, h.Raw, wire, h.Encoding)
	}
	return nil
}
