// SPDX-License-Identifier: Apache-2.0

package stream_test

import (
	"bytes"
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/memspan/memspan/vulkan/stream"
	"github.com/memspan/memspan/wire"
)

func TestBodies(t *testing.T) {
	hello := stream.Hello{Fingerprint: 1 << 60, Flags: stream.SameMachine, PID: 42, Name: "app"}
	if got, err := stream.ParseHello(hello.Append(nil)); err != nil || got != hello {
		t.Errorf("%+v, %v", got, err)
	}
	welcome := stream.Welcome{Fingerprint: 1 << 61, PID: 43, Objects: 44, Depth: 45, Text: strings.Repeat("x", stream.MaxText)}
	if got, err := stream.ParseWelcome(welcome.Append(nil)); err != nil || got != welcome {
		t.Errorf("%+v, %v", got, err)
	}
	address := stream.Address{Buffer: 1<<32 | 5, Address: 1 << 63}
	if got, err := stream.ParseAddress(address.Append(nil)); err != nil || got != address {
		t.Errorf("%+v, %v", got, err)
	}
	if result, text, err := stream.ParseFailed(stream.AppendFailed(nil, -2, "why")); err != nil || result != -2 || text != "why" {
		t.Errorf("%d, %q, %v", result, text, err)
	}
	if _, _, err := stream.ParseFailed(stream.AppendFailed(nil, 0, "")); !errors.Is(err, stream.ErrMalformed) {
		t.Errorf("a failure that is success: %v", err)
	}
	lost := stream.Lost{Result: -4, Command: 77, Text: "hung"}
	if got, err := stream.ParseLost(lost.Append(nil)); err != nil || got != lost {
		t.Errorf("%+v, %v", got, err)
	}
	signals := []stream.Signal{{Kind: stream.SignalFence, ID: 1<<32 | 1, Value: 2}, {Kind: stream.SignalSemaphore, ID: 3, Value: 1<<64 - 1}}
	var b []byte
	for _, s := range signals {
		b = s.Append(b)
	}
	for _, want := range signals {
		var got stream.Signal
		var err error
		if got, b, err = stream.NextSignal(b); err != nil || got != want {
			t.Errorf("%+v, %v", got, err)
		}
	}
	if len(b) != 0 {
		t.Errorf("%d bytes are left", len(b))
	}
}

// A longer text than fits is cut, not refused by the other side.
func TestLongTexts(t *testing.T) {
	long := strings.Repeat("x", 2*stream.MaxText)
	if h, err := stream.ParseHello(stream.Hello{Name: long}.Append(nil)); err != nil || h.Name != long[:stream.MaxText] {
		t.Errorf("%d bytes, %v", len(h.Name), err)
	}
	if l, err := stream.ParseLost(stream.Lost{Text: long}.Append(nil)); err != nil || l.Text != long[:stream.MaxText] {
		t.Errorf("%d bytes, %v", len(l.Text), err)
	}
}

func TestRuns(t *testing.T) {
	runs := []stream.Run{{Offset: 1 << 40, Length: 3}, {Offset: 5, Length: 0}, {Offset: 7, Length: 2}}
	b := append(stream.AppendRuns(nil, 9, runs), "abcde"...)
	m, err := stream.ParseRuns(b)
	if err != nil || m.Memory != 9 || m.Len() != len(runs) || string(m.Data) != "abcde" {
		t.Fatalf("%+v, %v", m, err)
	}
	for i, want := range runs {
		if m.At(i) != want {
			t.Errorf("run %d: %+v", i, m.At(i))
		}
	}
	for n := range b { // also one byte less of data
		if _, err := stream.ParseRuns(b[:n]); !errors.Is(err, stream.ErrMalformed) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	if _, err := stream.ParseRuns(append(b, 0)); !errors.Is(err, stream.ErrMalformed) {
		t.Errorf("a byte too much: %v", err)
	}
	if _, err := stream.ParseRuns(stream.AppendRuns(nil, 1, []stream.Run{{Offset: 1<<64 - 1}})); !errors.Is(err, stream.ErrMalformed) {
		t.Errorf("a run at the end of all: %v", err)
	}
}

func TestRecords(t *testing.T) {
	var b []byte
	for i, call := range []string{"", "fill", "copy it"} {
		start := len(b)
		b = append(stream.AppendRecord(b, uint16(i)), call...)
		stream.EndRecord(b, start)
	}
	rest := b
	for i, want := range []string{"", "fill", "copy it"} {
		command, call, after, err := stream.NextRecord(rest)
		if err != nil || command != uint16(i) || string(call) != want {
			t.Errorf("%d, %q, %v", command, call, err)
		}
		rest = after
	}
	if _, _, _, err := stream.NextRecord(b[:3]); !errors.Is(err, stream.ErrMalformed) {
		t.Errorf("cut: %v", err)
	}
	b[2] = 200
	if _, _, _, err := stream.NextRecord(b); !errors.Is(err, stream.ErrMalformed) {
		t.Errorf("longer than what is there: %v", err)
	}
}

// Whatever arrives, in frames of whatever sizes, Read returns the messages it
// holds, or fails; what it returns does not depend on the frames.
func FuzzRead(f *testing.F) {
	f.Add(header(0, 1, 0), uint16(3))
	f.Add(append(header(4, 1, 1), "abcd"...), uint16(7))
	f.Add(append(append(header(2, 0x8020, 2), 1, 2), header(stream.MaxBody, 2, 0)...), uint16(1))
	f.Add(header(stream.MaxBody+1, 2, 9), uint16(100))
	f.Fuzz(func(t *testing.T, b []byte, size uint16) {
		whole, werr := readAll(b, len(b))
		parts, perr := readAll(b, 1+int(size)%1000)
		if len(whole) != len(parts) || !errors.Is(perr, werrClass(werr)) {
			t.Fatalf("%d messages, %v; in parts %d, %v", len(whole), werr, len(parts), perr)
		}
		total := 0
		for i := range whole {
			if !whole[i].equal(parts[i]) {
				t.Fatalf("message %d: %v; in parts %v", i, whole[i], parts[i])
			}
			total += stream.HeaderSize + len(whole[i].body)
		}
		if total > len(b) {
			t.Fatalf("%d bytes of messages in %d", total, len(b))
		}
	})
}

// werrClass returns the sentinel that an error of Read matches.
func werrClass(err error) error {
	for _, class := range []error{stream.ErrMalformed, wire.PeerLost} {
		if errors.Is(err, class) {
			return class
		}
	}
	return err
}

// readAll returns the messages in b, sent in frames of n bytes, and why no
// more came.
func readAll(b []byte, n int) ([]message, error) {
	an, bn := net.Pipe()
	wa, c := wire.NewConn(an, wire.Config{}), stream.New(wire.NewConn(bn, wire.Config{}))
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer wa.Close()
		for len(b) > 0 {
			k := min(n, len(b), stream.MaxFrame)
			if wa.WriteFrame(wire.Header{Kind: wire.KindStream}, nil, b[:k]) != nil {
				return
			}
			b = b[k:]
		}
	}()
	defer func() { c.Close(); <-done }()
	var all []message
	for {
		m, err := c.Read()
		if err != nil {
			return all, err
		}
		all = append(all, message{m.Op, m.Flags, m.Serial, bytes.Clone(m.Body)})
	}
}
