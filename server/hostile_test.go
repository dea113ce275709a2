// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/memspan/memspan/coherency"
	"github.com/memspan/memspan/internal/fdpass"
	"github.com/memspan/memspan/server"
	"github.com/memspan/memspan/wire"
	"github.com/memspan/memspan/wire/control"
)

// listen starts a server of RAM on a unix socket and on loopback TCP.
func listen(t testing.TB, cfg server.Config) (srv *server.Server, socket, tcp string) {
	t.Helper()
	if cfg.Token == "" {
		cfg.Token = "secret"
	}
	if cfg.HostBudget == 0 {
		cfg.HostBudget = 256 << 20
	}
	srv, err := server.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	socket = filepath.Join(t.TempDir(), "s")
	served := make(chan error, 2)
	serve := func(network, address string) net.Addr {
		ln, err := net.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		go func() { served <- srv.Serve(t.Context(), ln) }()
		return ln.Addr()
	}
	serve("unix", socket)
	tcp = serve("tcp", "127.0.0.1:0").String()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := srv.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		for range 2 {
			if err := <-served; err != nil && !errors.Is(err, net.ErrClosed) { // it had not begun
				t.Error(err)
			}
		}
	})
	return srv, socket, tcp
}

// impatience is how long a server waits for a peer that a test has stall. It is
// more than a busy machine lets those wait for their turn who do not.
const impatience = 2 * time.Second

// A peer is a client that may say anything.
type peer struct {
	t    testing.TB
	raw  net.Conn
	conn *wire.Conn
	id   uint64
}

func connect(t testing.TB, network, address string) *peer {
	t.Helper()
	raw, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { raw.Close() })
	p := &peer{t: t, raw: raw}
	if uc, ok := raw.(*net.UnixConn); ok {
		p.conn = wire.NewConn(fdpass.New(uc), wire.Config{})
	} else {
		p.conn = wire.NewConn(raw, wire.Config{Sums: true})
	}
	return p
}

func (p *peer) send(kind wire.Kind, prefix, data []byte) uint64 {
	p.t.Helper()
	p.id++
	if err := p.conn.WriteFrame(wire.Header{Kind: kind, ID: p.id}, prefix, data); err != nil {
		p.t.Fatal(err)
	}
	return p.id
}

// receive reads a reply and its data part.
func (p *peer) receive() (wire.Header, []byte, error) {
	h, err := p.conn.ReadHeader()
	for err == nil && h.Kind == wire.KindEvent {
		if err = p.conn.Discard(); err == nil {
			h, err = p.conn.ReadHeader()
		}
	}
	if err != nil {
		return h, nil, err
	}
	if _, err := p.conn.ReadPrefix(make([]byte, h.Prefix)); err != nil {
		return h, nil, err
	}
	data := make([]byte, h.Raw)
	return h, data, p.conn.ReadData(data)
}

// ask sends a request and returns its reply's data, or the error it carries.
func (p *peer) ask(kind wire.Kind, prefix, data []byte) ([]byte, error) {
	p.t.Helper()
	id := p.send(kind, prefix, data)
	h, reply, err := p.receive()
	if err != nil {
		return nil, err
	}
	if h.ID != id {
		p.t.Fatalf("reply to request %d, want %d", h.ID, id)
	}
	if h.Has(wire.FlagError) {
		we, err := wire.ParseError(reply)
		if err != nil {
			p.t.Fatal(err)
		}
		return nil, we
	}
	return reply, nil
}

func (p *peer) hello(h control.Hello) error {
	data, _ := json.Marshal(h)
	_, err := p.ask(wire.KindHello, nil, data)
	return err
}

func (p *peer) greet() *peer {
	p.t.Helper()
	if err := p.hello(control.Hello{Protocol: wire.Version, Token: "secret"}); err != nil {
		p.t.Fatal(err)
	}
	return p
}

func (p *peer) control(op control.Op, args, result any) error {
	p.t.Helper()
	raw, _ := json.Marshal(args)
	data, _ := json.Marshal(control.Request{Op: op, Args: raw})
	reply, err := p.ask(wire.KindControl, nil, data)
	if err == nil && result != nil {
		err = json.Unmarshal(reply, result)
	}
	return err
}

func (p *peer) alloc(name string, size int64) uint64 {
	p.t.Helper()
	var o control.Opened
	err := p.control(control.OpAlloc, control.Alloc{Name: name, Size: size, Tier: coherency.Host, Home: coherency.Host}, &o)
	if err != nil {
		p.t.Fatal(err)
	}
	return o.Handle
}

