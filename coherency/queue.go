// SPDX-License-Identifier: Apache-2.0

package coherency

import "slices"

// Sync is a wish that Target gets a block's version.
type Sync struct {
	Block   int
	From    Agent // who holds Version
	Target  Agent
	Version uint64
}

// A SyncQueue collects the copies that the agents of one span are due, so that
// they can be carried out in batches (seeds/002, "SyncProtocol"; facts C3 row
// 20). It does not count barriers, which are not one span's: package span does.
//
// Of each block it remembers the newest version it was told of: all the
// block's waiting copies are of that version, one for each target, in the
// order in which the targets were first queued. Who holds that version is no
// target.
//
// The zero SyncQueue is empty. It is not safe for concurrent use.
type SyncQueue struct {
	order  []int // blocks, as first queued
	blocks map[int]*blockSyncs
}

// blockSyncs are a block's waiting copies.
type blockSyncs struct {
	version uint64
	from    Agent
	targets []Agent
}

// Queue adds s, or makes it and what waits for the same block agree:
//
//   - a copy to the same target takes the place of the one that waits;
//   - all become copies of the newer version, from its holder;
//   - copies into that holder are cancelled.
//
// A copy that Drain gave out and that failed is queued again in the same way:
// if something newer was queued since, that prevails. Queue reports whether a
// copy to s.Target waits now. A copy of an agent to itself never does, nor one
// from or to an agent that no Manager has.
func (q *SyncQueue) Queue(s Sync) bool {
	if s.From == s.Target || s.From >= MaxAgents || s.Target >= MaxAgents {
		return false
	}
	e := q.blocks[s.Block]
	if e == nil {
		e = &blockSyncs{version: s.Version, from: s.From}
		if q.blocks == nil {
			q.blocks = make(map[int]*blockSyncs)
		}
		q.blocks[s.Block] = e
		q.order = append(q.order, s.Block)
	}
	if s.Version >= e.version {
		e.version, e.from = s.Version, s.From
	}
	if !slices.Contains(e.targets, s.Target) {
		e.targets = append(e.targets, s.Target)
	}
	e.targets = slices.DeleteFunc(e.targets, func(t Agent) bool { return t == e.from })
	return s.Target != e.from
}

// Len returns how many copies wait.
func (q *SyncQueue) Len() int {
	n := 0
	for _, e := range q.blocks {
		n += len(e.targets)
	}
	return n
}

// Drain returns what waits, block by block as they were first queued, and
// empties the queue. The caller queues again what fails.
func (q *SyncQueue) Drain() []Sync {
	var out []Sync
	for _, b := range q.order {
		e := q.blocks[b]
		for _, t := range e.targets {
			out = append(out, Sync{Block: b, From: e.from, Target: t, Version: e.version})
		}
	}
	q.order = q.order[:0]
	clear(q.blocks)
	return out
}
