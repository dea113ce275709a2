// SPDX-License-Identifier: Apache-2.0

package mapping_test

import (
	"bytes"
	"context"
	"slices"
	"testing"

	"go.uber.org/goleak"

	"github.com/memspan/memspan/internal/userfault"
	"github.com/memspan/memspan/mapping"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const blockSize = 64 << 10

// bothTrackings runs f with tracking by the kernel, if it can, and by
// comparison.
func bothTrackings(t *testing.T, f func(t *testing.T, tracking mapping.Tracking)) {
	for _, tracking := range []mapping.Tracking{mapping.Pages, mapping.Compare} {
		t.Run(tracking.String(), func(t *testing.T) {
			needs(t, tracking)
			f(t, tracking)
		})
	}
}

func needs(t testing.TB, tracking mapping.Tracking) {
	t.Helper()
	if tracking == mapping.Pages {
		if err := userfault.Probe(); err != nil {
			t.Skip(err)
		}
	}
}

func newPool(t testing.TB) *mapping.Pool {
	t.Helper()
	p := mapping.NewPool(1 << 30)
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// server is what the other side holds of a span.
type server []byte

func newServer(n int) server {
	s := make(server, n)
	for i := range s {
		s[i] = byte(i*7 + i>>8)
	}
	return s
}

// open returns an armed shadow filled from the server.
func (s server) open(t testing.TB, p *mapping.Pool, off, n int64, tracking mapping.Tracking) *mapping.Shadow {
	t.Helper()
	sh := newShadow(t, p, off, n, true, tracking)
	if err := sh.Fill(off, n, func(dst []byte) error { copy(dst, s[off:]); return nil }); err != nil {
		t.Fatal(err)
	}
	if err := sh.Arm(); err != nil {
		t.Fatal(err)
	}
	return sh
}

func newShadow(t testing.TB, p *mapping.Pool, off, n int64, writable bool, tracking mapping.Tracking) *mapping.Shadow {
	t.Helper()
	sh, err := mapping.NewShadow(p, off, n, blockSize, writable, tracking)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sh.Close(); err != nil {
			t.Error(err)
		}
	})
	return sh
}

// apply puts a change in place.
func (s server) apply(c *mapping.Change) {
	data := c.Data
	for _, r := range c.Runs {
		copy(s[c.Block*blockSize+int64(r.Offset):][:r.Length], data)
		data = data[r.Length:]
	}
}

// flush collects all of a shadow's range into the server.
func (s server) flush(t testing.TB, sh *mapping.Shadow, off, n int64) {
	t.Helper()
	for _, c := range collect(t, sh, off, n) {
		s.apply(c)
		sh.Ack(c)
	}
}

// collect returns the changes, unsettled.
func collect(t testing.TB, sh *mapping.Shadow, off, n int64) []*mapping.Change {
	t.Helper()
	var changes []*mapping.Change
	err := sh.Collect(context.Background(), off, n, func(c *mapping.Change) error {
		changes = append(changes, c)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.IsSortedFunc(changes, func(a, b *mapping.Change) int { return int(a.Block - b.Block) }) {
		t.Error("blocks out of order")
	}
	return changes
}

// spans turns changes into the span's byte ranges.
func spans(changes []*mapping.Change) [][2]int64 {
	var out [][2]int64
	for _, c := range changes {
		for _, r := range c.Runs {
			at := c.Block*blockSize + int64(r.Offset)
			out = append(out, [2]int64{at, at + int64(r.Length)})
		}
	}
	return out
}

// differences returns the ranges [lo, hi) in which a and b differ, cut at
// blocks, as offsets of a span in which both begin at off.
func differences(a, b []byte, off int64) [][2]int64 {
	var out [][2]int64
	for i := 0; i < len(a); i++ {
		for i+4096 < len(a) && bytes.Equal(a[i:i+4096], b[i:i+4096]) {
			i += 4096
		}
		if a[i] == b[i] {
			continue
		}
		at := off + int64(i)
		if k := len(out) - 1; k >= 0 && out[k][1] == at && at%blockSize != 0 {
			out[k][1]++
		} else {
			out = append(out, [2]int64{at, at + 1})
		}
	}
	return out
}

func wantEqual(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	d := differences(got, want, 0)
	t.Fatalf("%s: %d ranges differ, the first is %v", what, len(d), d[0])
}
