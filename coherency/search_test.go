// SPDX-License-Identifier: Apache-2.0

package coherency

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
)

// invariants checks what must hold of block b in every state.
func (w *world) invariants(b int) error {
	m, x := w.m, &w.blocks[b]
	info := m.Block(b)
	var holders AgentMask
	alone, owned := 0, 0
	writers := 0
	for a := range m.agents {
		r := info.Replicas[a]
		if r.Held && r.Version > info.Version {
			return fmt.Errorf("a%d holds version %d of a block at %d", a, r.Version, info.Version)
		}
		if r.Held && x.bytes[a] != x.versions[r.Version] {
			return fmt.Errorf("a%d is said to hold version %d, writes %#x: its bytes show %#x", a, r.Version, x.versions[r.Version], x.bytes[a])
		}
		if current := r.Held && r.Version == info.Version; current != r.State.current() || current != m.Valid(b, Agent(a)) {
			return fmt.Errorf("a%d at version %d of %d is %v, valid: %v", a, r.Version, info.Version, r.State, m.Valid(b, Agent(a)))
		}
		if r.State.current() {
			holders |= 1 << a
		}
		switch r.State {
		case Modified, Exclusive:
			alone++
		case Owned:
			owned++
		}
		if x.writing[a].active {
			writers++
			if info.Writer != Agent(a) || r.Held {
				return fmt.Errorf("a%d writes, but the directory says a%d does and shows a%d %+v", a, info.Writer, a, r)
			}
		}
		if m.ValidBlocks(Agent(a)) != m.countValid(Agent(a)) {
			return fmt.Errorf("ValidBlocks(a%d) is %d, want %d", a, m.ValidBlocks(Agent(a)), m.countValid(Agent(a)))
		}
	}
	if alone > 1 || alone == 1 && holders.Count() > 1 || owned > 1 || writers > 1 || alone+writers > 1 {
		return fmt.Errorf("not a single writer or many readers: %+v", info)
	}
	home := info.Replicas[m.home]
	zero := x.versions[info.Version] == 0
	if debt := info.Version > 0 && !home.State.current() && !info.Lost; debt != info.Debt {
		return fmt.Errorf("debt is %v, want %v", info.Debt, debt)
	}
	if info.Debt != (info.Owner != NoAgent) && !(zero && holders == 0) {
		return fmt.Errorf("debt: %v, but a%d owes it", info.Debt, info.Owner)
	}
	if info.Owner != NoAgent && !holders.Has(info.Owner) && info.Writer != info.Owner {
		return fmt.Errorf("a%d owes the debt but does not hold the version", info.Owner)
	}
	if holders == 0 && !info.Lost && !zero && info.Writer == NoAgent {
		return errors.New("nobody holds the version, and it is not lost")
	}
	if info.Lost && (holders != 0 || info.Version == 0) {
		return errors.New("lost, but there is a copy")
	}
	if len(x.versions) != int(info.Version)+1 {
		return fmt.Errorf("version %d after %d commits", info.Version, len(x.versions)-1)
	}
	return nil
}

func (m *Manager) countValid(a Agent) int {
	n := 0
	for b := range m.blocks {
		if m.Valid(b, a) {
			n++
		}
	}
	return n
}

// drains checks that block b comes to rest from here, that nothing is lost on
// the way, and that it can be read then. It uses w up.
func (w *world) drains(b int) error {
	x := &w.blocks[b]
	lost := w.m.lost(b)
	for len(x.flights) > 0 {
		if err := w.apply(op{kind: opFail, b: b}); err != nil {
			return err
		}
	}
	for a := range w.m.agents {
		for x.pins[a] > 0 {
			w.m.Unpin(b, Agent(a))
			x.pins[a]--
		}
		if x.writing[a].active {
			if err := w.apply(op{kind: opAbort, b: b, a: Agent(a)}); err != nil {
				return fmt.Errorf("a write that was begun is refused its abort: %w", err)
			}
		}
	}
	if info := w.m.Block(b); info.Busy || info.Pinned || w.m.blocks[b].slot != 0 {
		return errors.New("busy for ever")
	}
	if w.m.lost(b) && !lost {
		return errors.New("lost by failed copies and clean aborts")
	}
	for a := range w.m.agents {
		c, hit, err := w.m.Acquire(b, Agent(a))
		switch {
		case errors.Is(err, ErrDataLoss) && w.m.lost(b):
		case err != nil:
			return fmt.Errorf("an idle block cannot be read: %w", err)
		case !hit:
			if _, err := w.m.Complete(c, false); err != nil {
				return err
			}
			if err := w.invariants(b); err != nil {
				return err
			}
			return nil // one is enough: the copy replaced what a held
		}
	}
	return nil
}