func (p *peer) transfer(handle, off uint64, data []byte) error {
	p.t.Helper()
	_, err := p.ask(wire.KindTransfer, wire.AppendTransfer(nil, wire.MemoryCommand{Memory: handle, Offset: off, Size: uint64(len(data))}), data)
	return err
}

// ended checks that the server closes the connection.
func (p *peer) ended(why string) {
	p.t.Helper()
	p.raw.SetReadDeadline(time.Now().Add(time.Minute)) // for tests that fail
	if _, err := io.Copy(io.Discard, p.raw); errors.Is(err, os.ErrDeadlineExceeded) {
		p.t.Errorf("%s: the connection goes on", why)
	}
}

func code(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: error %v, want %v", what, err, want)
	}
}

func TestHandshakeRefusals(t *testing.T) {
	_, socket, tcp := listen(t, server.Config{})
	p := connect(t, "tcp", tcp)
	code(t, "wrong token", p.hello(control.Hello{Protocol: wire.Version, Token: "guess"}), wire.Unauthenticated)
	p.ended("wrong token")
	p = connect(t, "tcp", tcp)
	code(t, "no token", p.hello(control.Hello{Protocol: wire.Version}), wire.Unauthenticated)
	p = connect(t, "unix", socket)
	code(t, "protocol version in hello", p.hello(control.Hello{Protocol: 99}), wire.BadVersion)
	p.ended("protocol version in hello")

	p = connect(t, "unix", socket)
	header := wire.Header{Kind: wire.KindHello}.Append(nil)
	header[4] = 77
	p.raw.Write(header)
	h, data, err := p.receive()
	if err != nil || !h.Has(wire.FlagError) {
		t.Fatalf("protocol version in header: %+v, %v", h, err)
	}
	if we, err := wire.ParseError(data); err != nil || we.Code != wire.BadVersion {
		t.Errorf("protocol version in header: %v, %v", we, err)
	}

	p = connect(t, "unix", socket)
	p.send(wire.KindControl, nil, []byte(`{"op":"list"}`))
	p.ended("control before hello")
}

// Whatever a peer sends costs it the connection and nobody else anything.
func TestGarbage(t *testing.T) {
	_, socket, tcp := listen(t, server.Config{})
	good := connect(t, "unix", socket).greet()
	span := good.alloc("mine", 100)
	huge := wire.Header{Kind: wire.KindTransfer, Length: math.MaxUint32, Raw: math.MaxUint32}.Append(nil)
	flipped := wire.Header{Kind: wire.KindControl, Length: 2, Raw: 2}.Append(nil)
	flipped[20] ^= 1
	event := wire.Header{Kind: wire.KindEvent}.Append(nil)
	for name, garbage := range map[string][]byte{
		"text":          []byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
		"zeros":         make([]byte, 4096),
		"huge length":   huge,
		"bad sum":       flipped,
		"event":         event,
		"not JSON":      append(wire.Header{Kind: wire.KindControl, Length: 2, Raw: 2}.Append(nil), "{]"...),
		"half a header": huge[:10],
	} {
		for _, greeted := range []bool{false, true} {
			p := connect(t, "unix", socket)
			if greeted {
				p.greet()
			}
			p.raw.Write(garbage)
			if name == "half a header" {
				p.raw.(*net.UnixConn).CloseWrite()
			}
			p.ended(fmt.Sprintf("%s, greeted %v", name, greeted))
		}
	}
	p := connect(t, "tcp", tcp).greet()
	frame := wire.AppendTransfer(nil, wire.MemoryCommand{Memory: 1, Size: 4})
	binary.LittleEndian.PutUint32(frame, 0xdeadbeef)
	p.send(wire.KindTransfer, frame, []byte("data"))
	p.ended("wrong command")
	if err := good.transfer(span, 0, []byte("still here")); err != nil {
		t.Fatalf("another client is affected: %v", err)
	}
}

