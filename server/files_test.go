// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"io"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/memspan/memspan/server"
	"github.com/memspan/memspan/wire"
	"github.com/memspan/memspan/wire/control"
)

// The descriptor that came with a request is that request's, whatever became of those
// before: refused, of another kind, with one too many, or still on the way.
func TestDescriptorsOfRequests(t *testing.T) {
	srv, socket, _ := listen(t, server.Config{})
	p := connect(t, "unix", socket).greet()
	dir := t.TempDir()
	file := func(text string) *os.File {
		t.Helper()
		path := filepath.Join(dir, text)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	send := func(request string, files ...*os.File) {
		t.Helper()
		p.id++
		if err := p.conn.WriteFrameFiles(wire.Header{Kind: wire.KindControl, ID: p.id}, []byte(request), files...); err != nil {
			t.Fatal(err)
		}
	}
	wrong := file("wrong")
	send(`{"op":"expose","args":{"source":"file","size":5,"nonsense":true}}`, wrong)
	send(`{"op":"stats"}`, wrong)
	send(`{"op":"expose","args":{"source":"memory","size":5}}`, wrong, wrong)
	want := make(map[uint64]string)
	for _, text := range []string{"first", "other"} {
		send(`{"op":"stats"}`) // the next one's descriptor may be here before this is carried out
		send(`{"op":"expose","args":{"source":"file","size":5}}`, file(text))
		want[p.id] = text
	}
	for len(want) > 0 {
		var e control.Exposed
		id, err := p.answer(&e)
		text := want[id]
		if delete(want, id); text == "" {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		w := httptest.NewRecorder()
		srv.Handler().ServeHTTP(w, httptest.NewRequest("GET", server.SurfacePath+e.Ticket, nil))
		if got, _ := io.ReadAll(w.Body); string(got) != text {
			t.Errorf("exposed %q, want %q", got, text)
		}
	}
}
