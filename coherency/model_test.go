// SPDX-License-Identifier: Apache-2.0

package coherency

import (
	"errors"
	"fmt"
	"slices"
)

// The model beside a Manager: what bytes are really where. It knows nothing of
// the protocol. Bytes are spelled as the set of writes they show; a torn or
// unknown content is equal to no version's.
type content uint64

const (
	torn      content = 1 << 63
	maxWrites         = 62 // of one block in one history
)

type world struct {
	m      *Manager
	blocks []blockModel
}

type blockModel struct {
	bytes    [6]content // by agent
	writing  [6]writing
	pins     [6]int
	versions []content // what each version is
	flights  []flightModel
	writes   int
}

type writing struct {
	active, whole, disturbed bool
	base                     content
}

type flightModel struct {
	Copy
	val content // what the copy read
}

func newWorld(c Config) (*world, error) {
	m, err := NewManager(c)
	if err != nil {
		return nil, err
	}
	w := &world{m: m, blocks: make([]blockModel, c.Blocks)}
	for b := range w.blocks {
		x := &w.blocks[b]
		x.versions = []content{0}
		for a := range c.Agents {
			if !c.Zeroed.Has(Agent(a)) {
				x.bytes[a] = torn
			}
		}
	}
	return w, nil
}

// set makes w a copy of o that shares nothing with it but what never changes.
func (w *world) set(o *world) {
	if w.m == nil {
		w.m = new(Manager)
	}
	w.m.set(o.m)
	w.blocks = slices.Grow(w.blocks[:0], len(o.blocks))[:len(o.blocks)]
	for b := range o.blocks {
		x := &w.blocks[b]
		versions, flights := x.versions, x.flights
		*x = o.blocks[b]
		x.versions = append(versions[:0], x.versions...)
		x.flights = append(flights[:0], x.flights...)
	}
}

func (m *Manager) set(o *Manager) {
	was := *m
	*m = *o
	m.blocks = append(was.blocks[:0], o.blocks...)
	m.held = append(was.held[:0], o.held...)
	m.valid = append(was.valid[:0], o.valid...)
	m.spanPins = append(was.spanPins[:0], o.spanPins...)
	m.busy = append(was.busy[:0], o.busy...)
	m.flights = append(was.flights[:0], o.flights...)
	m.pins = append(was.pins[:0], o.pins...)
}

// An op is one call of the Manager, or something that happens.
type op struct {
	kind opKind
	b    int
	a    Agent
	n    int // which flight
}

type opKind uint8

const (
	opAcquire opKind = iota
	opWrite          // of a part
	opWriteWhole
	opWriteStale // based on a version that is not the current one
	opCommit
	opAbort
	opAbortDamaged
	opEvict
	opDiscard
	opAdopt
	opPin
	opUnpin
	opLose     // the agent dies
	opPinProbe // pinned, it cannot be taken away
	opReplay   // a completion that was reported before comes again
	opArrive   // flight n succeeds
	opFail     // flight n fails
	opAccept   // of the block
	opKinds    = iota
	perAgentOp = opArrive
)

var opNames = [opKinds]string{
	"acquire", "write", "write-whole", "write-stale", "commit", "abort", "abort-damaged", "evict", "discard",
	"adopt", "pin", "unpin", "lose", "pin-probe", "replay", "arrive", "fail", "accept",
}

func (o op) String() string { return fmt.Sprintf("%s(b%d a%d f%d)", opNames[o.kind], o.b, o.a, o.n) }

// errRefused: the Manager said no, in words of its own.
var errRefused = errors.New("refused")

var sentinels = []error{ErrConflict, ErrDataLoss, ErrLastCopy, ErrPinned, ErrBusy, ErrState}

func refused(err error) error {
	for _, s := range sentinels {
		if errors.Is(err, s) {
			return errRefused
		}
	}
	return fmt.Errorf("an error of no known kind: %w", err)
}

// apply carries o out, on the Manager and in the model. It returns errRefused,
// or what was violated.
func (w *world) apply(o op) error {
	before := w.m.Block(o.b)
	if err := w.call(o, &before); err != nil {
		return err
	}
	after := w.m.Block(o.b)
	return transition(o, &before, &after)
}

// transition checks what an operation may do to a block's version.
func transition(o op, before, after *BlockInfo) error {
	step := after.Version - before.Version
	switch o.kind {
	case opCommit:
		if step != 1 {
			return fmt.Errorf("version moved by %d", int64(step))
		}
	case opAdopt, opAccept:
		if want := !before.Replicas[o.a].State.current() || o.kind == opAccept; want != (step == 1) || step > 1 {
			return fmt.Errorf("version moved by %d", int64(step))
		}
	default:
		if step != 0 {
			return fmt.Errorf("version moved by %d", int64(step))
		}
	}
	switch o.kind {
	case opLose, opDiscard, opAbortDamaged:
		return nil
	}
	if after.Lost && !before.Lost {
		return errors.New("the version was lost by an operation that loses none")
	}
	// A write hides what its agent held; a copy whose source was written or
	// died meanwhile may arrive over what RAM or Disk held.
	if after.Lost && o.kind != opWriteWhole && o.kind != opArrive && after.Survivor < before.Survivor {
		return errors.New("what survived a loss was lost by an operation that loses none")
	}
	return nil
}