func TestBadRequests(t *testing.T) {
	_, socket, _ := listen(t, server.Config{Limits: server.Limits{Handles: 4, Mappings: 2, Locks: 2, SpanSize: 1 << 30, Map: 1 << 20}})
	p := connect(t, "unix", socket).greet()
	h := p.alloc("a", 4096)
	read := func(handle, off, size uint64) error {
		_, err := p.ask(wire.KindRead, wire.AppendRead(nil, wire.MemoryCommand{Memory: handle, Offset: off, Size: size}), nil)
		return err
	}
	code(t, "unknown handle", p.transfer(h+1, 0, []byte("x")), wire.NotFound)
	code(t, "beyond the end", p.transfer(h, 4096, []byte("x")), wire.OutOfRange)
	code(t, "offset that wraps", p.transfer(h, math.MaxUint64, []byte("xy")), wire.OutOfRange)
	code(t, "offset that wraps as int64", p.transfer(h, 1<<63, []byte("xy")), wire.OutOfRange)
	code(t, "read beyond the end", read(h, 4000, 97), wire.OutOfRange)
	blocks := p.alloc("blocks", 3<<20)
	code(t, "transfer that crosses blocks", p.transfer(blocks, 1<<20-1, []byte("xy")), wire.Invalid)
	code(t, "read that crosses blocks", read(blocks, 2<<20-1, 2), wire.Invalid)
	if err := errors.Join(p.transfer(blocks, 1<<20-2, []byte("xy")), p.transfer(blocks, 1<<20, make([]byte, 1<<20)), read(blocks, 2<<20, 1<<20)); err != nil {
		t.Error("up to a block's end:", err)
	}
	code(t, "read of nothing", read(h, 0, 0), wire.Invalid)
	code(t, "huge read", read(h, 0, 1<<40), wire.Invalid)
	code(t, "zero size", p.control(control.OpAlloc, control.Alloc{Size: 0, Tier: coherency.Host, Home: coherency.Host}, nil), wire.Invalid)
	code(t, "absurd size", p.control(control.OpAlloc, control.Alloc{Size: 1 << 60, Tier: coherency.Host, Home: coherency.Host}, nil), wire.Invalid)
	code(t, "over budget", p.control(control.OpAlloc, control.Alloc{Size: 1 << 30, Tier: coherency.Host, Home: coherency.Host}, nil), wire.Budget)
	code(t, "tier absent", p.control(control.OpAlloc, control.Alloc{Size: 1, Tier: coherency.Disk, Home: coherency.Host}, nil), wire.TierAbsent)
	code(t, "name taken", p.control(control.OpAlloc, control.Alloc{Name: "a", Size: 1, Tier: coherency.Host, Home: coherency.Host}, nil), wire.Exists)
	code(t, "unknown name", p.control(control.OpOpen, control.Open{Name: "b"}, nil), wire.NotFound)
	code(t, "unknown operation", p.control("dance", struct{}{}, nil), wire.Unsupported)
	code(t, "unknown argument", p.control(control.OpStat, map[string]any{"handle": "1", "zoom": 3}, nil), wire.Invalid)
	code(t, "unknown mode", p.control(control.OpMap, control.Map{Handle: h, Length: 10, Mode: "sideways"}, nil), wire.WrongMode)
	code(t, "map beyond the end", p.control(control.OpMap, control.Map{Handle: h, Offset: 4000, Length: 97, Mode: control.ModeRead, Shadow: true}, nil), wire.OutOfRange)
	code(t, "map of nothing", p.control(control.OpMap, control.Map{Handle: h, Mode: control.ModeRead}, nil), wire.OutOfRange)
	code(t, "unmap of unmapped", p.control(control.OpUnmap, control.Mapping{Mapping: 5}, nil), wire.NotMapped)
	code(t, "unlock of unlocked", p.control(control.OpUnlock, control.Unlock{Lock: 5}, nil), wire.NotHeld)

	var m control.Mapped
	if err := p.control(control.OpMap, control.Map{Handle: h, Offset: 100, Length: 100, Mode: control.ModeRead, Shadow: true}, &m); err != nil {
		t.Fatal(err)
	}
	flush := func(block uint64, runs ...wire.Run) error {
		n := 0
		for _, r := range runs {
			n += int(r.Length)
		}
		_, err := p.ask(wire.KindFlush, wire.AppendFlush(nil, wire.Flush{Mapping: m.Mapping, Block: block, Runs: runs}), make([]byte, n))
		return err
	}
	code(t, "flush of a read-only mapping", flush(0, wire.Run{Offset: 100, Length: 1}), wire.WrongMode)
	if err := p.control(control.OpUnmap, control.Mapping{Mapping: m.Mapping}, nil); err != nil {
		t.Fatal(err)
	}
	code(t, "double unmap", p.control(control.OpUnmap, control.Mapping{Mapping: m.Mapping}, nil), wire.NotMapped)
	code(t, "flush of unmapped", flush(0, wire.Run{Offset: 100, Length: 1}), wire.NotMapped)
	if err := p.control(control.OpMap, control.Map{Handle: h, Offset: 100, Length: 100, Mode: control.ModeReadWrite, Shadow: true}, &m); err != nil {
		t.Fatal(err)
	}
	code(t, "flush outside the mapping", flush(0, wire.Run{Offset: 99, Length: 1}), wire.OutOfRange)
	code(t, "flush across the mapping's end", flush(0, wire.Run{Offset: 199, Length: 2}), wire.OutOfRange)
	code(t, "flush of another block", flush(1, wire.Run{Offset: 100, Length: 1}), wire.OutOfRange)
	code(t, "flush of a block that wraps", flush(1<<63, wire.Run{Offset: 100, Length: 1}), wire.OutOfRange)
	if err := flush(0, wire.Run{Offset: 150, Length: 1}); err != nil {
		t.Errorf("flush: %v", err)
	}

	again := control.Map{Handle: h, Length: 10, Mode: control.ModeRead, Shadow: true}
	if err := p.control(control.OpMap, again, nil); err != nil {
		t.Fatal(err)
	}
	code(t, "too many mappings", p.control(control.OpMap, again, nil), wire.Limit)
	big := p.alloc("big", 2<<20)
	code(t, "shadow too large", p.control(control.OpMap, control.Map{Handle: big, Length: 2 << 20, Mode: control.ModeRead, Shadow: true}, nil), wire.Limit)
	p.alloc("c", 1)
	code(t, "too many handles", p.control(control.OpOpen, control.Open{Name: "a"}, nil), wire.Limit)
	for i := range 3 {
		err := p.control(control.OpLock, control.Lock{Handle: h, Offset: int64(i), Length: 1, Exclusive: true}, nil)
		if i < 2 && err != nil {
			t.Error(err)
		} else if i == 2 {
			code(t, "too many locks", err, wire.Limit)
		}
	}
	if err := p.control(control.OpFree, control.Handle{Handle: h}, nil); err != nil {
		t.Fatal(err)
	}
	code(t, "use after free", p.transfer(h, 0, []byte("x")), wire.Freed)
	code(t, "stat after free", p.control(control.OpStat, control.Handle{Handle: h}, nil), wire.Freed)
	code(t, "double free", p.control(control.OpFree, control.Handle{Handle: h}, nil), wire.Freed)
}

