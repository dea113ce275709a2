// SPDX-License-Identifier: Apache-2.0

//go:build linux

package e2e

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// A history is what clients asked for and were answered, and when. Its check
// asks whether some order of all these, in which each takes place at one moment
// between question and answer, explains all answers: whether each block is a
// register.
//
// A block's contents are divided into cells, each written as a whole, with a
// value that is never written again. Writes of several cells at once are one
// action. So a block that is a mixture of two writes shows.
type history struct {
	clock atomic.Int64
	mu    sync.Mutex
	ops   []porcupine.Operation
	open  []int // those of ops of which it is not known whether they are over
	died  int64 // when the last of those died who could still do what was asked before
}

// ncells is how many cells a block has: a few bytes, what fits a page, two
// large ones.
const ncells = 4

// cells returns where the cells of a block of n bytes begin and end.
func cells(n int) [ncells + 1]int {
	const small, page = 512, 4096
	return [...]int{0, small, page, page + (n-page)/2&^7, n}
}

// A register is one block of one span of a history.
type register struct{ span, block int }

// An action is what a client asked of a block.
type action struct {
	register
	kind     kind
	from, to int    // cells
	value    uint64 // of a write
	based    bool   // a write that must fail if its cells do not hold base
	base     [ncells]uint64
	cached   bool // a read through a mapping that may have had the newest version already
	safe     bool // a write that is answered when it is where nothing is lost
}

type kind string

const (
	writing   kind = "write"
	reading   kind = "read"
	accepting kind = "accept"
	saving    kind = "save"  // of the block's contents to where nothing is lost
	dying     kind = "death" // of what holds the block's volatile copies
)

// An answer is what became of an action.
type answer struct {
	outcome outcome
	values  [ncells]uint64 // of a read
	err     error
}

type outcome string

const (
	done    outcome = "done"
	owed    outcome = "owed"    // done, but not where it is safe
	lost    outcome = "lost"    // the read was told that the contents are lost
	failed  outcome = "failed"  // done or not, but not any more
	unheard outcome = "unheard" // done or not, now or at any later time
)

// contents are the state of a register.
type contents struct {
	cells [ncells]uint64 // even if lost: a mapping may still show them
	lost  bool
	risky bool // a death can take them
}

// survivor stands for whatever a cell held before a loss that was accepted. What
// that is, the next read tells.
const survivor = math.MaxUint64

// with returns the contents after a write, if it can take place.
func (s contents) with(a action) (after contents, ok bool) {
	if s.lost && (a.from > 0 || a.to < ncells) {
		return s, false
	}
	for i := a.from; i < a.to; i++ {
		if a.based && !s.lost && s.cells[i] != a.base[i] && s.cells[i] != survivor {
			return s, false
		}
		s.cells[i] = a.value
	}
	s.lost = false
	s.risky = true
	return s, true
}

// after returns the states that may follow s.
func (s contents) after(a action, r answer) []contents {
	switch a.kind {
	case writing:
		after, ok := s.with(a)
		switch {
		case r.outcome == failed && ok:
			return []contents{s, after}
		case r.outcome == failed, r.outcome == unheard && !ok:
			return []contents{s}
		case !ok:
			return nil
		}
		after.risky = !a.safe || r.outcome != done
		return []contents{after}
	case reading:
		if r.outcome == lost {
			if !s.lost {
				return nil
			}
			return []contents{s}
		}
		if s.lost && !a.cached {
			return nil
		}
		for i := a.from; i < a.to; i++ {
			if s.cells[i] != survivor && s.cells[i] != r.values[i] {
				return nil
			}
			s.cells[i] = r.values[i]
		}
		return []contents{s}
	case accepting:
		if !s.lost {
			return []contents{s}
		}
		accepted := contents{risky: true}
		for i := range accepted.cells {
			accepted.cells[i] = survivor
		}
		if r.outcome == done {
			return []contents{accepted}
		}
		return []contents{s, accepted}
	case saving:
		s.risky = false
		return []contents{s}
	default: // dying
		if !s.risky || s.lost {
			return []contents{s}
		}
		gone := contents{cells: s.cells, lost: true}
		return []contents{s, gone}
	}
}

