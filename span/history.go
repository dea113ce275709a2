// SPDX-License-Identifier: Apache-2.0

package span

import "slices"

// A history remembers which bytes of a block recent commits changed, so that a
// flush based on an older version conflicts only if it changed the same bytes.
// It is kept while somebody may flush against an older version.
type history struct {
	floor   uint64 // commits up to this version are forgotten
	commits []commit
}

type commit struct {
	version uint64
	runs    []Run // ascending
}

// A Run is bytes [Offset, Offset+Length) of a block.
type Run struct{ Offset, Length uint32 }

func (r Run) end() uint32 { return r.Offset + r.Length }

// Bounds of one block's history. Beyond them it forgets old commits, or takes
// a commit's hull for its runs: both can only report a conflict that is none,
// which costs the loser one Invalidate.
const (
	maxCommits = 32
	maxRuns    = 256
)

// add records a commit. The runs are copied.
func (h *history) add(version uint64, runs []Run) {
	if len(runs) > maxRuns {
		runs = []Run{{runs[0].Offset, runs[len(runs)-1].end() - runs[0].Offset}}
	}
	if len(h.commits) == maxCommits {
		h.floor = h.commits[0].version
		h.commits = slices.Delete(h.commits, 0, 1)
	}
	h.commits = append(h.commits, commit{version, slices.Clone(runs)})
}

// conflict returns the first byte range that runs share with a commit after
// base; ok is false if there is none. A base that history does not reach back
// to conflicts as a whole.
func (h *history) conflict(base uint64, runs []Run) (first Run, ok bool) {
	if base < h.floor && len(runs) > 0 {
		return runs[0], true
	}
	for _, c := range h.commits {
		if c.version <= base {
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
