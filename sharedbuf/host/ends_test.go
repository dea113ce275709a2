// SPDX-License-Identifier: Apache-2.0

package host_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/memspan/memspan/internal/fdpass"
	"github.com/memspan/memspan/sharedbuf"
	"github.com/memspan/memspan/sharedbuf/host"
)

// framed returns a request as it is sent.
func framed(t testing.TB, request map[string]any) []byte {
	t.Helper()
	body, err := sharedbuf.AppendFrame(nil, request, sharedbuf.MaxRequest)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

func (g *rawGuest) write(frames ...[]byte) {
	g.t.Helper()
	for _, f := range frames {
		if _, err := g.Write(f); err != nil {
			g.t.Fatal(err)
		}
	}
}

func (g *rawGuest) reply() *sharedbuf.Reply {
	g.t.Helper()
	reply, err := sharedbuf.ParseReply([]byte(g.receive()))
	if err != nil {
		g.t.Fatal(err)
	}
	return reply
}

// A file that takes hours to read is given up while it is mapped.
func TestCancelWhileMapped(t *testing.T) {
	ln, dir := tcp(t), t.TempDir()
	const size = 1 << 40
	path := filepath.Join(dir, "b")
	f, err := os.Create(path)
	if err == nil {
		err = errors.Join(f.Truncate(size), f.Close())
	}
	if err != nil {
		t.Skip("no file of that size here: ", err)
	}
	serve(t, ln, host.Config{Dir: dir, MaxBuffer: size})
	g := connect(t, ln)
	// In one piece: what is mapped meanwhile takes memory.
	g.write(append(
		framed(t, map[string]any{"api": "shared_buffer", "request_id": 1, "operation": "process", "file_path": path, "buffer_size": size}),
		framed(t, map[string]any{"api": "cancel", "request_id": 2, "cancel": 1})...))
	for range 2 {
		switch r := g.reply(); {
		case r.ID == 1 && r.Code != sharedbuf.ErrCanceled:
			t.Errorf("process: %+v", r)
		case r.ID == 2 && string(r.Result) != `{"canceled":true}`:
			t.Errorf("cancel: %+v", r)
		}
	}
}

// A guest who has asked and says so, by ending his side of the connection, is
// answered; one who is gone is not worked for.
func TestHalfClosed(t *testing.T) {
	for _, ln := range []net.Listener{tcp(t), unixSocket(t)} {
		wait, dir := newHeld(), t.TempDir()
		path := filepath.Join(dir, "b")
		if err := os.WriteFile(path, make([]byte, 100), 0o600); err != nil {
			t.Fatal(err)
		}
		serve(t, ln, host.Config{Dir: dir, IOTimeout: 1 << 60, Operations: []host.Operation{{Name: "wait", Run: wait.run}}})
		request := framed(t, map[string]any{"api": "shared_buffer", "request_id": 1, "operation": "wait", "file_path": path, "buffer_size": 100})

		g := connect(t, ln)
		g.write(request)
		if err := g.Conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		<-wait.begun
		wait.release <- struct{}{}
		if r := g.reply(); r.ID != 1 || r.Code != "" {
			t.Errorf("%v: after the end of his side: %+v", ln.Addr(), r)
		}
		g.wantEnd()
		<-wait.ended

		g = connect(t, ln)
		g.write(request)
		<-wait.begun
		g.Close()
		<-wait.ended // given up
	}
}

// Within a message a guest may take his time, as long as bytes come: each wait for
// more of it has an end of its own.
func TestSlowGuest(t *testing.T) {
	ln := tcp(t)
	slow := make(chan *slowConn, 1)
	from := net.IPv4(192, 0, 2, 7)
	serve(t, slowListener{anotherAddress{ln, from}, slow}, host.Config{Trust: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}})
	g := connect(t, ln)
	c := <-slow
	const payload = 1000
	g.write(framed(t, map[string]any{"api": "echo", "request_id": 1, "input": strings.Repeat("x", payload)}))
	g.reply()
	if n := c.ends.Swap(0); n < payload {
		t.Errorf("a request that came byte by byte was waited for %d times", n)
	}
	g.write(framed(t, map[string]any{"api": "buffer_test", "request_id": 1, "operation": 2, "payload_size": payload}), make([]byte, payload))
	g.reply()
	if n := c.ends.Load(); n < payload {
		t.Errorf("a payload that came byte by byte was waited for %d times", n)
	}
	// Between messages there is no end.
	g.write(framed(t, map[string]any{"api": "echo", "request_id": 2, "input": ""}))
	g.reply()
	g.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.last.IsZero() {
		t.Errorf("the next message is waited for until %v", c.last)
	}
}

