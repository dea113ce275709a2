// SPDX-License-Identifier: Apache-2.0

package residency_test

import (
	"container/list"

	"github.com/memspan/memspan/residency"
)

// A policy keeps the keys that are resident in a memory of fixed capacity.
type policy interface {
	use(k int)  // k is resident
	miss(k int) // k comes in; there is room
	evict() int // room is needed
}

// queue is the policy of this package. Its owner looks at some candidates at a
// time and takes any of them, as one does who prefers clean ones.
type queue struct {
	q      *residency.Queue[int]
	window int
	turn   int
}

func newQueue(int) policy    { return &queue{q: residency.New[int](), window: 1} }
func newQueueOf8(int) policy { return &queue{q: residency.New[int](), window: 8} }
func (p *queue) use(k int)   { p.q.Use(k) }
func (p *queue) miss(k int)  { p.q.Use(k) }
func (p *queue) evict() int {
	candidates := p.q.Victims(p.window)
	p.turn += 5
	k := candidates[p.turn%len(candidates)]
	p.q.Remove(k)
	return k
}

// A row is a list of keys, the newest in front, and their places in it.
type row struct {
	list *list.List
	at   map[int]*list.Element
}

type element struct{ key, uses int }

func newRow() row { return row{list.New(), make(map[int]*list.Element)} }

func (r row) push(k int)     { r.at[k] = r.list.PushFront(&element{key: k}) }
func (r row) has(k int) bool { return r.at[k] != nil }
func (r row) touch(k int)    { r.list.MoveToFront(r.at[k]) }
func (r row) len() int       { return r.list.Len() }
func (r row) of(k int) *element {
	return r.at[k].Value.(*element)
}
func (r row) oldest() *element { return r.list.Back().Value.(*element) }
func (r row) remove(k int) int {
	r.list.Remove(r.at[k])
	delete(r.at, k)
	return k
}

type lru struct{ row }

func newLRU(int) policy  { return lru{newRow()} }
func (p lru) use(k int)  { p.touch(k) }
func (p lru) miss(k int) { p.push(k) }
func (p lru) evict() int { return p.remove(p.oldest().key) }

type clock struct{ row }

func newClock(int) policy  { return clock{newRow()} }
func (p clock) use(k int)  { p.of(k).uses = 1 }
func (p clock) miss(k int) { p.push(k) }
func (p clock) evict() int {
	for ; p.oldest().uses > 0; p.touch(p.oldest().key) {
		p.oldest().uses = 0
	}
	return p.remove(p.oldest().key)
}

type sieve struct {
	clock
	hand *list.Element
}

func newSieve(int) policy { return &sieve{clock: clock{newRow()}} }
func (p *sieve) evict() int {
	for {
		if p.hand == nil {
			p.hand = p.list.Back()
		}
		e := p.hand.Value.(*element)
		p.hand = p.hand.Prev()
		if e.uses == 0 {
			return p.remove(e.key)
		}
		e.uses = 0
	}
}

type s3fifo struct {
	capacity          int
	small, main, gone row
}

func newS3FIFO(capacity int) policy { return &s3fifo{capacity, newRow(), newRow(), newRow()} }
func (p *s3fifo) use(k int) {
	r := p.main
	if p.small.has(k) {
		r = p.small
	}
	r.of(k).uses = min(r.of(k).uses+1, 3)
}
func (p *s3fifo) miss(k int) {
	if p.gone.has(k) {
		p.gone.remove(k)
		p.main.push(k)
	} else {
		p.small.push(k)
	}
}
func (p *s3fifo) evict() int {
	for {
		if p.small.len() > 0 && (p.small.len() >= p.capacity/10 || p.main.len() == 0) {
			e := p.small.oldest()
			p.small.remove(e.key)
			if e.uses > 1 {
				p.main.push(e.key)
				continue
			}
			p.gone.push(e.key)
			if p.gone.len() > p.capacity {
				p.gone.remove(p.gone.oldest().key)
			}
			return e.key
		}
		e := p.main.oldest()
		if e.uses == 0 {
			return p.main.remove(e.key)
		}
		e.uses--
		p.main.touch(e.key)
	}
}

// twoQ is the full version: a quarter comes in, half as many are remembered.
type twoQ struct {
	capacity       int
	in, main, gone row
}

func newTwoQ(capacity int) policy { return &twoQ{capacity, newRow(), newRow(), newRow()} }
func (p *twoQ) use(k int) {
	if p.main.has(k) {
		p.main.touch(k)
	}
}
func (p *twoQ) miss(k int) {
	if p.gone.has(k) {
		p.gone.remove(k)
		p.main.push(k)
	} else {
		p.in.push(k)
	}
}
func (p *twoQ) evict() int {
	if p.in.len() <= p.capacity/4 && p.main.len() > 0 {
		return p.main.remove(p.main.oldest().key)
	}
	k := p.in.remove(p.in.oldest().key)
	p.gone.push(k)
	if p.gone.len() > p.capacity/2 {
		p.gone.remove(p.gone.oldest().key)
	}
	return k
}

// policies are compared by BenchmarkMiss.
var policies = []struct {
	name string
	make func(capacity int) policy
}{
	{"LRU", newLRU}, {"CLOCK", newClock}, {"SIEVE", newSieve}, {"S3-FIFO", newS3FIFO}, {"2Q", newTwoQ},
	{"Queue", newQueue}, {"Queue-of-8", newQueueOf8},
}
