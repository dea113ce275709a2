// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/memspan/memspan/wire"
)

var update = flag.Bool("update", false, "write testdata/vectors anew")

// A vector is a file of testdata/vectors: bytes as they are on the wire, and
// what they mean.
type vector struct {
	name  string
	about string
	parts []part
	cfg   wire.Config
	frame *frame                       // a whole frame as a connection with cfg sends it
	check func(t *testing.T, b []byte) // for what is no whole frame
}

// A part is a few bytes with their meaning.
type part struct {
	comment string
	hex     string
}

func vectors() []vector {
	s2cfg := wire.Config{Compress: true}
	command := wire.MemoryCommand{Memory: 0x0123456789abcdef, Offset: 4096, Size: 8}
	flush := wire.Flush{Mapping: 0x1122334455667788, Block: 3, Base: 41, Runs: []wire.Run{{Offset: 0, Length: 2}, {Offset: 300, Length: 1}}}
	return []vector{
		{
			name: "header", about: "A header: a request to read, number 7, whose payload is a prefix of 28 bytes.",
			parts: []part{
				{"magic \"MSPN\"", "4d53504e"}, {"protocol version 1", "01"}, {"kind 4: read", "04"}, {"flags: none", "00"}, {"encoding 0: raw", "00"},
				{"request id 7", "0700000000000000"}, {"length of the payload: 28", "1c000000"}, {"bytes of data, decoded: 0", "00000000"}, {"bytes of prefix: 28", "1c000000"},
				{"CRC-32C of the 28 bytes above", "a3bec765"},
			},
			check: func(t *testing.T, b []byte) {
				want := wire.Header{Kind: wire.KindRead, ID: 7, Length: 28, Prefix: 28}
				if got, err := wire.ParseHeader(b); err != nil || got != want {
					t.Errorf("%+v, %v; want %+v", got, err, want)
				}
				encodesTo(t, want.Append(nil), b)
			},
		},
		{
			name: "transfer", about: "Transfer: store 8 bytes at offset 4096. The payload is the document's TRANSFER_MEMORY_DATA.",
			parts: []part{
				{"header: kind 3, id 8, length 36, raw 8, prefix 28", headerHex(wire.Header{Kind: wire.KindTransfer, ID: 8, Length: 36, Raw: 8, Prefix: 28})},
				{"command TRANSFER_MEMORY_DATA", "00000010"}, {"memory: the span's handle", "efcdab8967452301"}, {"offset 4096", "0010000000000000"}, {"size 8", "0800000000000000"},
				{"data", "7856341278563412"},
			},
			frame: &frame{kind: wire.KindTransfer, id: 8, prefix: wire.AppendTransfer(nil, command), data: pattern(8)},
		},
		{
			name: "transfer-sum", about: "The same on a connection that needs sums (plain TCP).",
			parts: []part{
				{"header: kind 3, flags 0x08 (sum), id 8, length 36, raw 8, prefix 28", headerHex(wire.Header{Kind: wire.KindTransfer, Flags: wire.FlagSum, ID: 8, Length: 36, Raw: 8, Prefix: 28})},
				{"prefix", "00000010efcdab896745230100100000000000000800000000000000"},
				{"data", "7856341278563412"}, {"CRC-32C of prefix and data", "ac36cb05"},
			},
			cfg:   wire.Config{Sums: true},
			frame: &frame{kind: wire.KindTransfer, id: 8, prefix: wire.AppendTransfer(nil, command), data: pattern(8)},
		},
		{
			name: "transfer-reply", about: "The reply to a Transfer: VK_SUCCESS.",
			parts: []part{
				{"header: kind 3, flags 0x01 (reply), id 8, length 4, prefix 4", headerHex(wire.Header{Kind: wire.KindTransfer, Flags: wire.FlagReply, ID: 8, Length: 4, Prefix: 4})},
				{"VkResult 0", "00000000"},
			},
			frame: &frame{kind: wire.KindTransfer, flags: wire.FlagReply, id: 8, prefix: wire.AppendResult(nil, 0)},
		},
		{
			name: "read", about: "Read: fetch 8 bytes from offset 4096. The payload is the document's READ_MEMORY_DATA.",
			parts: []part{
				{"header: kind 4, id 9, length 28, prefix 28", headerHex(wire.Header{Kind: wire.KindRead, ID: 9, Length: 28, Prefix: 28})},
				{"command READ_MEMORY_DATA", "01000010"}, {"memory: the span's handle", "efcdab8967452301"}, {"offset 4096", "0010000000000000"}, {"size 8", "0800000000000000"},
			},
			frame: &frame{kind: wire.KindRead, id: 9, prefix: wire.AppendRead(nil, command)},
		},
		{
			name: "read-reply", about: "The reply to a Read: VK_SUCCESS and the data.",
			parts: []part{
				{"header: kind 4, flags 0x01 (reply), id 9, length 12, raw 8, prefix 4", headerHex(wire.Header{Kind: wire.KindRead, Flags: wire.FlagReply, ID: 9, Length: 12, Raw: 8, Prefix: 4})},
				{"VkResult 0", "00000000"}, {"data", "7856341278563412"},
			},
			frame: &frame{kind: wire.KindRead, flags: wire.FlagReply, id: 9, prefix: wire.AppendResult(nil, 0), data: pattern(8)},
		},
		{
			name: "flush", about: "Flush: bytes 0, 1 and 300 of block 3, changed since version 41. More frames of this flush follow.",
			parts: []part{
				{"header: kind 5, flags 0x04 (more), id 10, length 33, raw 3, prefix 30", headerHex(wire.Header{Kind: wire.KindFlush, Flags: wire.FlagMore, ID: 10, Length: 33, Raw: 3, Prefix: 30})},
				{"mapping", "8877665544332211"}, {"block 3", "0300000000000000"}, {"base version 41", "2900000000000000"},
				{"2 runs", "02"}, {"gap 0, length 2", "0002"}, {"gap 298, length 1", "aa0201"}, {"data: the runs' bytes", "aabbcc"},
			},
			frame: &frame{kind: wire.KindFlush, flags: wire.FlagMore, id: 10, prefix: wire.AppendFlush(nil, flush), data: []byte{0xaa, 0xbb, 0xcc}},
		},
		{
			name: "flush-reply", about: "The reply to a Flush: the block is at version 42, the span at 17; tiers 0 (VRAM) and 1 (Host) hold it.",
			parts: []part{
				{"header: kind 5, flags 0x01 (reply), id 10, length 24, prefix 24", headerHex(wire.Header{Kind: wire.KindFlush, Flags: wire.FlagReply, ID: 10, Length: 24, Prefix: 24})},
				{"VkResult 0", "00000000"}, {"block version 42", "2a00000000000000"}, {"span version 17", "1100000000000000"}, {"holders", "03000000"},
			},
			frame: &frame{kind: wire.KindFlush, flags: wire.FlagReply, id: 10, prefix: wire.FlushReply{Block: 42, Span: 17, Holders: 3}.Append(nil)},
		},
		{
			name: "error", about: "A reply that says why a Read failed: a VkResult, then an Error as JSON.",
			parts: []part{
				{"header: kind 4, flags 0x03 (reply, error), id 9, length 87, raw 83, prefix 4", headerHex(wire.Header{Kind: wire.KindRead, Flags: wire.FlagReply | wire.FlagError, ID: 9, Length: 87, Raw: 83, Prefix: 4})},
				{"VkResult VK_ERROR_VALIDATION_FAILED_EXT", hex.EncodeToString(wire.AppendResult(nil, -1000011001))},
				{`{"code":"out-of-range","op":"read","span":"x","offset":4096,"length":8,"version":3}`, hex.EncodeToString([]byte(`{"code":"out-of-range","op":"read","span":"x","offset":4096,"length":8,"version":3}`))},
			},
			frame: &frame{kind: wire.KindRead, flags: wire.FlagReply | wire.FlagError, id: 9, prefix: wire.AppendResult(nil, wire.OutOfRange.VkResult()),
				data: (&wire.Error{Code: wire.OutOfRange, Op: "read", Span: "x", Offset: 4096, Length: 8, Version: 3}).Append(nil)},
		},
		{
			name: "hello", about: "The first frame of a connection. Its JSON is a data part.",
			parts: []part{
				{"header: kind 1, id 1, length 14, raw 14", headerHex(wire.Header{Kind: wire.KindHello, ID: 1, Length: 14, Raw: 14})},
				{`{"protocol":1}`, hex.EncodeToString([]byte(`{"protocol":1}`))},
			},
			frame: &frame{kind: wire.KindHello, id: 1, data: []byte(`{"protocol":1}`)},
		},
		{
			name: "fill", about: "The reply to a Read of 4098 bytes that are one pattern of 4 bytes. The last pattern is cut.",
			parts: []part{
				{"header: kind 4, flags 0x01, encoding 2, id 9, length 8, raw 4098, prefix 4", headerHex(wire.Header{Kind: wire.KindRead, Flags: wire.FlagReply, Encoding: wire.EncodingFill, ID: 9, Length: 8, Raw: 4098, Prefix: 4})},
				{"VkResult 0", "00000000"}, {"pattern 0x12345678, little-endian", "78563412"},
			},
			cfg:   s2cfg,
			frame: &frame{kind: wire.KindRead, flags: wire.FlagReply, id: 9, prefix: wire.AppendResult(nil, 0), data: pattern(4098)},
		},
		{
			name: "s2", about: "The reply to a Read of 5000 bytes, compressed: \"memspan \" and 4992 bytes that repeat it. Other encoders may write other bytes that decode to the same.",
			parts: []part{
				{"header: kind 4, flags 0x01, encoding 1, id 9, length 21, raw 5000, prefix 4", "" /* the encoder's */},
			},
			cfg:   s2cfg,
			frame: &frame{kind: wire.KindRead, flags: wire.FlagReply, id: 9, prefix: wire.AppendResult(nil, 0), data: bytes.Repeat([]byte("memspan "), 625)},
		},
		{
			name: "version-2", about: "A frame of another protocol version: what follows the version byte is not looked at.",
			parts: []part{{"magic \"MSPN\"", "4d53504e"}, {"protocol version 2", "02"}, {"unknown", strings.Repeat("ff", 27)}},
			check: func(t *testing.T, b []byte) {
				var version *wire.VersionError
				if _, err := wire.ParseHeader(b); !errors.As(err, &version) || version.Got != 2 {
					t.Errorf("%v, want a VersionError", err)
				}
			},
		},
	}
}