// A slowListener's connections give a byte at a time, and tell how often they were
// given a time to end.
type slowListener struct {
	net.Listener
	to chan *slowConn
}

func (l slowListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &slowConn{strange: nc.(strange)}
	l.to <- c
	return c, nil
}

type slowConn struct {
	strange
	ends atomic.Int64

	mu   sync.Mutex
	last time.Time
}

func (c *slowConn) Read(p []byte) (int, error) { return c.strange.Read(p[:min(len(p), 1)]) }

func (c *slowConn) SetReadDeadline(end time.Time) error {
	if !end.IsZero() {
		c.ends.Add(1)
	}
	c.mu.Lock()
	c.last = end
	c.mu.Unlock()
	return c.strange.SetReadDeadline(end)
}

// Whoever asks for what cannot be meant is told so, by the number of his request, and
// goes on, if it is known where the next one begins.
func TestRefusedAndInStep(t *testing.T) {
	ln := unixSocket(t)
	serve(t, ln, host.Config{})
	g := connect(t, ln)
	for _, fields := range []string{
		`"buffer_size":"4096"`, `"buffer_size":4096.5`, `"buffer_size":-1`, `"buffer_size":99999999999999999999`,
		`"buffer_id":4294967296`, `"buffer_id":"1"`, `"buffer_id":{}`, `"file_path":3`, `"then":7`, `"then":[{"operation":5}]`,
		`"background":"yes"`, `"generation":-3`, `"version":"1"`,
	} {
		g.send(`{"api":"shared_buffer",` + fields + `,"request_id":7,"operation":"process"}`)
		r := g.reply()
		if r.ID != 7 || r.Code != sharedbuf.ErrInvalid || strings.Contains(r.Error, "Go ") {
			t.Errorf("%s: %+v", fields, r)
		}
	}
	// What comes with one request is not the next one's.
	g.sendWithFile(`{"api":"echo","request_id":8,"input":"x"}`)
	g.sendWithFile(`{"api":"shared_buffer","request_id":9,"operation":"process","file_path":"memfd:1","buffer_size":-1}`)
	g.send(`{"api":"shared_buffer","request_id":10,"operation":"process","file_path":"memfd:1","buffer_size":1,"buffer_id":1}`)
	for range 3 {
		if r := g.reply(); r.ID == 10 && (r.Code != sharedbuf.ErrInvalid || !strings.Contains(r.Error, "no descriptor came")) {
			t.Errorf("without a descriptor: %+v", r)
		}
	}
	// Several requests in one message, the first of which has a descriptor.
	g.sendWithFile(`{"api":"shared_buffer","request_id":11,"operation":"process","file_path":"memfd:1","buffer_size":1,"buffer_id":1}`, `{"api":"echo","input":""}`)
	for range 2 {
		if r := g.reply(); r.ID == 11 && r.Code != sharedbuf.ErrSize {
			t.Errorf("with what is no memory: %+v", r)
		}
	}
	// Not known is it here: bytes may follow.
	for _, request := range []string{
		`{"api":"buffer_test","request_id":7,"operation":2,"payload_size":"8"}`,
		`{"api":"shared_buffer","request_id":7,"blocks":true,"buffer_size":"1"}`,
		`{"api":"shared_buffer","request_id":7,"blocks":"yes"}`,
		`{"request_id":7,"api":5}`,
		`{"request_id":7,"version":2,"api":"shared_buffer"}`,
	} {
		g := connect(t, ln)
		g.send(request)
		if r := g.reply(); r.ID != 7 || r.Code == "" {
			t.Errorf("%s: %+v", request, r)
		}
		g.wantEnd()
	}
}