// Handles of one session mean nothing to another, and cannot be guessed.
func TestHandlesArePerSession(t *testing.T) {
	_, socket, _ := listen(t, server.Config{})
	a, b := connect(t, "unix", socket).greet(), connect(t, "unix", socket).greet()
	h := a.alloc("s", 10)
	code(t, "another session's handle", b.transfer(h, 0, []byte("x")), wire.NotFound)
	if h < 1<<32 {
		t.Errorf("handle %d is small", h) // a random one is, once in 2^32
	}
}

func TestSessionLimit(t *testing.T) {
	_, socket, _ := listen(t, server.Config{Limits: server.Limits{Sessions: 2}})
	connect(t, "unix", socket).greet()
	second := connect(t, "unix", socket).greet()
	third := connect(t, "unix", socket)
	code(t, "one session too many", third.hello(control.Hello{Protocol: wire.Version}), wire.Limit)
	third.ended("one session too many")
	second.raw.Close()
	for { // as soon as the server has noticed, there is room
		p := connect(t, "unix", socket)
		if p.hello(control.Hello{Protocol: wire.Version}) == nil {
			break
		}
	}
}

// A frame that is cut off anywhere changes nothing.
func TestCutLinkLeavesBlocksWhole(t *testing.T) {
	_, socket, tcp := listen(t, server.Config{})
	good := connect(t, "unix", socket).greet()
	const size = 3000
	h := good.alloc("s", size)
	old := bytes.Repeat([]byte{1}, size)
	if err := good.transfer(h, 0, old); err != nil {
		t.Fatal(err)
	}
	// What a frame looks like on the wire.
	var frame bytes.Buffer
	for _, cut := range []int{1, 31, 32, 40, 60, 61, 1000, 60 + size, 60 + size + 3} {
		p := connect(t, "tcp", tcp).greet()
		var o control.Opened
		if err := p.control(control.OpOpen, control.Open{Name: "s"}, &o); err != nil {
			t.Fatal(err)
		}
		frame.Reset()
		here, there := net.Pipe()
		go func() {
			c := wire.NewConn(here, wire.Config{Sums: true})
			prefix := wire.AppendTransfer(nil, wire.MemoryCommand{Memory: o.Handle, Size: size})
			c.WriteFrame(wire.Header{Kind: wire.KindTransfer, ID: 9}, prefix, bytes.Repeat([]byte{2}, size))
			here.Close()
		}()
		io.Copy(&frame, there)
		if frame.Len() != 64+size {
			t.Fatalf("a frame of %d bytes, want %d", frame.Len(), 64+size)
		}
		p.raw.Write(frame.Bytes()[:cut])
		p.raw.Close()
		var st control.SpanStat
		if err := good.control(control.OpStat, control.Handle{Handle: h}, &st); err != nil {
			t.Fatal(err)
		}
		got, err := good.ask(wire.KindRead, wire.AppendRead(nil, wire.MemoryCommand{Memory: h, Size: size}), nil)
		if err != nil || !bytes.Equal(got, old) {
			t.Fatalf("cut after %d bytes of %d: the block changed (%v)", cut, frame.Len(), err)
		}
	}
	// A flipped bit anywhere in the data is found.
	p := connect(t, "tcp", tcp).greet()
	var o control.Opened
	if err := p.control(control.OpOpen, control.Open{Name: "s"}, &o); err != nil {
		t.Fatal(err)
	}
	bad := bytes.Clone(frame.Bytes())
	bad[100] ^= 4
	p.raw.Write(bad)
	p.ended("bad sum")
	got, err := good.ask(wire.KindRead, wire.AppendRead(nil, wire.MemoryCommand{Memory: h, Size: size}), nil)
	if err != nil || !bytes.Equal(got, old) {
		t.Fatalf("a corrupted frame changed the block (%v)", err)
	}
}

