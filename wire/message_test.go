// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/memspan/memspan/wire"
)

func TestHeaderRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := drawHeader(t)
		b := want.Append([]byte("before"))
		if len(b) != len("before")+wire.HeaderSize {
			t.Fatalf("%d bytes", len(b)-len("before"))
		}
		got, err := wire.ParseHeader(append(b, "after"...)[len("before"):])
		if err != nil || got != want {
			t.Fatalf("%+v, %v; want %+v", got, err, want)
		}
	})
}

func drawHeader(t *rapid.T) wire.Header {
	h := wire.Header{
		Kind:   wire.Kind(rapid.IntRange(1, 6).Draw(t, "kind")),
		ID:     rapid.Uint64().Draw(t, "id"),
		Prefix: rapid.Uint32Range(0, wire.MaxPrefix).Draw(t, "prefix"),
		Raw:    rapid.Uint32Range(0, wire.MaxData).Draw(t, "raw"),
	}
	h.Length = h.Prefix + h.Raw
	switch {
	case h.Raw > 4 && rapid.Bool().Draw(t, "fill"):
		h.Encoding, h.Length = wire.EncodingFill, h.Prefix+4
	case h.Raw > 1 && rapid.Bool().Draw(t, "s2"):
		h.Encoding, h.Length = wire.EncodingS2, h.Prefix+rapid.Uint32Range(1, h.Raw-1).Draw(t, "encoded")
	}
	h.Flags = rapid.SampledFrom([]wire.Flags{0, wire.FlagReply, wire.FlagReply | wire.FlagError, wire.FlagMore, wire.FlagFirst, wire.FlagFirst | wire.FlagMore}).Draw(t, "flags")
	if h.Length > 0 && rapid.Bool().Draw(t, "sum") {
		h.Flags |= wire.FlagSum
	}
	return h
}

func TestHeadersRefused(t *testing.T) {
	good := wire.Header{Kind: wire.KindTransfer, Length: 128, Prefix: 28, Raw: 100}
	for name, c := range map[string]struct {
		edit func(*wire.Header)
		want error
	}{
		"kind 0":                  {func(h *wire.Header) { h.Kind = 0 }, wire.ErrMalformed},
		"kind 8":                  {func(h *wire.Header) { h.Kind = 8 }, wire.ErrMalformed},
		"unknown flag":            {func(h *wire.Header) { h.Flags = 0x20 }, wire.ErrMalformed},
		"error without reply":     {func(h *wire.Header) { h.Flags = wire.FlagError }, wire.ErrMalformed},
		"sum of nothing":          {func(h *wire.Header) { *h = wire.Header{Kind: wire.KindEvent, Flags: wire.FlagSum} }, wire.ErrMalformed},
		"unknown encoding":        {func(h *wire.Header) { h.Encoding = 3 }, wire.ErrMalformed},
		"prefix beyond payload":   {func(h *wire.Header) { h.Length = 27 }, wire.ErrMalformed},
		"raw: lengths differ":     {func(h *wire.Header) { h.Raw = 99 }, wire.ErrMalformed},
		"s2 as long as raw":       {func(h *wire.Header) { h.Encoding = wire.EncodingS2 }, wire.ErrMalformed},
		"s2 of no bytes":          {func(h *wire.Header) { h.Encoding, h.Length = wire.EncodingS2, 28 }, wire.ErrMalformed},
		"fill of 5 bytes":         {func(h *wire.Header) { h.Encoding, h.Length = wire.EncodingFill, 33 }, wire.ErrMalformed},
		"fill longer than raw":    {func(h *wire.Header) { h.Encoding, h.Length, h.Raw = wire.EncodingFill, 32, 3 }, wire.ErrMalformed},
		"data over the limit":     {func(h *wire.Header) { h.Raw = wire.MaxData + 1; h.Length = h.Prefix + h.Raw }, wire.ErrTooLarge},
		"data over, encoded":      {func(h *wire.Header) { h.Raw, h.Encoding, h.Length = 1<<32-1, wire.EncodingFill, 32 }, wire.ErrTooLarge},
		"prefix over the limit":   {func(h *wire.Header) { h.Prefix = wire.MaxPrefix + 1; h.Length = h.Prefix + h.Raw }, wire.ErrTooLarge},
		"everything over":         {func(h *wire.Header) { h.Prefix, h.Length, h.Raw = 1<<32-1, 1<<32-1, 1<<32-1 }, wire.ErrTooLarge},
		"payload beyond its data": {func(h *wire.Header) { h.Length = 1<<32 - 1 }, wire.ErrMalformed},
	} {
		h := good
		c.edit(&h)
		if got, err := wire.ParseHeader(h.Append(nil)); !errors.Is(err, c.want) || got != (wire.Header{}) {
			t.Errorf("%s: %+v, %v; want %v", name, got, err, c.want)
		}
	}
	if _, err := wire.ParseHeader(good.Append(nil)[:31]); !errors.Is(err, wire.ErrTruncated) {
		t.Errorf("31 bytes: %v", err)
	}
}

