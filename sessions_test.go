// SPDX-License-Identifier: Apache-2.0

package memspan_test

import (
	"cmp"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/server"
)

// Stats tells who is connected, from where, and what they have moved.
func TestSessions(t *testing.T) {
	srv := serve(t, server.Config{})
	watch := dial(t, srv.unix, nil)
	start := time.Now().Add(-time.Minute)
	for transport, address := range map[string]string{"unix": srv.unix, "tcp": srv.tcp, "tls": srv.tls + "#" + srv.fingerprint} {
		name := "a\x1b[31m client over " + transport
		c := dial(t, address, &memspan.Options{Name: name})
		s := alloc(t, c, 1<<20)
		if _, err := s.WriteAt(t.Context(), make([]byte, 5000), 0); err != nil {
			t.Fatal(err)
		}
		for _, n := range []int{100, 1 << 19} { // a copy, and a loan
			if _, err := s.ReadAt(t.Context(), make([]byte, n), 0); err != nil {
				t.Fatal(err)
			}
		}
		m, err := s.Map(t.Context(), 0, 1<<20, memspan.ReadWrite)
		if err != nil {
			t.Fatal(err)
		}
		m.Bytes()[7] = 1
		if _, err := m.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		l, err := s.Lock(t.Context(), 0, 1, memspan.Exclusive)
		if err != nil {
			t.Fatal(err)
		}
		st, err := watch.Stats(t.Context())
		if err != nil || st.Sessions != 2 || len(st.SessionList) != 2 || st.Mappings != 1 {
			t.Fatalf("%+v, %v", st, err)
		}
		got := st.SessionList[1] // the oldest come first
		if got.Client != strings.ReplaceAll(name, "\x1b", "") || string(got.Transport) != transport ||
			got.Handles != 1 || got.Mappings != 1 || got.Locks != 1 || got.Since.Before(start) {
			t.Errorf("%s: %+v", transport, got)
		}
		if local := transport == "unix"; local != (got.PID == os.Getpid()) || local == strings.HasPrefix(got.Peer, "127.0.0.1:") {
			t.Errorf("%s: process %d, peer %q", transport, got.PID, got.Peer)
		}
		// A direct mapping's stores are known by the block, a shadow's by the
		// byte; to fill it a shadow reads the span.
		written, read := int64(5001), int64(1<<20+1<<19+100)
		if m.Direct() {
			written, read = 5000+1<<20, 1<<19+100
		}
		if got.Written != written || got.Read != read {
			t.Errorf("%s: %d bytes written, %d read; want %d, %d", transport, got.Written, got.Read, written, read)
		}
		whole, err := s.Stat(t.Context())
		if err != nil || whole.Written != written || whole.Read != read {
			t.Errorf("%s: of the span %d bytes written, %d read, %v; want %d, %d", transport, whole.Written, whole.Read, err, written, read)
		}
		if b := st.Budgets["host"]; b.In < written || b.Out < read {
			t.Errorf("%s: the tier: %+v", transport, b)
		}
		if err := cmp.Or(l.Unlock(t.Context()), m.Unmap(t.Context()), s.Close(), c.Close()); err != nil {
			t.Error(err)
		}
		for st.Sessions > 1 { // the server has yet to see that it has gone
			if st, err = watch.Stats(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
}
