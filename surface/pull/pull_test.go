// SPDX-License-Identifier: Apache-2.0

package pull_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/memspan/memspan/surface"
	"github.com/memspan/memspan/surface/pull"
)

func random(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(b)
	return b
}

func open(t testing.TB, ticket *surface.Ticket, o pull.Options) *pull.Surface {
	t.Helper()
	s, err := pull.Open(t.Context(), ticket, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestToMemory(t *testing.T) {
	content := random(5<<20 + 77)
	clear(content[1<<20 : 3<<20])
	for _, chunk := range []int64{4 << 10, 64 << 10, 1 << 20, 4 << 20} {
		h := expose(t, content, chunk, nil)
		s := open(t, h.rooted(h.tcp()), pull.Options{})
		m, err := s.ToMemory(t.Context(), surface.Range{})
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(m.Bytes(), content) {
			t.Fatal("other bytes")
		}
		m.Close()
	}
}