func TestVersionErrorIsClear(t *testing.T) {
	b := wire.Header{Kind: wire.KindHello}.Append(nil)
	b[4] = 9 // and the sum, which another version may have elsewhere, is wrong
	_, err := wire.ParseHeader(b)
	if !errors.Is(err, wire.BadVersion) || !strings.Contains(fmt.Sprint(err), "version 9") {
		t.Errorf("%v", err)
	}
}

func TestMemoryCommandRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := wire.MemoryCommand{
			Memory: rapid.Uint64().Draw(t, "memory"),
			Offset: rapid.Uint64().Draw(t, "offset"),
			Size:   rapid.Uint64Range(0, wire.MaxData).Draw(t, "size"),
		}
		transfer, read := wire.AppendTransfer(nil, want), wire.AppendRead(nil, want)
		if got, err := wire.ParseTransfer(transfer); err != nil || got != want {
			t.Fatalf("transfer: %+v, %v; want %+v", got, err, want)
		}
		if got, err := wire.ParseRead(read); err != nil || got != want {
			t.Fatalf("read: %+v, %v; want %+v", got, err, want)
		}
		if _, err := wire.ParseRead(transfer); !errors.Is(err, wire.ErrMalformed) {
			t.Fatalf("a transfer read as a read: %v", err)
		}
	})
}

func TestMemoryCommandsRefused(t *testing.T) {
	b := wire.AppendRead(nil, wire.MemoryCommand{Memory: 1, Size: wire.MaxData + 1})
	if _, err := wire.ParseRead(b); !errors.Is(err, wire.ErrTooLarge) {
		t.Errorf("size over the limit: %v", err)
	}
	for n := range len(b) {
		if _, err := wire.ParseRead(b[:n]); !errors.Is(err, wire.ErrMalformed) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	if _, err := wire.ParseRead(append(b, 0)); !errors.Is(err, wire.ErrMalformed) {
		t.Errorf("a byte too many: %v", err)
	}
}

func drawFlush(t *rapid.T) wire.Flush {
	f := wire.Flush{
		Mapping: rapid.Uint64().Draw(t, "mapping"),
		Block:   rapid.Uint64().Draw(t, "block"),
		Base:    rapid.OneOf(rapid.Uint64(), rapid.Just(wire.AnyVersion)).Draw(t, "base"),
	}
	length := rapid.OneOf(rapid.Uint32Range(1, 10), rapid.Uint32Range(1, wire.MaxData))
	gap := rapid.OneOf(rapid.Uint32Range(1, 10), rapid.Uint32Range(1, wire.MaxData))
	end := rapid.SampledFrom([]uint32{0, 1, 1000}).Draw(t, "first")
	for {
		n := min(length.Draw(t, "length"), wire.MaxData-end)
		f.Runs = append(f.Runs, wire.Run{Offset: end, Length: n})
		end += n
		step := gap.Draw(t, "gap")
		if end+step >= wire.MaxData || len(f.Runs) > 50 {
			return f
		}
		end += step
	}
}

func TestFlushRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := drawFlush(t)
		b := wire.AppendFlush(nil, want)
		got, err := wire.ParseFlush(b, make([]wire.Run, 3, 10))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("%+v, %v; want %+v", got, err, want)
		}
		for n := range b { // the prefix of a prefix is none
			if _, err := wire.ParseFlush(b[:n], nil); !errors.Is(err, wire.ErrMalformed) {
				t.Fatalf("%d of %d bytes: %v", n, len(b), err)
			}
		}
	})
}

// Runs that touch are one: a receiver need not see where a sender's pages end.
func TestTouchingRunsAreJoined(t *testing.T) {
	split := wire.Flush{Runs: []wire.Run{{0, 10}, {10, 5}, {16, 1}, {17, 3}, {20, 4}, {30, 1}}}
	joined := wire.Flush{Runs: []wire.Run{{0, 15}, {16, 8}, {30, 1}}}
	got, err := wire.ParseFlush(wire.AppendFlush(nil, split), nil)
	if err != nil || !reflect.DeepEqual(got, joined) {
		t.Errorf("%+v, %v; want %+v", got, err, joined)
	}
	if split.DataLen() != got.DataLen() {
		t.Errorf("%d bytes of data became %d", split.DataLen(), got.DataLen())
	}
}