type stateKey [48]byte

// key spells the state of block b but for what does not matter: versions count
// by rank, but for 0, and bytes that are no version not at all. It returns how
// many versions there are still traces of, 0 apart.
func (w *world) key(b int, k *stateKey) (writes int) {
	m, x := w.m, &w.blocks[b]
	*k = stateKey{}
	n := 0
	put := func(v byte) { k[n] = v; n++ }
	live := make([]uint64, 0, 16)
	see := func(held uint64) {
		if held != 0 {
			live = append(live, held)
		}
	}
	see(m.current(b))
	for _, held := range m.row(b) {
		see(held)
	}
	t := m.doing(b)
	if t != nil {
		if t.writer != NoAgent {
			see(t.prior)
		}
		for a := range t.flight.All() {
			see(m.flight(b, a).version + 1)
		}
	}
	slices.Sort(live)
	live = slices.Compact(live)
	writes = len(live)
	if live[0] == 1 {
		writes--
	}
	rank := func(held uint64) byte {
		if held == 0 {
			return 0
		}
		i, _ := slices.BinarySearch(live, held)
		if live[0] > 1 {
			i++ // rank 1 is version 0 alone
		}
		return byte(i + 1)
	}
	// Writes count only by which versions show the same ones: the next write
	// is new to all of them.
	for i, held := range live {
		is := x.versions[held-1]
		same := slices.IndexFunc(live[:i], func(h uint64) bool { return x.versions[h-1] == is })
		if is == 0 {
			same = 0x40
		}
		put(byte(same) | 0x80)
	}
	put(rank(m.current(b)))
	put(byte(m.blocks[b].owner))
	put(byte(m.blocks[b].flags))
	for a, held := range m.row(b) {
		put(rank(held) | byte(x.pins[a])<<4)
	}
	if t == nil {
		return writes
	}
	put(byte(t.writer))
	if t.writer != NoAgent {
		put(rank(t.prior))
		put(flag(x.writing[t.writer].whole) | flag(x.writing[t.writer].disturbed)<<1)
	}
	for a := range t.flight.All() {
		f := m.flight(b, a)
		put(byte(a) | byte(f.src)<<4)
		put(rank(f.version+1) | flag(t.void.Has(a))<<6)
	}
	for _, f := range x.flights {
		put(byte(f.Dst) | flag(f.val == torn)<<7 | 0x40)
	}
	return writes
}

