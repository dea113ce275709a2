// SPDX-License-Identifier: Apache-2.0

package span

import "slices"

// A history remembers which bytes of a block recent commits changed, and who
// made them, so that a flush based on an older version conflicts only if others
// changed the same bytes since. It is kept while somebody may flush against an
// older version.
type history struct {
	floor   uint64 // commits up to this version are forgotten
	commits []commit
}

type commit struct {
	version uint64
	author  uint64 // the shadow mapping that flushed; 0: none did
	runs    []Run  // ascending
}

// A Run is bytes [Offset, Offset+Length) of a block.
type Run struct{ Offset, Length uint32 }

func (r Run) end() uint32 { return r.Offset + r.Length }

// Bounds of one block's history. Beyond them it takes several commits of an
// author for one, a commit's hull for its runs, and at last forgets old
// commits: all of these can only report a conflict that is none, which costs
// the loser one Invalidate.
const (
	maxCommits = 32
	maxRuns    = 256
)

// add records a commit. The runs are copied.
func (h *history) add(version, author uint64, runs []Run) {
	if len(h.commits) == maxCommits {
		h.compact()
	}
	h.commits = append(h.commits, commit{version, author, hull(slices.Clone(runs))})
}

// compact makes room for one commit.
func (h *history) compact() {
	for i, c := range h.commits {
		for j := i + 1; j < len(h.commits); j++ {
			if later := &h.commits[j]; later.author == c.author {
				// From now on the earlier counts as if it were as new.
				later.runs = hull(union(c.runs, later.runs))
				h.commits = slices.Delete(h.commits, i, i+1)
				return
			}
		}
	}
	h.floor = h.commits[0].version
	h.commits = slices.Delete(h.commits, 0, 1)
}

// hull returns runs, or one that covers them if they are too many.
func hull(runs []Run) []Run {
	if len(runs) <= maxRuns {
		return runs
	}
	return []Run{{runs[0].Offset, runs[len(runs)-1].end() - runs[0].Offset}}
}

// union returns the bytes of two ascending lists as one.
func union(a, b []Run) []Run {
	var out []Run
	for len(a) > 0 || len(b) > 0 {
		from := &a
		if len(a) == 0 || len(b) > 0 && b[0].Offset < a[0].Offset {
			from = &b
		}
		r := (*from)[0]
		*from = (*from)[1:]
		if last := len(out) - 1; last >= 0 && r.Offset <= out[last].end() {
			out[last].Length = max(out[last].end(), r.end()) - out[last].Offset
		} else {
			out = append(out, r)
		}
	}
	return out
}

// conflict returns the first byte range that runs share with a commit after
// base of anybody but author; ok is false if there is none. A base that history
// does not reach back to conflicts as a whole.
func (h *history) conflict(base, author uint64, runs []Run) (first Run, ok bool) {
	if base < h.floor && len(runs) > 0 {
		return runs[0], true
	}
	for _, c := range h.commits {
		if c.version <= base || c.author == author && author != 0 {
			continue
		}
		if r, ok := overlap(c.runs, runs); ok {
			return r, true
		}
	}
	return Run{}, false
}

// overlap returns the first range that two ascending lists share.
func overlap(a, b []Run) (Run, bool) {
	for len(a) > 0 && len(b) > 0 {
		switch {
		case a[0].end() <= b[0].Offset:
			a = a[1:]
		case b[0].end() <= a[0].Offset:
			b = b[1:]
		default:
			start := max(a[0].Offset, b[0].Offset)
			return Run{start, min(a[0].end(), b[0].end()) - start}, true
		}
	}
	return Run{}, false
}