func (r Replica) current() bool { return r != Invalid }

// call carries o out.
func (w *world) call(o op, before *BlockInfo) error {
	m, b, a, x := w.m, o.b, o.a, &w.blocks[o.b]
	switch o.kind {
	case opAcquire:
		c, hit, err := m.Acquire(b, a)
		if err != nil {
			return refused(err)
		}
		if !hit {
			return w.depart(c, a)
		}
	case opWrite, opWriteWhole:
		c, ready, err := m.BeginWrite(b, a, o.kind == opWriteWhole, before.Version)
		if err != nil {
			return refused(err)
		}
		if !ready {
			return w.depart(c, a)
		}
		for i := range x.writing {
			if x.writing[i].active {
				return fmt.Errorf("a%d writes beside a%d", a, i)
			}
		}
		x.writing[a] = writing{active: true, whole: o.kind == opWriteWhole, base: x.bytes[a]}
		x.change(a, torn)
	case opWriteStale:
		if _, _, err := m.BeginWrite(b, a, true, before.Version+1); err != nil {
			return refused(err)
		}
		return errors.New("a write on another version than the current one was let through")
	case opCommit:
		c, err := m.Commit(b, a)
		if err != nil {
			return refused(err)
		}
		return w.committed(b, a, c, before)
	case opAbort, opAbortDamaged:
		if err := m.Abort(b, a, o.kind == opAbortDamaged); err != nil {
			return refused(err)
		}
		t := x.writing[a]
		if !t.active {
			return errors.New("a write was aborted that nobody began")
		}
		x.writing[a] = writing{}
		if o.kind == opAbort && !t.disturbed {
			x.bytes[a] = t.base
		}
	case opEvict:
		c, done, err := m.Evict(b, a)
		if err != nil {
			return refused(err)
		}
		if !done {
			return w.depart(c, c.Dst)
		}
		if !before.Lost && before.Version > 0 && m.Holders(b) == 0 && x.versions[before.Version] != 0 {
			return errors.New("the only copy was evicted")
		}
		return x.free(a)
	case opDiscard:
		if err := m.Discard(b, a); err != nil {
			return refused(err)
		}
		return x.free(a)
	case opAdopt:
		c, err := m.Adopt(b, a)
		if err != nil {
			return refused(err)
		}
		r := before.Replicas[a]
		switch {
		case !r.Held:
			return errors.New("bytes were adopted that are no version")
		case r.Version == before.Version:
			return nil
		}
		x.versions = append(x.versions, x.versions[r.Version])
		return w.pushed(b, a, c, before)
	case opPin:
		if err := m.Pin(b, a); err != nil {
			return refused(err)
		}
		x.pins[a]++
	case opUnpin:
		if x.pins[a] == 0 {
			return errRefused
		}
		m.Unpin(b, a)
		x.pins[a]--
	case opLose:
		return w.lose(a)
	case opPinProbe:
		if err := m.Pin(b, a); err != nil {
			return refused(err)
		}
		_, done, err := m.Evict(b, a)
		if done || !errors.Is(err, ErrPinned) {
			return fmt.Errorf("evicting a pinned copy: done: %v, %v", done, err)
		}
		if err := m.Discard(b, a); !errors.Is(err, ErrPinned) {
			return fmt.Errorf("discarding a pinned copy: %v", err)
		}
		m.Unpin(b, a)
		return errRefused
	case opReplay:
		return w.replay(b, a)
	case opArrive, opFail:
		return w.complete(b, o.n, o.kind == opArrive)
	case opAccept:
		v, from, err := m.Accept(b)
		if err != nil {
			return refused(err)
		}
		if !before.Lost {
			return errors.New("a loss was accepted that there was not")
		}
		var is content
		if from != NoAgent {
			r := before.Replicas[from]
			if !r.Held || r.Version != before.Survivor {
				return errors.New("not the newest survivor was accepted")
			}
			is = x.versions[r.Version]
		} else if before.Survivor != 0 {
			return errors.New("zeros were accepted though something survived")
		}
		if v != before.Version+1 {
			return fmt.Errorf("accepted as version %d after %d", v, before.Version)
		}
		x.versions = append(x.versions, is)
	}
	return nil
}

// depart models the start of a copy that the Manager planned for want.
func (w *world) depart(c Copy, want Agent) error {
	x := &w.blocks[c.Block]
	switch {
	case c.Dst != want || c.Dst == c.Src:
		return fmt.Errorf("planned a copy from a%d to a%d", c.Src, c.Dst)
	case c.Version != w.m.Version(c.Block):
		return errors.New("planned a copy of an old version")
	case w.m.Valid(c.Block, c.Dst):
		return errors.New("valid before its copy arrived")
	case c.Src != NoAgent && !w.m.Valid(c.Block, c.Src):
		return errors.New("planned a copy from a stale source")
	}
	f := flightModel{Copy: c}
	if c.Src != NoAgent {
		f.val = x.bytes[c.Src]
	}
	if !w.m.replacesWhole(c.Dst) {
		x.change(c.Dst, torn)
	}
	x.flights = append(x.flights, f)
	return nil
}

