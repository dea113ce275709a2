// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"strings"
	"testing"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/server"
	"github.com/memspan/memspan/wire"
	"github.com/memspan/memspan/wire/control"
)

// Surfaces are listed page by page, whatever they are called, and those that have
// failed do not crowd out those that are there.
func TestSurfaceList(t *testing.T) {
	const failed, live = 200, 150
	_, socket, _ := listen(t, server.Config{})
	p := connect(t, "unix", socket).greet()
	a := control.Expose{Source: control.ExposeWritten, Size: 4096, Chunk: 4096, Name: strings.Repeat("<", 255), ContentType: strings.Repeat("<", 255)}
	left := map[bool]map[string]bool{true: {}, false: {}} // to be listed, by whether they are there
	for i := range failed + live {
		var e control.Exposed
		if err := p.control(control.OpExpose, a, &e); err != nil {
			t.Fatal(err)
		}
		if i < failed {
			if err := p.control(control.OpClose, control.Handle{Handle: e.Handle}, nil); err != nil {
				t.Fatal(err)
			}
		}
		left[i >= failed][e.ID] = true
	}
	for after, more := "", true; more; {
		var page control.Surfaces
		if err := p.control(control.OpSurfaces, control.SurfaceList{After: after}, &page); err != nil {
			t.Fatal(err)
		}
		for _, s := range page.Surfaces {
			there := len(left[true]) > 0 // those come first
			if !left[there][s.ID] {
				t.Fatalf("listed %s again, or out of order: %d that are there and %d that failed are left", s.ID, len(left[true]), len(left[false]))
			}
			delete(left[there], s.ID)
		}
		after, more = page.More, page.More != ""
	}
	if len(left[false]) != 0 {
		t.Errorf("%d surfaces are not listed", len(left[false]))
	}

	c, err := memspan.Dial(t.Context(), "unix:"+socket, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	list, err := c.Surfaces(t.Context())
	if err != nil || len(list) != failed+live {
		t.Errorf("a client lists %d surfaces, %v; want %d", len(list), err, failed+live)
	}
	if _, err := p.ask(wire.KindControl, nil, []byte(`{"op":"surfaces"}`)); err != nil { // as it was without pages
		t.Error("surfaces without arguments:", err)
	}
}

// A page has as many surfaces as fit into it: each page takes a look at all of them.
func TestSurfaceListIsFewPages(t *testing.T) {
	_, socket, _ := listen(t, server.Config{})
	p := connect(t, "unix", socket).greet()
	const count = 200
	for range count {
		if err := p.control(control.OpExpose, control.Expose{Source: control.ExposeWritten, Size: 4096}, nil); err != nil {
			t.Fatal(err)
		}
	}
	var page control.Surfaces
	if err := p.control(control.OpSurfaces, control.SurfaceList{}, &page); err != nil {
		t.Fatal(err)
	}
	if len(page.Surfaces) != count || page.More != "" {
		t.Errorf("the first page has %d of %d surfaces", len(page.Surfaces), count)
	}
}