// The worst flush of a block, every other byte of it, fits into one frame.
func TestLargestFlushFits(t *testing.T) {
	var f wire.Flush
	for off := uint32(0); off < wire.MaxData; off += 2 {
		f.Runs = append(f.Runs, wire.Run{Offset: off, Length: 1})
	}
	b := wire.AppendFlush(nil, f)
	if len(b) > wire.MaxPrefix {
		t.Fatalf("%d bytes, a prefix has at most %d", len(b), wire.MaxPrefix)
	}
	got, err := wire.ParseFlush(b, nil)
	if err != nil || len(got.Runs) != len(f.Runs) {
		t.Fatalf("%d runs, %v", len(got.Runs), err)
	}
}

func TestFlushesRefused(t *testing.T) {
	head := make([]byte, 24)
	long := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01} // 2^64-1
	for name, c := range map[string]struct {
		tail []byte
		want error
	}{
		"no runs":             {[]byte{0}, wire.ErrMalformed},
		"empty run":           {[]byte{1, 5, 0}, wire.ErrMalformed},
		"touching runs":       {[]byte{2, 5, 1, 0, 1}, wire.ErrMalformed},
		"more than promised":  {[]byte{1, 5, 1, 5, 1}, wire.ErrMalformed},
		"fewer than promised": {[]byte{3, 5, 1, 5, 1}, wire.ErrMalformed},
		"many promised":       {append(append([]byte{}, long...), 5, 1), wire.ErrMalformed},
		"long form of 1":      {[]byte{1, 0x81, 0, 1}, wire.ErrMalformed},
		"beyond the block":    {[]byte{1, 0, 0x81, 0x80, 0x40}, wire.ErrTooLarge}, // 1 MiB + 1
		"gap wraps":           {append([]byte{2, 5, 1}, append(append([]byte{}, long...), 1)...), wire.ErrTooLarge},
		"length wraps":        {append([]byte{1, 5}, long...), wire.ErrTooLarge},
	} {
		if _, err := wire.ParseFlush(append(head[:24:24], c.tail...), nil); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	for name, runs := range map[string][]wire.Run{
		"none": nil, "empty": {{5, 0}}, "descending": {{5, 1}, {3, 1}}, "overlapping": {{5, 3}, {7, 1}}, "beyond": {{wire.MaxData, 1}}, "wraps": {{1, 1<<32 - 1}},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: AppendFlush took it", name)
				}
			}()
			wire.AppendFlush(nil, wire.Flush{Runs: runs})
		}()
	}
}

func TestReplies(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := wire.FlushReply{
			Result: rapid.Int32().Draw(t, "result"), Block: rapid.Uint64().Draw(t, "block"),
			Span: rapid.Uint64().Draw(t, "span"), Holders: rapid.Uint32().Draw(t, "holders"),
		}
		b := want.Append(nil)
		if got, err := wire.ParseFlushReply(b); err != nil || got != want {
			t.Fatalf("%+v, %v; want %+v", got, err, want)
		}
		if _, err := wire.ParseFlushReply(b[1:]); !errors.Is(err, wire.ErrMalformed) {
			t.Fatal(err)
		}
		b = wire.AppendResult(nil, want.Result)
		if got, err := wire.ParseResult(b); err != nil || got != want.Result {
			t.Fatalf("%d, %v; want %d", got, err, want.Result)
		}
		if _, err := wire.ParseResult(b[1:]); !errors.Is(err, wire.ErrMalformed) {
			t.Fatal(err)
		}
	})
}

// codes are as released: numbers and names stay.
var codes = []struct {
	code   wire.Code
	number uint16
	name   string
	result int32
}{
	{wire.Internal, 1, "internal", -13}, {wire.Invalid, 2, "invalid", -1000011001},
	{wire.NotFound, 3, "not-found", -1000072003}, {wire.Exists, 4, "exists", -1000011001},
	{wire.OutOfRange, 5, "out-of-range", -1000011001}, {wire.WrongMode, 6, "wrong-mode", -5},
	{wire.NotMapped, 7, "not-mapped", -5}, {wire.Freed, 8, "freed", -1000072003},
	{wire.TierAbsent, 9, "tier-absent", -8}, {wire.Budget, 10, "budget", -2},
	{wire.Limit, 11, "limit", -10}, {wire.Unauthenticated, 12, "unauthenticated", -1000174001},
	{wire.BadVersion, 13, "bad-version", -9}, {wire.Conflict, 14, "conflict", -13},
	{wire.DataLoss, 15, "data-loss", -4}, {wire.PeerLost, 16, "peer-lost", -4},
	{wire.Corrupt, 17, "corrupt", -4}, {wire.Stalled, 18, "stalled", -4},
	{wire.Closed, 19, "closed", -4}, {wire.Unsupported, 20, "unsupported", -8},
	{wire.LastCopy, 21, "last-copy", -13}, {wire.Pinned, 22, "pinned", -13},
	{wire.LockLost, 23, "lock-lost", -4}, {wire.NotHeld, 24, "not-held", -1000011001},
	{wire.Canceled, 25, "canceled", -13}, {wire.Debt, 26, "debt", -13},
	{wire.Busy, 27, "busy", -13}, {wire.WrongState, 28, "wrong-state", -13},
}

