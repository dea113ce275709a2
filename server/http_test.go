// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/memspan/memspan/server"
	"github.com/memspan/memspan/surface"
	"github.com/memspan/memspan/wire/control"
)

// exposeWritten begins a surface; more writes to it.
func (p *peer) exposeWritten(a control.Expose) (ticket string, more func(b []byte), seal func() string) {
	p.t.Helper()
	a.Source = control.ExposeWritten
	var e control.Exposed
	if err := p.control(control.OpExpose, a, &e); err != nil {
		p.t.Fatal(err)
	}
	at := 0
	more = func(b []byte) {
		p.t.Helper()
		if err := p.transfer(e.Handle, uint64(at), b); err != nil {
			p.t.Fatal(err)
		}
		at += len(b)
	}
	seal = func() string {
		p.t.Helper()
		var done control.Exposed
		if err := p.control(control.OpSeal, control.Handle{Handle: e.Handle}, &done); err != nil {
			p.t.Fatal(err)
		}
		return done.Ticket
	}
	return e.Ticket, more, seal
}

func TestHTTP(t *testing.T) {
	srv, socket, _ := listen(t, server.Config{})
	web := httptest.NewServer(srv.Handler())
	defer web.Close()
	p := connect(t, "unix", socket).greet()
	content := make([]byte, 300_000)
	rand.Read(content)
	get := func(method, ticket, part string) *http.Response {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, web.URL+server.SurfacePath+ticket, nil)
		if err != nil {
			t.Fatal(err)
		}
		if part != "" {
			r.Header.Set("Range", part)
		}
		resp, err := web.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return resp
	}
	body := func(r *http.Response) []byte {
		t.Helper()
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}

	growing, more, seal := p.exposeWritten(control.Expose{Name: "log", Size: -1, Chunk: 4096})
	more(content[:10_000])
	stream := get("GET", growing, "")
	first := make([]byte, 8192)
	if _, err := io.ReadFull(stream.Body, first); err != nil || !bytes.Equal(first, content[:8192]) {
		t.Errorf("the first chunks of a stream: %v", err)
	}
	more(content[10_000:])
	sealed := seal()
	if rest := body(stream); !bytes.Equal(rest, content[8192:]) {
		t.Errorf("the rest of a stream: %d bytes that are not it", len(rest))
	}

	for _, c := range []struct {
		method, part string
		status       int
		want         []byte
	}{
		{"GET", "", 200, content},
		{"HEAD", "", 200, nil},
		{"GET", "bytes=5000-9999", 206, content[5000:10_000]},
		{"GET", "bytes=-7", 206, content[len(content)-7:]},
		{"GET", "bytes=300000-", 416, nil},
		{"POST", "", 405, nil},
	} {
		r := get(c.method, sealed, c.part)
		if b := body(r); r.StatusCode != c.status || c.status < 300 && !bytes.Equal(b, c.want) {
			t.Errorf("%s %s: %s, %d bytes", c.method, c.part, r.Status, len(b))
		}
		if c.status == 200 && (r.ContentLength != int64(len(content)) || !strings.Contains(r.Header.Get("Content-Disposition"), "log")) {
			t.Errorf("%s: %d bytes, %q", c.method, r.ContentLength, r.Header.Get("Content-Disposition"))
		}
	}

	// A derived ticket is a window; a wrong one opens nothing, and costs no bytes.
	whole, err := surface.ParseTicket(sealed)
	if err != nil {
		t.Fatal(err)
	}
	part, err := whole.Derive(surface.Range{Offset: 4096, Length: 8192})
	if err != nil {
		t.Fatal(err)
	}
	text, _ := part.Text()
	if b := body(get("GET", text, "")); !bytes.Equal(b, content[4096:4096+8192]) {
		t.Errorf("a part: %d bytes that are not it", len(b))
	}
	whole.Secret[0] ^= 1
	text, _ = whole.Text()
	if r := get("GET", text, ""); r.StatusCode != 403 {
		t.Errorf("a wrong secret: %s", r.Status)
	}
	if r := get("GET", "mst1nonsense", ""); r.StatusCode != 400 {
		t.Errorf("no ticket: %s", r.Status)
	}

	// A stream whose writer goes must not look whole.
	growing, more, _ = p.exposeWritten(control.Expose{Size: -1, Chunk: 4096})
	more(content[:8192])
	stream = get("GET", growing, "")
	if _, err := io.ReadFull(stream.Body, first); err != nil {
		t.Error(err)
	}
	p.raw.Close()
	if _, err := io.ReadAll(stream.Body); err == nil {
		t.Error("a stream whose writer went ends as if it were whole")
	}
}