// blocks is the model of a history: registers that are independent of each
// other.
var blocks = porcupine.NondeterministicModel{
	Partition: func(ops []porcupine.Operation) [][]porcupine.Operation {
		parts := make(map[register][]porcupine.Operation)
		for _, op := range ops {
			r := op.Input.(action).register
			parts[r] = append(parts[r], op)
		}
		var all [][]porcupine.Operation
		for _, part := range parts {
			all = append(all, part)
		}
		return all
	},
	Init: func() []any { return []any{contents{}} },
	Step: func(state, input, output any) []any {
		var states []any
		for _, s := range state.(contents).after(input.(action), output.(answer)) {
			states = append(states, s)
		}
		return states
	},
	Hash: func(state any) uint64 {
		var h uint64
		for _, c := range state.(contents).cells {
			h = (h ^ c) * 0x9e3779b97f4a7c15
		}
		return h
	},
	DescribeOperation: func(input, output any) string { return describe(input.(action), output.(answer)) },
	DescribeState:     func(state any) string { return fmt.Sprintf("%+v", state) },
}

func describe(a action, r answer) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %d/%d", a.kind, a.span, a.block)
	if a.from < a.to {
		fmt.Fprintf(&b, " [%d,%d)", a.from, a.to)
	}
	if a.kind == writing {
		fmt.Fprintf(&b, " = %x", a.value)
		if a.based {
			fmt.Fprintf(&b, " over %x", a.base[a.from:a.to])
		}
	}
	fmt.Fprintf(&b, " -> %s", r.outcome)
	if a.kind == reading && r.outcome == done {
		fmt.Fprintf(&b, " %x", r.values[a.from:a.to])
	}
	if r.err != nil {
		fmt.Fprintf(&b, ": %v", r.err)
	}
	return b.String()
}

// begin returns the time of a question.
func (h *history) begin() int64 { return h.clock.Add(1) }

// end records an action that began at start, and its answer, which came now.
func (h *history) end(client int, start int64, a action, r answer) {
	op := porcupine.Operation{ClientId: client, Input: a, Output: r, Call: start, Return: h.clock.Add(1)}
	h.mu.Lock()
	defer h.mu.Unlock()
	if r.outcome == unheard && start < h.died {
		op.Return, op.Output = h.died, answer{outcome: failed, err: r.err}
	} else if r.outcome == unheard {
		op.Return = math.MaxInt64
		h.open = append(h.open, len(h.ops))
	}
	h.ops = append(h.ops, op)
}

// death records that all those are dead who could do what was asked for until
// now: what is not over never takes place.
func (h *history) death() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.died = h.clock.Add(1)
	for _, i := range h.open {
		op := &h.ops[i]
		op.Return, op.Output = h.died, answer{outcome: failed}
	}
	h.open = nil
}

// check says whether the history is that of registers.
func (h *history) check(t *testing.T) {
	t.Helper()
	model := blocks.ToModel()
	result := porcupine.CheckOperationsTimeout(model, h.ops, 2*time.Minute)
	if result == porcupine.Ok {
		return
	}
	t.Errorf("the history of %d actions is not that of registers: %s", len(h.ops), result)
	for _, part := range blocks.Partition(h.ops) {
		if porcupine.CheckOperationsTimeout(model, part, 10*time.Second) == porcupine.Ok {
			continue
		}
		_, info := porcupine.CheckOperationsVerbose(model, part, 10*time.Second)
		r := part[0].Input.(action).register
		path := filepath.Join(t.ArtifactDir(), fmt.Sprintf("history-%d-%d.html", r.span, r.block))
		if err := porcupine.VisualizePath(model, info, path); err == nil {
			t.Logf("block %d of span %d: see %s (go test -artifacts keeps it)", r.block, r.span, path)
		}
		known := wrongAt(part)
		t.Logf("no order explains the last answer of these:")
		for _, op := range known[max(0, len(known)-40):] {
			t.Logf("client %d [%d, %d] %s", op.ClientId, op.Call, op.Return, describe(op.Input.(action), op.Output.(answer)))
		}
	}
}

