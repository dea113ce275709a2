// SPDX-License-Identifier: Apache-2.0

package host_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/memspan/memspan/sharedbuf"
	"github.com/memspan/memspan/sharedbuf/host"
)

// patience bounds waits that are never reached but by a hang.
const patience = time.Minute

// A rawGuest speaks the channel by hand, as guests of the original system do.
type rawGuest struct {
	t testing.TB
	net.Conn
	in *bufio.Reader // all that is read of it
}

func (g *rawGuest) Read(p []byte) (int, error) { return g.in.Read(p) }

func connect(t testing.TB, ln net.Listener) *rawGuest {
	t.Helper()
	nc, err := net.Dial(ln.Addr().Network(), ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	nc.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { nc.Close() })
	return newRawGuest(t, nc)
}

func newRawGuest(t testing.TB, nc net.Conn) *rawGuest {
	return &rawGuest{t, nc, bufio.NewReaderSize(nc, 4+sharedbuf.MaxResponse)}
}

// send sends length and body in two writes.
func (g *rawGuest) send(body string) {
	g.t.Helper()
	if _, err := g.Write(binary.BigEndian.AppendUint32(nil, uint32(len(body)))); err != nil {
		g.t.Fatal(err)
	}
	if _, err := io.WriteString(g, body); err != nil {
		g.t.Fatal(err)
	}
}

func (g *rawGuest) receive() string {
	g.t.Helper()
	body, err := sharedbuf.ReadFrame(g.in, sharedbuf.MaxResponse)
	if err != nil {
		g.t.Fatal(err)
	}
	return string(body)
}

func (g *rawGuest) ask(request map[string]any) *sharedbuf.Reply {
	g.t.Helper()
	body, err := json.Marshal(request)
	if err != nil {
		g.t.Fatal(err)
	}
	g.send(string(body))
	reply, err := sharedbuf.ParseReply([]byte(g.receive()))
	if err != nil {
		g.t.Fatal(err)
	}
	return reply
}

func (g *rawGuest) wantEnd() {
	g.t.Helper()
	if rest, err := io.ReadAll(g); len(rest) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		g.t.Errorf("the connection goes on: %q, %v", rest, err)
	}
}

