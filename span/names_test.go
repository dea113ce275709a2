// SPDX-License-Identifier: Apache-2.0

package span_test

import (
	"sync"
	"testing"

	"github.com/memspan/memspan/coherency"
	"github.com/memspan/memspan/span"
)

// At no instant is a name without a span while two take it from each other.
func TestNameIsNeverWithoutASpan(t *testing.T) {
	st := newStore(t)
	var spans [2]*span.Span
	for i := range spans {
		s, err := st.Draft(t.Context(), span.Info{Name: "x", Size: 1, Tier: coherency.Host, Home: coherency.Host})
		if err != nil {
			t.Fatal(err)
		}
		spans[i] = s
	}
	if err := st.Publish(t.Context(), spans[0], false); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var opening sync.WaitGroup
	for range 2 {
		opening.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				s, err := st.Open("x")
				if err != nil {
					t.Error(err)
					return
				}
				if err := s.Forsake(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range 20_000 {
		if err := st.Publish(t.Context(), spans[(i+1)%2], true); err != nil {
			t.Fatal(err)
		}
	}
	close(done)
	opening.Wait()
}