func headerHex(h wire.Header) string { return hex.EncodeToString(h.Append(nil)) }

func encodesTo(t *testing.T, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Errorf("encoded as\n%x\nwant\n%x", got, want)
	}
}

// Every file of testdata/vectors decodes to what it says, and what it says
// encodes to the file.
func TestVectors(t *testing.T) {
	known := map[string]bool{}
	for _, v := range vectors() {
		known[v.name+".hex"] = true
		t.Run(v.name, func(t *testing.T) {
			path := filepath.Join("testdata", "vectors", v.name+".hex")
			if *update {
				if err := os.WriteFile(path, v.file(t), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			b := readVector(t, path)
			if v.frame == nil {
				v.check(t, b)
				return
			}
			got, err := readFrame(wire.NewConn(newMemConn(b), v.cfg))
			if err != nil || !got.equal(*v.frame) {
				t.Errorf("decoded to %+v, %v; want %+v", got, err, *v.frame)
			}
			if v.name != "s2" { // a newer encoder may do better
				encodesTo(t, encode(t, v.cfg, *v.frame), b)
			}
			checkPrefix(t, got)
		})
	}
	files, err := filepath.Glob("testdata/vectors/*.hex")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range files {
		if !known[filepath.Base(path)] {
			t.Errorf("%s is not tested", path)
		}
	}
}

// checkPrefix decodes the messages in the vectors' frames, and encodes them
// again.
func checkPrefix(t *testing.T, f frame) {
	t.Helper()
	switch {
	case f.flags&wire.FlagError != 0:
		result, err := wire.ParseResult(f.prefix)
		e, jerr := wire.ParseError(f.data)
		if err != nil || jerr != nil || e.Code.VkResult() != result {
			t.Errorf("%d, %v, %v, %v", result, e, err, jerr)
		}
	case f.kind == wire.KindFlush && f.flags&wire.FlagReply != 0:
		if r, err := wire.ParseFlushReply(f.prefix); err != nil || r != (wire.FlushReply{Block: 42, Span: 17, Holders: 3}) {
			t.Errorf("%+v, %v", r, err)
		}
	case f.flags&wire.FlagReply != 0:
		if result, err := wire.ParseResult(f.prefix); err != nil || result != 0 {
			t.Errorf("%d, %v", result, err)
		}
	case f.kind == wire.KindFlush:
		want := wire.Flush{Mapping: 0x1122334455667788, Block: 3, Base: 41, Runs: []wire.Run{{Offset: 0, Length: 2}, {Offset: 300, Length: 1}}}
		if got, err := wire.ParseFlush(f.prefix, nil); err != nil || !reflect.DeepEqual(got, want) || got.DataLen() != len(f.data) {
			t.Errorf("%+v, %v", got, err)
		}
	case f.kind == wire.KindTransfer, f.kind == wire.KindRead:
		parse := wire.ParseTransfer
		if f.kind == wire.KindRead {
			parse = wire.ParseRead
		}
		if got, err := parse(f.prefix); err != nil || got != (wire.MemoryCommand{Memory: 0x0123456789abcdef, Offset: 4096, Size: 8}) {
			t.Errorf("%+v, %v", got, err)
		}
	}
}

// file returns the vector's file.
func (v vector) file(t *testing.T) []byte {
	var out bytes.Buffer
	fmt.Fprintf(&out, "# %s\n", v.about)
	if v.name == "s2" {
		b := encode(t, v.cfg, *v.frame)
		v.parts[0].hex = hex.EncodeToString(b[:wire.HeaderSize])
		v.parts = append(v.parts, part{"VkResult 0", hex.EncodeToString(b[32:36])}, part{"one block of the S2 format", hex.EncodeToString(b[36:])})
	}
	for _, p := range v.parts {
		for line := p.hex; ; {
			n := min(64, len(line))
			fmt.Fprintf(&out, "%s", line[:n])
			if line = line[n:]; line == "" {
				fmt.Fprintf(&out, " # %s\n", p.comment)
				break
			}
			out.WriteByte('\n')
		}
	}
	return out.Bytes()
}

// readVector returns the bytes in a file of hexadecimal digits, in which '#'
// begins a comment.
func readVector(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var digits strings.Builder
	for line := range strings.Lines(string(text)) {
		code, _, _ := strings.Cut(line, "#")
		digits.WriteString(strings.TrimSpace(code))
	}
	b, err := hex.DecodeString(digits.String())
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return b
}
