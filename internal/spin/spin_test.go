// SPDX-License-Identifier: Apache-2.0

package spin_test

import (
	"testing"
	"time"

	"github.com/memspan/memspan/internal/spin"
)

const short, long = spin.Window / 2, 2 * spin.Window

// Looking is what short waits buy, and long ones end.
func TestLooksWhereItWasWorthIt(t *testing.T) {
	looks := func(s *spin.Spin) (looked bool) {
		if s.Look(func() bool { looked = true; return true }) != looked {
			t.Error("what was ready was not found so")
		}
		return looked
	}
	var s spin.Spin
	if looks(&s) {
		t.Error("looked without having seen a wait")
	}
	s.Took(short)
	if !looks(&s) {
		t.Error("did not look after a short wait")
	}
	for range 100 {
		s.Took(short)
	}
	n := 0
	for ; n < 100 && looks(&s); n++ {
		s.Took(long)
		s.Took(long)
	}
	if n == 0 || n > 4 {
		t.Errorf("gave up after %d pairs of long waits", n)
	}
	for range 100 {
		s.Took(long)
	}
	for n = 0; n < 100 && !looks(&s); n++ {
		s.Took(short)
	}
	if n == 0 || n > 20 {
		t.Errorf("took courage after %d short waits", n)
	}
}

// What never comes is looked for during the window, and not once more while
// others need the processor.
func TestLookEnds(t *testing.T) {
	var s spin.Spin
	s.Took(short)
	calls := 0
	if s.Look(func() bool { calls++; return false }) || calls == 0 {
		t.Errorf("found what never came, %d calls", calls)
	}
	var away spin.Spin
	away.Took(short)
	calls = 0
	gone := func() bool {
		calls++
		for begin := time.Now(); time.Since(begin) < 10*spin.Window; {
		}
		return false
	}
	if away.Look(gone) || calls != 2 {
		t.Errorf("%d looks at what takes long to be looked at", calls)
	}
	if away.Took(short); away.Look(func() bool { return true }) {
		t.Error("looked again at once")
	}
}