// A client that takes nothing is given up, and who has no ticket keeps no connection.
func TestHTTPStalled(t *testing.T) {
	t.Parallel()
	srv, socket, _ := listen(t, server.Config{IOTimeout: impatience})
	ended := make(chan struct{}, 3)
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() { ended <- struct{}{} }()
		srv.Handler().ServeHTTP(w, r)
	}))
	defer web.Close()
	p := connect(t, "unix", socket).greet()
	_, more, seal := p.exposeWritten(control.Expose{Size: 32 << 20})
	for range 32 {
		more(make([]byte, 1<<20))
	}
	ask := func(request string) net.Conn {
		t.Helper()
		nc, err := net.Dial("tcp", web.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { nc.Close() })
		if _, err := io.WriteString(nc, request); err != nil {
			t.Fatal(err)
		}
		return nc
	}
	ask("GET " + server.SurfacePath + seal() + " HTTP/1.1\r\nHost: x\r\n\r\n")
	<-ended // while it reads nothing

	for _, request := range []string{
		"GET " + server.SurfacePath + "mst1nonsense HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n", // the body never comes
	} {
		if _, err := io.ReadAll(ask(request)); err != nil {
			t.Errorf("%q: %v", request, err)
		}
	}
}

// Ranges of units that nobody knows are no ranges, and nothing has none.
func TestHTTPOddRanges(t *testing.T) {
	srv, socket, tcp := listen(t, server.Config{})
	for _, content := range []string{"", "surface"} {
		text := exposedAt(t, socket, tcp, control.Expose{}, []byte(content))
		for _, part := range []string{"chunks=0-1", "bytes=-1", "bytes=0-0,0-0"} {
			r := httptest.NewRequestWithContext(t.Context(), "GET", server.SurfacePath+text, nil)
			r.Header.Set("Range", part)
			w := httptest.NewRecorder()
			srv.Handler().ServeHTTP(w, r)
			whole := content == "" || part[0] == 'c'
			if whole && (w.Code != http.StatusOK || w.Body.String() != content) || !whole && w.Code != http.StatusPartialContent {
				t.Errorf("%s of %q: %d, %q", part, content, w.Code, w.Body)
			}
		}
	}
}

// Who is wrong too often is told so at all addresses of his network.
func TestWrongFromManyAddresses(t *testing.T) {
	srv, socket, tcp := listen(t, server.Config{})
	ticket, err := surface.ParseTicket(exposedAt(t, socket, tcp, control.Expose{}, nil))
	if err != nil {
		t.Fatal(err)
	}
	ticket.Secret = surface.Secret{}
	text, err := ticket.Text()
	if err != nil {
		t.Fatal(err)
	}
	busy := 0
	for i := range 10_000 { // more than there are new tries in the time that this takes
		r := httptest.NewRequestWithContext(t.Context(), "GET", server.SurfacePath+text, nil)
		r.RemoteAddr = fmt.Sprintf("[2001:db8:1:2::%x]:1", i)
		w := httptest.NewRecorder()
		srv.Handler().ServeHTTP(w, r)
		if w.Code == http.StatusTooManyRequests {
			busy++
			break
		}
	}
	if busy == 0 {
		t.Error("10,000 wrong proofs from one network, and never busy")
	}
}
