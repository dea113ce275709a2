// SPDX-License-Identifier: Apache-2.0

package residency

// A Queue orders the blocks that are resident in one tier by what they are
// worth. Make one with [New].
//
// It is not safe for concurrent use. Its methods take constant time, but for
// Victims, and allocate only when more keys are known than ever before.
//
// With keys of 16 bytes a known key costs about 100 bytes: 24 and the key, and
// the key again in a map. Known are the resident keys and at most as many more
// that left lately.
type Queue[K comparable] struct {
	at      map[K]int32 // the entry of each known key
	entries []entry[K]  // the first are the rings' heads
	unused  int32       // first of the chain of entries without a key; 0 if none
	length  [rings]int
	trials  int    // how many are to be on trial, before limits
	uses    uint64 // counts uses: the time that reuse distances are measured in
	arrived uint32 // counts newcomers
	passed  int    // candidates that were offered since one was last accepted
	offers  []K    // what Victims returned last, for its memory
}

// An entry is one known key. Entries are linked by number, so that there is
// nothing for the garbage collector to follow if keys have no pointers.
type entry[K comparable] struct {
	key          K
	used         uint64 // time of its last use
	older, newer int32  // neighbours in its ring
	arrived      uint32 // which newcomer it was
	ring         ring
	offered      uint8 // how often Victims returned it since it was used
	demoted      bool  // was hot, and has not been used since
}

// A ring is a list of entries around a head. The head's newer is the list's
// oldest entry, its older the list's newest.
type ring uint8

const (
	hot   ring = iota // by last use
	trial             // by arrival
	gone              // not resident, remembered: by departure
	rings
)

const (
	leastTrial = 16 // a sixteenth of the resident blocks at least is on trial,
	mostTrial  = 2  // and half of them at most
	patience   = 8  // offered so often and still here, a candidate may wait
)

// New returns a Queue that knows no keys.
func New[K comparable]() *Queue[K] {
	q := &Queue[K]{at: make(map[K]int32), entries: make([]entry[K], rings)}
	for r := range rings {
		q.entries[r] = entry[K]{older: int32(r), newer: int32(r), ring: r}
	}
	return q
}

// Len returns the number of resident keys.
func (q *Queue[K]) Len() int { return q.length[hot] + q.length[trial] }

// Recent reports whether k was resident so lately that it is worth more than
// something that is: whether using it now would be worth bringing it back. It
// is false for a key that is resident.
func (q *Queue[K]) Recent(k K) bool {
	i, known := q.at[k]
	return known && q.entries[i].ring == gone && q.closer(i)
}

// Use says that k is resident and was used just now. A key that was not
// resident comes in by it.
func (q *Queue[K]) Use(k K) {
	i, known := q.at[k]
	if !known {
		q.admit(k)
		return
	}
	e := &q.entries[i]
	e.offered = 0
	to := hot
	switch e.ring {
	case hot:
	case trial:
		if q.arrived-e.arrived <= uint32(q.Len()/(2*leastTrial)) {
			return // still its first use, a piece at a time
		}
		if e.demoted {
			q.trials -= 2
		}
		if !q.closer(i) {
			to = trial
		}
	case gone:
		q.arrived++
		e.arrived = q.arrived
		switch {
		case !q.closer(i):
			to = trial
		case e.demoted:
			q.trials -= 2
		default:
			q.trials++
		}
	}
	q.uses++
	e.used = q.uses
	e.demoted = e.demoted && to != hot
	q.move(i, to)
	q.demote()
}

// closer reports whether entry i, which is not hot, is being used after less
// time than the oldest hot one has waited.
func (q *Queue[K]) closer(i int32) bool {
	return q.length[hot] == 0 || q.entries[i].used > q.entries[q.entries[hot].newer].used
}