// wrongAt returns the shortest beginning of a block's history that is not that
// of a register, in the order of the answers.
func wrongAt(ops []porcupine.Operation) []porcupine.Operation {
	ops = slices.Clone(ops)
	slices.SortFunc(ops, func(a, b porcupine.Operation) int { return cmp.Compare(a.Return, b.Return) })
	n := sort.Search(len(ops), func(n int) bool {
		known := slices.Clone(ops[:n+1])
		for _, op := range ops[n+1:] { // not answered by then
			if op.Call < ops[n].Return && op.Input.(action).kind != reading {
				if op.Input.(action).kind == writing {
					op.Output = answer{outcome: unheard}
				}
				op.Return = math.MaxInt64
				known = append(known, op)
			}
		}
		return porcupine.CheckOperationsTimeout(blocks.ToModel(), known, 5*time.Second) == porcupine.Illegal
	})
	return ops[:min(n+1, len(ops))]
}

// count returns how many actions of a kind had an outcome.
func (h *history) count(k kind, o outcome) (n int) {
	for _, op := range h.ops {
		if op.Input.(action).kind == k && op.Output.(answer).outcome == o {
			n++
		}
	}
	return n
}

// mark fills p, which lies at off in its span, with a value.
func mark(p []byte, off int64, value uint64) {
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], value^place(off+int64(i)))
	}
}

// marked returns the value that p is filled with, 0 for zeros.
func marked(p []byte, off int64) (value uint64, err error) {
	value = binary.LittleEndian.Uint64(p) ^ place(off)
	zero := binary.LittleEndian.Uint64(p) == 0
	for i := 0; i < len(p); i += 8 {
		got := binary.LittleEndian.Uint64(p[i:])
		if zero && got != 0 || !zero && got != value^place(off+int64(i)) {
			return 0, fmt.Errorf("bytes at %d are of %x, those at %d of %x", off, value, off+int64(i), got^place(off+int64(i)))
		}
	}
	if zero {
		return 0, nil
	}
	return value, nil
}

// place makes bytes tell where they belong.
func place(off int64) uint64 { return uint64(off/8+1) * 0x9e3779b97f4a7c15 }

