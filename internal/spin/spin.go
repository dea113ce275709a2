// SPDX-License-Identifier: Apache-2.0

// Package spin is waiting for what is about to come without going to sleep:
// being woken takes a thread, and the processor that it may have let sleep, longer
// than many a thing waited for.
package spin

import (
	"sync/atomic"
	"time"
)

const (
	// Window is for how long a wait looks at most, and so what it can cost. It is
	// what an answer takes whose work is next to nothing: two other threads woken,
	// one of another process, and a megabyte copied.
	Window = 100 * time.Microsecond
	// taken is how long a turn that was left to others may last before it is
	// taken for a sign that they need the processor more.
	taken = 20 * time.Microsecond
	// A wait that came to its end within the window is worth one more that does
	// not come to it, and costs no more than two of them.
	most, least = 4, -8
)

// A Spin is the waits for one thing: it knows how long the last ones took. Its
// zero value has seen none. Its methods may be called concurrently.
type Spin struct{ credit atomic.Int32 }

// Look calls ready again and again, if of late this was worth it, and between
// two calls leaves the processor to others that want it. It reports whether
// ready has returned true. If not the caller goes to sleep, and when it has
// woken says by Took how long it all was.
func (s *Spin) Look(ready func() bool) bool {
	if s.credit.Load() <= 0 {
		return false
	}
	begin := time.Now()
	for last := time.Duration(0); ; {
		if ready() {
			s.learn(1)
			return true
		}
		yield()
		now := time.Since(begin)
		switch {
		case now-last > taken:
			s.credit.Store(least)
			return false
		case now > Window:
			return false
		}
		last = now
	}
}

// Took tells how long a wait was that Look has not seen the end of.
func (s *Spin) Took(d time.Duration) {
	if d <= Window {
		s.learn(1)
	} else {
		s.learn(-2)
	}
}

func (s *Spin) learn(by int32) {
	s.credit.Store(min(max(s.credit.Load()+by, least), most))
}