func (q *Queue[K]) admit(k K) {
	i := q.unused
	if i != 0 {
		q.unused = q.entries[i].newer
	} else {
		i = int32(len(q.entries))
		q.entries = append(q.entries, entry[K]{})
	}
	q.uses++
	q.arrived++
	e := entry[K]{key: k, used: q.uses, arrived: q.arrived, ring: trial}
	if q.length[trial] == 0 || q.length[hot] < q.mostHot(q.Len()+1) {
		e.ring = hot
	}
	q.entries[i] = e
	q.at[k] = i
	q.link(i)
}

// mostHot is how many of n resident keys may be hot.
func (q *Queue[K]) mostHot(n int) int {
	q.trials = min(max(q.trials, n/leastTrial, 1), n/mostTrial+1)
	return max(n-q.trials, 0)
}

// demote puts the oldest hot keys on trial while there are too many.
func (q *Queue[K]) demote() {
	for n := q.mostHot(q.Len()); q.length[hot] > n; {
		i := q.entries[hot].newer
		// It is no newcomer: its next use is a use.
		q.entries[i].arrived = q.arrived - uint32(q.Len())
		q.entries[i].demoted = true
		q.move(i, trial)
	}
}

// Remove says that k is not resident any more, though it may be used again. It
// does nothing if k is not resident.
func (q *Queue[K]) Remove(k K) {
	i, known := q.at[k]
	if !known || q.entries[i].ring == gone {
		return
	}
	q.passed = 0
	q.entries[i].offered = 0
	q.move(i, gone)
	q.forget()
}

// Forget says that k will never be used again. Nothing of it is remembered.
func (q *Queue[K]) Forget(k K) {
	if i, known := q.at[k]; known {
		q.drop(i)
		q.forget()
	}
}

// forget drops what it does not pay to remember: more keys than are resident,
// and those that have been away for longer than any hot one goes unused.
func (q *Queue[K]) forget() {
	for q.length[gone] > 0 {
		i := q.entries[gone].newer
		if q.length[gone] <= q.Len()+1 && q.closer(i) {
			return
		}
		q.drop(i)
	}
}

// Victims returns up to n resident keys that should be given up first, the
// coldest first, none twice. The caller evicts those it can and wants to, and
// calls Remove for each. The slice is good until the next call.
//
// Until something is removed, each call goes on where the last one ended, and
// after the last resident key begins anew: keys that cannot be evicted stand in
// nobody's way. One that has been returned eight times without being used or
// removed goes behind the others of its kind, as if it had just come.
//
// It takes time proportional to the number of keys returned since the last
// Remove.
func (q *Queue[K]) Victims(n int) []K {
	q.demote()
	q.offers = q.offers[:0]
	if q.passed >= q.Len() {
		q.passed = 0
	}
	skip := q.passed
	for _, r := range [...]ring{trial, hot} {
		i := q.entries[r].newer
		for range q.length[r] {
			if len(q.offers) >= n {
				return q.offers
			}
			e, next := &q.entries[i], q.entries[i].newer
			if skip > 0 {
				skip--
			} else {
				q.offers = append(q.offers, e.key)
				q.passed++
				if e.offered++; e.offered == patience {
					e.offered = 0
					q.passed--
					q.move(i, r)
				}
			}
			i = next
		}
	}
	return q.offers
}

func (q *Queue[K]) move(i int32, to ring) {
	q.unlink(i)
	q.entries[i].ring = to
	q.link(i)
}

// link makes entry i the newest of its ring.
func (q *Queue[K]) link(i int32) {
	e := &q.entries[i]
	head := int32(e.ring)
	e.newer, e.older = head, q.entries[head].older
	q.entries[e.older].newer, q.entries[head].older = i, i
	q.length[e.ring]++
}

func (q *Queue[K]) unlink(i int32) {
	e := &q.entries[i]
	q.entries[e.older].newer, q.entries[e.newer].older = e.newer, e.older
	q.length[e.ring]--
}

// drop forgets entry i.
func (q *Queue[K]) drop(i int32) {
	q.unlink(i)
	delete(q.at, q.entries[i].key)
	q.entries[i] = entry[K]{newer: q.unused}
	q.unused = i
}
