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
	// taken is how long the processor may be away that was left to others, who may
	// be those waited for, until it counts as wanted for more: then who looks is
	// worse off than a sleeper, who is let in first when he is woken.
	taken = 250 * time.Microsecond
	// rest is for how long nobody looks after that: at 3 ms, a long turn of
	// others', looking where it does not pay costs less than 1 %.
	rest = time.Second
	// A wait that came to its end within the window is worth one more that does
	// not come to it, and costs no more than two of them.
	most, least = 4, -8
)

// A Spin is the waits for one thing: it knows how long the last ones took. Its
// zero value has seen none. Its methods may be called concurrently.
type Spin struct {
	credit atomic.Int32
	resume atomic.Int64 // nobody looks before: nanoseconds since 1970
}

// Look calls ready again and again, if of late this was worth it, and between
// two calls leaves the processor to others that want it. It reports whether
// ready has returned true. If not the caller goes to sleep, and when it has
// woken says by Took how long it all was.
func (s *Spin) Look(ready func() bool) bool {
	if s.credit.Load() <= 0 {
		return false
	}
	begin := time.Now()
	if begin.UnixNano() < s.resume.Load() {
		return false
	}
	for last := begin; ; {
		if ready() {
			s.learn(1)
			return true
		}
		yield()
		now := time.Now()
		if now.Sub(last) > taken {
			s.resume.Store(now.Add(rest).UnixNano())
			return ready()
		}
		if now.Sub(begin) > Window {
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