func TestCodes(t *testing.T) {
	for _, c := range codes {
		if uint16(c.code) != c.number || c.code.String() != c.name || c.code.VkResult() != c.result {
			t.Errorf("%v: number %d, result %d; want %s, %d, %d", c.code, uint16(c.code), c.code.VkResult(), c.name, c.number, c.result)
		}
		if words := strings.ReplaceAll(c.name, "-", " "); strings.Contains(strings.TrimPrefix(c.code.Error(), c.name), words) {
			t.Errorf("%q says %q twice", c.code.Error(), words)
		}
		j, err := json.Marshal(&wire.Error{Code: c.code})
		if want := fmt.Sprintf(`{"code":%q}`, c.name); err != nil || string(j) != want {
			t.Errorf("%s, %v; want %s", j, err, want)
		}
		got, err := wire.ParseError(j)
		if err != nil || !errors.Is(got, c.code) || errors.Is(got, c.code+1) {
			t.Errorf("%s: %v, %v", j, got, err)
		}
	}
	last := codes[len(codes)-1].code
	for _, unknown := range []wire.Code{0, last + 1, 0xffff} {
		if unknown.VkResult() >= 0 || unknown.Error() == "" {
			t.Errorf("%d: result %d, text %q", unknown, unknown.VkResult(), unknown.Error())
		}
	}
	if e, err := wire.ParseError([]byte(`{"code":"from-the-future","message":"m","more":1}`)); err != nil || e.Code != wire.Internal || e.Message != "m" {
		t.Errorf("unknown code: %v, %v", e, err)
	}
}

func TestErrorText(t *testing.T) {
	for _, c := range []struct {
		err  wire.Error
		want string
	}{
		{wire.Error{Code: wire.Conflict, Op: "flush", Span: "x", Length: 4096, Message: "changed since version 3"},
			`flush span "x" [0,+4096): conflict: changed since version 3`},
		{wire.Error{Code: wire.TierAbsent}, `tier-absent: the server has no such tier`},
		{wire.Error{Code: wire.DataLoss, Op: "read", Version: 9, Survivor: 7},
			`read: data-loss: the last copy of the current version is gone (version 9; newest surviving: 7)`},
		{wire.Error{Code: wire.PeerLost, Span: "x", Err: io.ErrUnexpectedEOF},
			`span "x": peer-lost: the connection broke: unexpected EOF`},
	} {
		if got := c.err.Error(); got != c.want {
			t.Errorf("%s\nwant %s", got, c.want)
		}
	}
	e := &wire.Error{Code: wire.PeerLost, Err: io.ErrUnexpectedEOF}
	if err := fmt.Errorf("wrapped: %w", e); !errors.Is(err, wire.PeerLost) || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error("neither code nor cause is found")
	}
}

func TestErrorCrossesTheWire(t *testing.T) {
	want := wire.Error{Code: wire.DataLoss, Op: "read", Span: "ä \"x\"", Offset: 1 << 50, Length: 2, Version: 1<<64 - 1, Survivor: 3, Message: "why"}
	got, err := wire.ParseError(want.Append(nil))
	if err != nil || *got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	cause := wire.Error{Code: wire.Internal, Message: "tier", Err: io.ErrNoProgress}
	if got, err := wire.ParseError(cause.Append(nil)); err != nil || !strings.Contains(got.Message, io.ErrNoProgress.Error()) {
		t.Errorf("the cause's text is lost: %+v, %v", got, err)
	}
	huge := wire.Error{Code: wire.Invalid, Message: strings.Repeat("\x00", 4<<20), Span: strings.Repeat("ä", 1<<20)}
	b := huge.Append([]byte("before"))
	if len(b) > wire.MaxControl {
		t.Errorf("%d bytes", len(b))
	}
	if got, err := wire.ParseError(bytes.TrimPrefix(b, []byte("before"))); err != nil || got.Code != wire.Invalid {
		t.Errorf("%v, %v", got.Code, err)
	}
	if _, err := wire.ParseError([]byte("{")); !errors.Is(err, wire.ErrMalformed) {
		t.Error(err)
	}
}
