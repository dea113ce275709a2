// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"bytes"
	"reflect"
	"testing"

	"github.com/memspan/memspan/wire"
)

func FuzzParseHeader(f *testing.F) {
	f.Add(wire.Header{Kind: wire.KindTransfer, ID: 1, Length: 128, Prefix: 28, Raw: 100}.Append(nil))
	f.Add(wire.Header{Kind: wire.KindRead, Flags: wire.FlagReply | wire.FlagSum, Encoding: wire.EncodingFill, Length: 8, Prefix: 4, Raw: 4096}.Append(nil))
	f.Add(wire.Header{Kind: wire.KindFlush, Flags: wire.FlagMore, Encoding: wire.EncodingS2, Length: 60, Prefix: 30, Raw: 100}.Append(nil))
	f.Add(make([]byte, wire.HeaderSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == wire.HeaderSize { // so that the rest is looked at too
			h := wire.Header{Kind: wire.Kind(b[5]), Flags: wire.Flags(b[6]), Encoding: wire.Encoding(b[7])}
			sum := h.Append(nil)
			copy(b[:5], sum)
		}
		h, err := wire.ParseHeader(b)
		if err != nil {
			if h != (wire.Header{}) {
				t.Fatalf("refused, but returned: %+v", h)
			}
			return
		}
		if h.Raw > wire.MaxData || h.Prefix > wire.MaxPrefix || h.Length > wire.MaxData+wire.MaxPrefix {
			t.Fatalf("over the limits: %+v", h)
		}
		if got := h.Append(nil); !bytes.Equal(got, b[:wire.HeaderSize]) {
			t.Fatalf("% x became % x", b, got)
		}
	})
}

func FuzzParseTransfer(f *testing.F) {
	f.Add(wire.AppendTransfer(nil, wire.MemoryCommand{Memory: 1, Offset: 1<<64 - 1, Size: 1}))
	f.Add([]byte{0, 0, 0, 0x10})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := wire.ParseTransfer(b)
		if err == nil && (m.Size > wire.MaxData || !bytes.Equal(wire.AppendTransfer(nil, m), b)) {
			t.Fatalf("% x: %+v", b, m)
		}
	})
}

func FuzzParseRead(f *testing.F) {
	f.Add(wire.AppendRead(nil, wire.MemoryCommand{Memory: 1, Offset: 4096, Size: 1 << 20}))
	f.Add([]byte{1, 0, 0, 0x10})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := wire.ParseRead(b)
		if err == nil && (m.Size > wire.MaxData || !bytes.Equal(wire.AppendRead(nil, m), b)) {
			t.Fatalf("% x: %+v", b, m)
		}
	})
}

func FuzzParseFlush(f *testing.F) {
	f.Add(wire.AppendFlush(nil, wire.Flush{Mapping: 1, Block: 2, Base: 3, Runs: []wire.Run{{0, 1}, {5, 1000}, {wire.MaxData - 1, 1}}}))
	f.Add(append(make([]byte, 24), 0xff, 0xff, 0x3f, 1, 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		flush, err := wire.ParseFlush(b, nil)
		if err != nil {
			return
		}
		end := uint64(0)
		for i, r := range flush.Runs {
			if r.Length == 0 || uint64(r.Offset) < end || i > 0 && uint64(r.Offset) == end {
				t.Fatalf("run %d: %+v", i, flush.Runs)
			}
			end = uint64(r.Offset) + uint64(r.Length)
		}
		if end > wire.MaxData || !bytes.Equal(wire.AppendFlush(nil, flush), b) {
			t.Fatalf("% x: %+v", b, flush)
		}
	})
}

func FuzzParseReplies(f *testing.F) {
	f.Add(wire.FlushReply{Result: -4, Block: 1, Span: 2, Holders: 3}.Append(nil))
	f.Add(wire.AppendResult(nil, -13))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := wire.ParseFlushReply(b); err == nil && !bytes.Equal(r.Append(nil), b) {
			t.Fatalf("% x: %+v", b, r)
		}
		if r, err := wire.ParseResult(b); err == nil && !bytes.Equal(wire.AppendResult(nil, r), b) {
			t.Fatalf("% x: %d", b, r)
		}
	})
}

func FuzzParseError(f *testing.F) {
	e := wire.Error{Code: wire.DataLoss, Op: "read", Span: "x", Offset: 1, Length: 2, Version: 3, Survivor: 4, Message: "m"}
	f.Add(e.Append(nil))
	f.Add([]byte(`{"code":"new","x":[]}`))
	f.Add([]byte(`{"code":7}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := wire.ParseError(b)
		if err != nil {
			return
		}
		again, err := wire.ParseError(e.Append(nil))
		if err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		if len(e.Op)+len(e.Span)+len(e.Message) < 1000 && !reflect.DeepEqual(e, again) {
			t.Fatalf("%+v became %+v", e, again)
		}
		_ = e.Error()
	})
}

// FuzzStream feeds a connection whatever comes. What it accepts must be what a
// connection can send.
func FuzzStream(f *testing.F) {
	for _, s := range sentFrames() {
		f.Add(append(s.bytes, s.bytes...), s.sum)
	}
	f.Fuzz(func(t *testing.T, b []byte, sums bool) {
		cfg := wire.Config{Compress: true, Sums: sums}
		c := wire.NewConn(newMemConn(b), cfg)
		for {
			got, err := readFrame(c)
			if err != nil {
				if again := discardFrame(c); again == nil {
					t.Fatalf("a frame after an error: %v", err)
				}
				return
			}
			back, err := readFrame(wire.NewConn(newMemConn(encode(t, cfg, got)), cfg))
			if err != nil || !back.equal(got) {
				t.Fatalf("accepted what cannot be sent: %v", err)
			}
		}
	})
}

// FuzzEncoded gives the decoders payloads under headers that are in order.
func FuzzEncoded(f *testing.F) {
	fill := frame{data: pattern(5000)}.bytes(wire.EncodingFill, false)
	f.Add(fill[wire.HeaderSize:], uint8(wire.EncodingFill), uint32(5000))
	compressed := frame{data: text(5000)}.bytes(wire.EncodingS2, false)
	f.Add(compressed[wire.HeaderSize:], uint8(wire.EncodingS2), uint32(5000))
	f.Fuzz(func(t *testing.T, payload []byte, encoding uint8, raw uint32) {
		h := wire.Header{Kind: wire.KindTransfer, Encoding: wire.Encoding(encoding), Length: uint32(len(payload)), Raw: raw % (wire.MaxData + 1)}
		c := wire.NewConn(newMemConn(append(h.Append(nil), payload...)), wire.Config{Compress: true})
		if _, err := c.ReadHeader(); err != nil {
			return
		}
		const guard = 64
		dst := bytes.Repeat([]byte{0xa5}, int(h.Raw)+guard)
		_ = c.ReadData(dst[:h.Raw])
		if !bytes.Equal(dst[h.Raw:], bytes.Repeat([]byte{0xa5}, guard)) {
			t.Fatal("decoded beyond the end")
		}
	})
}