// A peer that stops in the middle of a frame is ended; one that is idle is not.
func TestStalledPeer(t *testing.T) {
	t.Parallel()
	_, socket, _ := listen(t, server.Config{IOTimeout: impatience})
	idle := connect(t, "unix", socket).greet()
	p := connect(t, "unix", socket).greet()
	p.raw.Write(wire.Header{Kind: wire.KindTransfer, Length: 100, Raw: 72, Prefix: 28}.Append(nil))
	p.ended("stalled in the middle of a frame")
	idle.alloc("x", 1)
}

// A peer that asks and does not read holds up nobody, and is ended.
func TestPeerThatDoesNotRead(t *testing.T) {
	t.Parallel()
	_, socket, tcp := listen(t, server.Config{IOTimeout: impatience})
	good := connect(t, "unix", socket).greet()
	h := good.alloc("s", 1<<20)
	if err := good.transfer(h, 0, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	slow := connect(t, "tcp", tcp).greet()
	var o control.Opened
	if err := slow.control(control.OpOpen, control.Open{Name: "s"}, &o); err != nil {
		t.Fatal(err)
	}
	ask := wire.AppendRead(nil, wire.MemoryCommand{Memory: o.Handle, Size: 1 << 20})
	for i := range 200 {
		if err := slow.conn.WriteFrame(wire.Header{Kind: wire.KindRead, ID: uint64(100 + i)}, ask); err != nil {
			break // ended already
		}
	}
	if _, err := good.ask(wire.KindRead, wire.AppendRead(nil, wire.MemoryCommand{Memory: h, Size: 1 << 20}), nil); err != nil {
		t.Fatalf("another client is affected: %v", err)
	}
	// The server gives up on it, so its connection ends before all replies came.
	for st := (control.Stats{}); st.Sessions != 1; {
		if err := good.control(control.OpStats, struct{}{}, &st); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	for ; n < 200; n++ {
		if _, _, err := slow.receive(); err != nil {
			break
		}
	}
	if n == 200 {
		t.Error("a peer that did not read for longer than the timeout got everything")
	}
}

// Loopback TCP needs the token, other addresses need TLS.
func TestServeRefusesOpenDoors(t *testing.T) {
	srv, err := server.New(t.Context(), server.Config{HostBudget: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Shutdown(t.Context())
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := srv.Serve(t.Context(), ln); err == nil {
		t.Error("loopback TCP without a token is served")
	}
	withToken, err := server.New(t.Context(), server.Config{HostBudget: 1 << 20, Token: "t"})
	if err != nil {
		t.Fatal(err)
	}
	defer withToken.Shutdown(t.Context())
	everywhere := &fakeListener{addr: &net.TCPAddr{IP: net.IPv4zero, Port: 1}}
	if err := withToken.Serve(t.Context(), everywhere); err == nil {
		t.Error("plain TCP on all addresses is served")
	}
}

// fakeListener has an address that tests must not listen on.
type fakeListener struct{ addr net.Addr }

func (l *fakeListener) Accept() (net.Conn, error) { return nil, net.ErrClosed }
func (l *fakeListener) Close() error              { return nil }
func (l *fakeListener) Addr() net.Addr            { return l.addr }