// change stores into a's bytes: whoever reads them now reads both.
func (x *blockModel) change(a Agent, to content) {
	x.bytes[a] = to
	for i := range x.flights {
		if x.flights[i].Src == a {
			x.flights[i].val = torn
		}
	}
}

// free gives a's storage to others: copies under way into it go there too.
func (x *blockModel) free(a Agent) error {
	x.change(a, torn)
	for i := range x.flights {
		if x.flights[i].Dst == a {
			x.flights[i].val = torn
		}
	}
	x.writing[a].disturbed = true
	if x.pins[a] > 0 {
		return errors.New("a pinned copy was taken away")
	}
	return nil
}

// complete reports flight n, and lets its bytes arrive.
func (w *world) complete(b, n int, ok bool) error {
	x := &w.blocks[b]
	f := x.flights[n]
	x.flights = slices.Delete(x.flights, n, n+1)
	switch {
	case ok:
		x.change(f.Dst, f.val)
	case !w.m.replacesWhole(f.Dst):
		x.change(f.Dst, torn)
	}
	x.writing[f.Dst].disturbed = true
	counts := w.m.Counts(f.Copy)
	valid, err := w.m.Complete(f.Copy, ok)
	switch {
	case valid && !counts:
		return errors.New("valid by a copy that does not count")
	case err != nil:
		return fmt.Errorf("completing a copy: %w", err)
	case valid != w.m.Valid(b, f.Dst):
		return errors.New("Complete and Valid disagree")
	case valid && !ok:
		return errors.New("valid by a copy that failed")
	case valid && f.Version != w.m.Version(b):
		return errors.New("valid by a copy of an old version")
	}
	return nil
}

// replay reports a copy into a once more that was completed long ago.
func (w *world) replay(b int, a Agent) error {
	old := w.m.ticket
	for old > 0 && slices.ContainsFunc(w.blocks[b].flights, func(f flightModel) bool { return f.Ticket == old }) {
		old--
	}
	if old == 0 {
		return errRefused
	}
	var before stateKey
	w.key(b, &before)
	for src := range len(w.m.agents) {
		c := Copy{Block: b, Src: Agent(src), Dst: a, Version: w.m.Version(b), Ticket: old}
		if valid, err := w.m.Complete(c, true); valid || err != nil {
			return fmt.Errorf("a late completion was answered %v, %v", valid, err)
		}
	}
	var after stateKey
	if w.key(b, &after); before != after {
		return errors.New("a late completion changed something")
	}
	return errRefused
}

// lose models the death of an agent.
func (w *world) lose(a Agent) error {
	newly := 0
	for b := range w.blocks {
		if w.m.lost(b) {
			newly--
		}
	}
	lost := w.m.Lose(a)
	for b := range w.blocks {
		x := &w.blocks[b]
		_ = x.free(a) // death does not ask for pins
		x.writing[a] = writing{}
		if w.m.lost(b) {
			newly++
		}
	}
	if lost != newly {
		return fmt.Errorf("Lose says %d blocks are lost, %d are", lost, newly)
	}
	return nil
}

// committed models a's write: what its bytes should be, and what they are.
func (w *world) committed(b int, a Agent, c Commit, before *BlockInfo) error {
	x := &w.blocks[b]
	t := x.writing[a]
	if !t.active {
		return errors.New("a write was committed that nobody began")
	}
	if x.writes == maxWrites {
		return errors.New("the model has no bit for another write")
	}
	bit := content(1) << x.writes
	x.writes++
	want, is := x.versions[before.Version]|bit, t.base|bit
	if t.whole {
		want, is = bit, bit
	}
	if t.disturbed {
		is = torn
	}
	x.writing[a] = writing{}
	x.versions = append(x.versions, want)
	x.change(a, is)
	return w.pushed(b, a, c, before)
}

// pushed checks the answer to a commit against the policy.
func (w *world) pushed(b int, a Agent, c Commit, before *BlockInfo) error {
	if c.Version != w.m.Version(b) {
		return fmt.Errorf("committed version %d, the block is at %d", c.Version, w.m.Version(b))
	}
	var least AgentMask
	if w.m.policy != WriteBack && a != w.m.home {
		least = w.m.home.bit()
	}
	if w.m.policy == WriteAll {
		for o, r := range before.Replicas {
			if r.Held && Agent(o) != a {
				least |= 1 << o
			}
		}
	}
	most := least
	if w.m.policy == WriteAll {
		for _, f := range w.blocks[b].flights {
			most |= f.Dst.bit()
		}
	}
	if c.Push&least != least || c.Push&^most != 0 || c.Push.Has(a) {
		return fmt.Errorf("%v pushes to %#x, want at least %#x and at most %#x", w.m.policy, c.Push, least, most)
	}
	return nil
}