// The requests and replies of the document, byte for byte.
func TestAsTheDocumentPrintsIt(t *testing.T) {
	ln, dir := tcp(t), t.TempDir()
	serve(t, ln, host.Config{Dir: dir, Translate: sharedbuf.Translation{{Guest: "/mnt/c/temp", Host: dir}}})
	const size = 67108864
	f, err := os.OpenFile(filepath.Join(dir, "winapi_shared_buffer_1_1234"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err == nil {
		err = errors.Join(f.Truncate(size), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	g := connect(t, ln)
	g.send(`{
  "api": "shared_buffer",
  "operation": "process",
  "file_path": "/mnt/c/temp/winapi_shared_buffer_1_1234",
  "buffer_size": 67108864,
  "buffer_id": 1
}`)
	const result = `"status":"success","result":{"operation":"process","buffer_id":1,"bytes_processed":67108864,"status":"processed"}}`
	if got := g.receive(); got != `{"request_id":0,`+result {
		t.Errorf("answered %s", got)
	}
	g.send(`{"api":"shared_buffer","request_id":123,"operation":"process","file_path":"\/mnt\/c\/temp\/winapi_shared_buffer_1_1234","buffer_size":67108864,"buffer_id":1}`)
	if got := g.receive(); got != `{"request_id":123,`+result {
		t.Errorf("answered %s", got)
	}
	g.send(`{"api":"echo","request_id":2,"version":1,"input":"a<b\/\u00e9"}`)
	if got := g.receive(); got != `{"request_id":2,"status":"success","result":"a<b/é"}` {
		t.Errorf("answered %s", got)
	}
	g.send(`{"api":"shared_buffer","request_id":124,"operation":"process","file_path":"/mnt/c/temp/none","buffer_size":10,"buffer_id":1}`)
	if got := g.receive(); !strings.HasPrefix(got, `{"request_id":124,"status":"error","error":"process /mnt/c/temp/none: not-found: `) {
		t.Errorf("answered %s", got)
	}
}

func TestBufferTest(t *testing.T) {
	ln := tcp(t)
	serve(t, ln, host.Config{MaxBuffer: 1 << 20})
	g := connect(t, ln)
	type result struct {
		Bytes    int64  `json:"bytes_processed"`
		Checksum uint32 `json:"checksum"`
		Status   *int   `json:"status"`
	}
	for _, size := range []int{0, 1, 3, 4, 7, 65536, 65541, 1 << 20} {
		payload := make([]byte, size)
		scribble(payload)
		sum := uint32(0)
		for p := payload; len(p) >= 4; p = p[4:] {
			sum ^= binary.LittleEndian.Uint32(p)
		}
		for op, want := range map[int]uint32{1: 0xDEADBEEF, 2: sum, 3: sum} {
			body, err := json.Marshal(map[string]any{"api": "buffer_test", "request_id": 9, "operation": op,
				"test_pattern": -559038737, "payload_size": size, "socket_transfer": true}) // 0xDEADBEEF in an int
			if err != nil {
				t.Fatal(err)
			}
			g.send(string(body))
			if op != 1 {
				if _, err := g.Write(payload); err != nil {
					t.Fatal(err)
				}
			}
			reply, err := sharedbuf.ParseReply([]byte(g.receive()))
			if err != nil || reply.ID != 9 {
				t.Fatal(reply, err)
			}
			if r := decode[result](t, reply.Result); r.Bytes != int64(size) || r.Checksum != want || r.Status == nil || *r.Status != 0 {
				t.Errorf("operation %d, %d bytes: %+v, want checksum %#x", op, size, r, want)
			}
			if op == 1 {
				got := make([]byte, size)
				if _, err := io.ReadFull(g, got); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got, bytes.Repeat([]byte{0xEF, 0xBE, 0xAD, 0xDE}, size/4+1)[:size]) {
					t.Errorf("read %d bytes that are not the pattern", size)
				}
			}
		}
	}
	// By memory of a fixed layout, which there is none: no payload follows the
	// request or the reply.
	for op := 1; op <= 3; op++ {
		r := g.ask(map[string]any{"api": "buffer_test", "request_id": 1, "operation": op, "payload_size": 100, "socket_transfer": false})
		if r.Code != sharedbuf.ErrUnsupported {
			t.Errorf("operation %d without a transfer: %+v", op, r)
		}
	}
	// In step still.
	if r := g.ask(map[string]any{"api": "echo", "input": "x"}); string(r.Result) != `"x"` {
		t.Errorf("echo: %+v", r)
	}
	// What would lose the place in the stream ends the connection.
	if r := g.ask(map[string]any{"api": "buffer_test", "request_id": 1, "operation": 2, "payload_size": 1<<20 + 1}); r.Code != sharedbuf.ErrLimit {
		t.Errorf("too large: %+v", r)
	}
	g.wantEnd()
	g = connect(t, ln)
	if r := g.ask(map[string]any{"api": "buffer_test", "request_id": 1, "operation": 4}); r.Code != sharedbuf.ErrInvalid {
		t.Errorf("operation 4: %+v", r)
	}
	g.wantEnd()
}

func TestPerformance(t *testing.T) {
	ln := tcp(t)
	serve(t, ln, host.Config{})
	g := connect(t, ln)
	type result struct {
		Min        int64   `json:"min_latency_ns"`
		Max        int64   `json:"max_latency_ns"`
		Avg        int64   `json:"avg_latency_ns"`
		Throughput float64 `json:"throughput_mbps"`
		Iterations int64   `json:"iterations_completed"`
	}
	for kind := 1; kind <= 2; kind++ {
		reply := g.ask(map[string]any{"api": "performance", "request_id": 1, "test_type": kind, "iterations": 10, "target_bytes": 10 << 20})
		r := decode[result](t, reply.Result)
		if r.Iterations != 10 || r.Min < 0 || r.Max < r.Avg || r.Avg < r.Min || r.Throughput <= 0 {
			t.Errorf("type %d: %+v", kind, r)
		}
	}
	for want, request := range map[sharedbuf.Code]map[string]any{
		sharedbuf.ErrInvalid: {"api": "performance", "test_type": 3},
		sharedbuf.ErrLimit:   {"api": "performance", "test_type": 2, "iterations": 1 << 40, "target_bytes": 1 << 40},
	} {
		if r := g.ask(request); r.Code != want {
			t.Errorf("%v: %+v", request, r)
		}
	}
}

// A request without an id is answered after those before it, and before those
// behind it; with ids each is answered when it is done.
func TestOrder(t *testing.T) {
	ln := unixSocket(t)
	wait := newHeld()
	dir := t.TempDir()
	serve(t, ln, host.Config{Dir: dir, Operations: []host.Operation{
		{Name: "wait", Run: wait.run},
		{Name: "slow", Run: func(*host.Call) (any, error) {
			for range 10_000 {
				runtime.Gosched()
			}
			return nil, nil
		}},
	}})
	path := filepath.Join(dir, "b")
	if err := os.WriteFile(path, make([]byte, 10), 0o600); err != nil {
		t.Fatal(err)
	}
	request := func(id, op string) string {
		return `{"api":"shared_buffer",` + id + `"operation":"` + op + `","file_path":"` + path + `","buffer_size":10}`
	}
	g := connect(t, ln)
	g.send(request(`"request_id":1,`, "wait"))
	g.send(request(`"request_id":2,`, "process"))
	if got := g.receive(); !strings.HasPrefix(got, `{"request_id":2,`) {
		t.Errorf("first %s", got)
	}
	g.send(request(``, "process"))
	g.send(`{"api":"echo","request_id":3,"input":"x"}`)
	<-wait.begun
	wait.release <- struct{}{}
	for _, want := range []string{"1", "0", "3"} {
		if got := g.receive(); !strings.HasPrefix(got, `{"request_id":`+want+`,"status":"success"`) {
			t.Errorf("then %s, want %s", got, want)
		}
	}
	// Whatever takes longer.
	g.send(request(`"request_id":5,`, "process"))
	g.receive()
	for range 20 {
		g.send(request(`"request_id":6,`, "slow"))
		g.send(request(``, "process"))
		if one, two := g.receive(), g.receive(); !strings.HasPrefix(one, `{"request_id":6,`) || !strings.HasPrefix(two, `{"request_id":0,`) {
			t.Fatalf("a request without an id overtook: %s, %s", one, two)
		}
	}
	// An id that is under way is not taken twice.
	g.send(request(`"request_id":4,`, "wait"))
	<-wait.begun
	g.send(request(`"request_id":4,`, "wait"))
	if got := g.receive(); !strings.Contains(got, `"code":"invalid"`) {
		t.Errorf("an id twice: %s", got)
	}
}

func TestMalformed(t *testing.T) {
	ln := tcp(t)
	serve(t, ln, host.Config{IOTimeout: 50 * time.Millisecond})
	for name, test := range map[string]struct{ bytes, want string }{
		"not JSON":    {"\x00\x00\x00\x01x", `"code":"invalid"`},
		"no api":      {"\x00\x00\x00\x02{}", `"code":"invalid"`},
		"empty":       {"\x00\x00\x00\x00", `"code":"invalid"`},
		"too long":    {"\x00\x01\x00\x00", `"code":"limit"`},
		"HTTP":        {"GET / HTTP/1.1\r\n\r\n", `"code":"limit"`},
		"a version":   {"\x00\x00\x00\x2b" + `{"api":"echo","request_id":77,"version":19}`, `"request_id":77,"status":"error"`},
		"a stall":     {"\x00\x00\x00\x10{", ""},
		"half a head": {"\x00", ""},
	} {
		g := connect(t, ln)
		if _, err := io.WriteString(g, test.bytes); err != nil {
			t.Fatal(err)
		}
		if test.want != "" {
			if got := g.receive(); !strings.Contains(got, test.want) {
				t.Errorf("%s: answered %s, want %s", name, got, test.want)
			}
		}
		g.wantEnd()
	}
	g := connect(t, ln)
	if r := g.ask(map[string]any{"api": "frobnicate", "request_id": 4}); r.Code != sharedbuf.ErrUnsupported || r.ID != 4 {
		t.Errorf("an unknown api: %+v", r)
	}
	if r := g.ask(map[string]any{"api": "echo", "input": 5}); r.Code != sharedbuf.ErrInvalid {
		t.Errorf("an echo of a number: %+v", r)
	}
	if r := g.ask(map[string]any{"api": "cancel", "cancel": 99}); string(r.Result) != `{"canceled":false}` {
		t.Errorf("cancel of nothing: %+v", r)
	}
}

func TestConnectionLimit(t *testing.T) {
	ln := tcp(t)
	serve(t, ln, host.Config{MaxConnections: 1})
	one := connect(t, ln)
	one.ask(map[string]any{"api": "echo", "input": ""})
	two := connect(t, ln)
	if got := two.receive(); !strings.Contains(got, `"code":"limit"`) {
		t.Errorf("a second connection: %s", got)
	}
	two.wantEnd()
	one.Close()
	for { // until the host has seen that
		three := connect(t, ln)
		three.send(`{"api":"echo","input":""}`)
		if strings.Contains(three.receive(), "success") {
			break
		}
		three.Close()
	}
}

// anotherAddress gives accepted connections an address that is not loopback.
type anotherAddress struct {
	net.Listener
	from net.IP
}

type strange struct {
	net.Conn
	from net.IP
}

func (l anotherAddress) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return strange{c, l.from}, nil
}

func (c strange) CloseWrite() error { return c.Conn.(*net.TCPConn).CloseWrite() }

func (c strange) RemoteAddr() net.Addr { return &net.TCPAddr{IP: c.from, Port: 1} }

func TestTrust(t *testing.T) {
	for from, want := range map[string]string{"192.0.2.7": "success", "192.0.3.7": `"code":"denied"`} {
		ln := tcp(t)
		serve(t, anotherAddress{ln, net.ParseIP(from)}, host.Config{Trust: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}})
		g := connect(t, ln)
		g.send(`{"api":"echo","input":""}`)
		if got := g.receive(); !strings.Contains(got, want) {
			t.Errorf("from %s: %s", from, got)
		}
	}
}