func flag(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// maxFlights bounds the copies under way at once, maxTraces the versions that
// anything is left of (version 0 apart): as many as three agents can hold.
const (
	maxFlights = 2
	maxTraces  = 3
)

// search visits every state that block 0 of a Manager can come to, nearest
// first, and returns how many there are, or the shortest way to a violation. It
// stops short at maxStates.
func search(c Config, broken guard, maxStates int) (states, steps int, err error) {
	c.Blocks = 1
	first, err := newWorld(c)
	if err != nil {
		return 0, 0, err
	}
	first.m.broken = broken
	type origin struct {
		from int32
		op   op
	}
	var (
		origins []origin
		seen    = map[stateKey]struct{}{}
		next    []*world
		recycle []*world
		scratch = new(world)
		k       stateKey
	)
	violated := func(from int, o op, err error) error {
		ops := []string{o.String()}
		for i := from; i > 0; i = int(origins[i].from) {
			ops = append(ops, origins[i].op.String())
		}
		slices.Reverse(ops)
		return fmt.Errorf("%s: %w", strings.Join(ops, " "), err)
	}
	add := func(w *world, from int, o op) {
		if w.key(0, &k) > maxTraces {
			return
		}
		if _, ok := seen[k]; ok {
			return
		}
		seen[k] = struct{}{}
		keep := new(world)
		if n := len(recycle); n > 0 {
			keep, recycle = recycle[n-1], recycle[:n-1]
		}
		keep.set(w)
		next = append(next, keep)
		origins = append(origins, origin{int32(from), o})
	}
	add(first, 0, op{})
	at := 0
	var ops []op
	for len(next) > 0 && len(seen) < maxStates {
		level := next
		next = nil
		for _, w := range level {
			var was stateKey
			w.key(0, &was)
			ops = w.ops(ops[:0])
			for _, o := range ops {
				scratch.set(w)
				steps++
				err := scratch.apply(o)
				if err == errRefused {
					if scratch.key(0, &k); k != was {
						return len(seen), steps, violated(at, o, errors.New("a refused call changed something"))
					}
					continue
				}
				if err == nil {
					err = scratch.invariants(0)
				}
				if err != nil {
					return len(seen), steps, violated(at, o, err)
				}
				x := &scratch.blocks[0]
				if len(x.flights) <= maxFlights {
					add(scratch, at, o)
				}
			}
			scratch.set(w)
			if err := scratch.drains(0); err != nil {
				return len(seen), steps, violated(at, op{kind: opFail}, fmt.Errorf("coming to rest: %w", err))
			}
			recycle = append(recycle, w)
			at++
		}
	}
	return len(seen), steps, nil
}

// ops appends what may happen to block 0 next.
func (w *world) ops(ops []op) []op {
	for kind := opKind(0); kind < perAgentOp; kind++ {
		if kind == opPin || kind == opUnpin {
			continue // opPinProbe
		}
		for a := range w.m.agents {
			ops = append(ops, op{kind: kind, a: Agent(a)})
		}
	}
	for i := range w.blocks[0].flights {
		ops = append(ops, op{kind: opArrive, n: i}, op{kind: opFail, n: i})
	}
	return append(ops, op{kind: opAccept})
}

// machines are what the search is run on.
var machines = []struct {
	name string
	c    Config
}{
	{"three tiers, home on disk", Config{
		Agents: []AgentInfo{{Tier: VRAM}, {Tier: Host}, {Tier: Disk}}, Home: 2, Policy: WriteThrough, Zeroed: AgentsOf(1, 2)}},
	{"three tiers, home in RAM", Config{
		Agents: []AgentInfo{{Tier: VRAM}, {Tier: Host}, {Tier: Disk}}, Home: 1, Policy: WriteAll, Zeroed: AgentsOf(1)}},
	{"two tiers on two nodes", Config{
		Agents: []AgentInfo{{Tier: VRAM}, {Tier: Host}, {Tier: VRAM, Node: 1}, {Tier: Host, Node: 1}}, Home: 1, Policy: WriteAll, Zeroed: AgentsOf(1)}},
}

// TestSearch is exhaustive: of one block, with any number of writes of which
// three are still to be seen, up to two copies under way, completions in any order, failing, late and repeated, and
// agents dying. With the race detector, which makes it six times slower and has
// nothing to find here, it stops early on the largest machine.
func TestSearch(t *testing.T) {
	for _, machine := range machines {
		t.Run(machine.name, func(t *testing.T) {
			maxStates := math.MaxInt
			if raceDetector {
				maxStates = 30_000 // all of those with three agents
			}
			states, steps, err := search(machine.c, noGuard, maxStates)
			whole := "all"
			if states >= maxStates {
				whole = "the nearest"
			}
			t.Logf("%s %d states, %d transitions", whole, states, steps)
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}