// sendWithFile sends requests in one message, and a descriptor with it.
func (g *rawGuest) sendWithFile(bodies ...string) {
	g.t.Helper()
	f, err := os.Open(os.DevNull)
	if err != nil {
		g.t.Fatal(err)
	}
	defer f.Close()
	var message []byte
	for _, body := range bodies {
		message = append(binary.BigEndian.AppendUint32(message, uint32(len(body))), body...)
	}
	if err := fdpass.Send(g.Conn.(*net.UnixConn), message, f); err != nil {
		g.t.Fatal(err)
	}
}

// Beyond the connections that are allowed, and some that are told so, there are
// none: whoever comes then is not spoken with.
func TestStrangersAreBounded(t *testing.T) {
	address, _ := secured(t, host.Config{Token: token, MaxConnections: 1, IOTimeout: 1 << 60}, nil)
	hostport := strings.TrimPrefix(address[:strings.Index(address, "#")], "tls://")
	const strangers = 1 + 64 + 1
	ended := make(chan error, strangers)
	for range strangers {
		nc, err := net.Dial("tcp", hostport)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		nc.SetDeadline(time.Now().Add(patience))
		go func() {
			_, err := nc.Read(make([]byte, 1))
			ended <- err
		}()
	}
	if err := <-ended; errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("however many strangers say nothing, all are waited for")
	}
}

// A guest whose descriptors are too many is told so.
func TestTooManyDescriptors(t *testing.T) {
	ln := unixSocket(t)
	serve(t, ln, host.Config{})
	g := connect(t, ln)
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	files := slices.Repeat([]*os.File{f}, fdpass.MaxFiles)
	g.write(binary.BigEndian.AppendUint32(nil, sharedbuf.MaxRequest))
	for err == nil { // until the host hangs up
		err = fdpass.Send(g.Conn.(*net.UnixConn), []byte{0}, files...)
	}
	if r := g.reply(); r.Code != sharedbuf.ErrLimit {
		t.Errorf("answered %+v", r)
	}
}

// A guest who goes is noticed while nobody reads what he sends: because a request
// without an id is carried out, or so many that the next one waits.
func TestGoneUnread(t *testing.T) {
	for network, listen := range map[string]func(testing.TB) net.Listener{"tcp": tcp, "unix": unixSocket} {
		for _, ids := range [][]int{{0}, {1, 0}, {1, 2}} {
			t.Run(fmt.Sprint(network, ids), func(t *testing.T) {
				t.Parallel() // each waits for the host to look
				wait, dir := newHeld(), t.TempDir()
				path := filepath.Join(dir, "b")
				if err := os.WriteFile(path, make([]byte, 100), 0o600); err != nil {
					t.Fatal(err)
				}
				ln := listen(t)
				serve(t, ln, host.Config{Dir: dir, MaxInFlight: 1, Operations: []host.Operation{{Name: "wait", Run: wait.run}}})
				g := connect(t, ln)
				for _, id := range ids {
					g.write(framed(t, map[string]any{"api": "shared_buffer", "request_id": id, "operation": "wait", "file_path": path, "buffer_size": 100}))
				}
				<-wait.begun
				g.Close()
				<-wait.ended
			})
		}
	}
}

// A host whose translations all lead elsewhere says so at once.
func TestTranslationsThatLeadElsewhere(t *testing.T) {
	dir := t.TempDir()
	for at, good := range map[string]bool{dir: true, filepath.Dir(dir): true, filepath.Join(dir, "sub"): true, dir + "x": false, `C:\`: false} {
		h, err := host.New(host.Config{Dir: dir, Translate: sharedbuf.Translation{{Guest: "/mnt/d", Host: `D:\`}, {Guest: "/mnt/c", Host: at}}})
		if (err == nil) != good {
			t.Errorf("%s: %v", at, err)
		}
		if err == nil {
			h.Close()
		}
	}
}