// The checker finds what is wrong, and nothing in what is right.
func TestHistoryIsJudgedRight(t *testing.T) {
	type op struct {
		call, ret int64
		a         action
		r         answer
	}
	whole := func(v uint64) action { return action{kind: writing, to: ncells, value: v} }
	saved := func(v uint64) action { return action{kind: writing, to: ncells, value: v, safe: true} }
	part := func(v uint64) action { return action{kind: writing, from: 1, to: 2, value: v} }
	over := func(v, base uint64) action {
		return action{kind: writing, from: 1, to: 2, value: v, based: true, base: [ncells]uint64{0, base, 0, 0}}
	}
	read := action{kind: reading, to: ncells}
	death, accept, save := action{kind: dying}, action{kind: accepting}, action{kind: saving}
	got := func(v ...uint64) answer { return answer{outcome: done, values: [ncells]uint64(v)} }
	was := func(o outcome) answer { return answer{outcome: o} }
	for _, test := range []struct {
		name string
		ok   bool
		ops  []op
	}{
		{"written and read", true, []op{{1, 2, whole(7), was(done)}, {3, 4, read, got(7, 7, 7, 7)}}},
		{"stale read", false, []op{{1, 2, whole(7), was(done)}, {3, 4, read, got(0, 0, 0, 0)}}},
		{"read while being written", true, []op{{1, 4, whole(7), was(done)}, {2, 3, read, got(0, 0, 0, 0)}}},
		{"forth and back", false, []op{{1, 6, whole(7), was(done)}, {2, 3, read, got(7, 7, 7, 7)}, {4, 5, read, got(0, 0, 0, 0)}}},
		{"mixture", false, []op{{1, 4, whole(7), was(done)}, {2, 3, read, got(7, 7, 0, 0)}}},
		{"one cell", true, []op{{1, 2, whole(7), was(done)}, {3, 4, part(8), was(done)}, {5, 6, read, got(7, 8, 7, 7)}}},
		{"lost update", false, []op{{1, 2, whole(7), was(done)}, {3, 4, over(8, 0), was(done)}, {5, 6, read, got(7, 8, 7, 7)}}},
		{"update", true, []op{{1, 2, whole(7), was(done)}, {3, 4, over(8, 7), was(done)}, {5, 6, read, got(7, 8, 7, 7)}}},
		{"failed, not done", true, []op{{1, 2, whole(7), was(failed)}, {3, 4, read, got(0, 0, 0, 0)}}},
		{"failed, done", true, []op{{1, 2, whole(7), was(failed)}, {3, 4, read, got(7, 7, 7, 7)}}},
		{"failed, done later", false, []op{{1, 2, whole(7), was(failed)}, {3, 4, read, got(0, 0, 0, 0)}, {5, 6, read, got(7, 7, 7, 7)}}},
		{"unheard of, done later", true, []op{{1, math.MaxInt64, whole(7), was(unheard)}, {3, 4, read, got(0, 0, 0, 0)}, {5, 6, read, got(7, 7, 7, 7)}}},
		{"unheard of, done twice", false, []op{{1, math.MaxInt64, whole(7), was(unheard)}, {2, 3, read, got(7, 7, 7, 7)}, {4, 5, whole(8), was(done)}, {6, 7, read, got(7, 7, 7, 7)}}},
		{"lost by a death", true, []op{{1, 2, whole(7), was(done)}, {3, 4, death, was(done)}, {5, 6, read, was(lost)}}},
		{"lost without one", false, []op{{1, 2, whole(7), was(done)}, {5, 6, read, was(lost)}}},
		{"lost though safe", false, []op{{1, 2, saved(7), was(done)}, {3, 4, death, was(done)}, {5, 6, read, was(lost)}}},
		{"lost though saved", false, []op{{1, 2, whole(7), was(done)}, {3, 4, save, was(done)}, {5, 6, death, was(done)}, {7, 8, read, was(lost)}}},
		{"lost, being owed", true, []op{{1, 2, saved(7), was(owed)}, {3, 4, death, was(done)}, {5, 6, read, was(lost)}}},
		{"rolled back by a death", false, []op{{1, 2, saved(6), was(done)}, {3, 4, whole(7), was(done)}, {5, 6, death, was(done)}, {7, 8, read, got(6, 6, 6, 6)}}},
		{"lost, but mapped before", true, []op{{1, 2, whole(7), was(done)}, {3, 4, death, was(done)}, {5, 6, read, was(lost)}, {7, 8, action{kind: reading, to: ncells, cached: true}, got(7, 7, 7, 7)}}},
		{"lost and there", false, []op{{1, 2, whole(7), was(done)}, {3, 4, death, was(done)}, {5, 6, read, was(lost)}, {7, 8, read, got(7, 7, 7, 7)}}},
		{"a part of what is lost", false, []op{{1, 2, whole(7), was(done)}, {3, 4, death, was(done)}, {5, 6, read, was(lost)}, {7, 8, part(8), was(done)}}},
		{"lost and overwritten", true, []op{{1, 2, whole(7), was(done)}, {3, 4, death, was(done)}, {5, 6, read, was(lost)}, {7, 8, whole(8), was(done)}, {9, 10, read, got(8, 8, 8, 8)}}},
		{"lost and accepted", true, []op{{1, 2, whole(7), was(done)}, {3, 4, death, was(done)}, {5, 6, read, was(lost)}, {7, 8, accept, was(done)}, {9, 10, read, got(3, 3, 3, 3)}}},
		{"accepted, and another", false, []op{{1, 2, whole(7), was(done)}, {3, 4, death, was(done)}, {5, 6, read, was(lost)}, {7, 8, accept, was(done)}, {9, 10, read, got(3, 3, 3, 3)}, {11, 12, read, got(4, 4, 4, 4)}}},
	} {
		var ops []porcupine.Operation
		for i, o := range test.ops {
			ops = append(ops, porcupine.Operation{ClientId: i, Input: o.a, Output: o.r, Call: o.call, Return: o.ret})
		}
		if ok := porcupine.CheckOperations(blocks.ToModel(), ops); ok != test.ok {
			t.Errorf("%s: judged %v, want %v", test.name, ok, test.ok)
		}
	}
}
