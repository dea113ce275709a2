// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package vram

import (
	"sync"
	"sync/atomic"

	"github.com/memspan/memspan/internal/vk"
)

const (
	chunkSize  = 256 << 10 // of a staging chunk, in bytes
	chunkCount = 32
	batchCount = 3  // lists of commands: one recorded while others are carried out
	batchSize  = 64 // jobs in a list, at most
	// deviceLimit is how long the device may take for one list, which moves a
	// block per job at most and runs a kernel on one at its end.
	deviceLimit = stallLimit / 2
)

// A ring is the staging memory, in chunks.
type ring struct {
	memory *memory
	free   chan *chunk
}

type chunk struct{ off int64 }

func newRing(e *engine) (*ring, error) {
	m, err := e.allocate(e.choice.staging, chunkCount*chunkSize)
	if err != nil {
		return nil, err
	}
	r := &ring{memory: m, free: make(chan *chunk, chunkCount)}
	for i := range int64(chunkCount) {
		r.free <- &chunk{off: i * chunkSize}
	}
	return r, nil
}

// get waits for a chunk. Who has one must not wait for another.
func (r *ring) get() *chunk  { return <-r.free }
func (r *ring) put(c *chunk) { r.free <- c }

// A queue carries out jobs on the device. Jobs that come together share one
// submission; one goroutine records and submits, another waits.
type queue struct {
	jobs    chan *job
	free    chan *batch
	pending chan *batch
	done    sync.WaitGroup
	submits atomic.Int64
}

// A job records commands; done receives how they ended.
type job struct {
	record func(*vk.Commands)
	long   bool // it is the last in its list
	done   chan error
}

type batch struct {
	cmds *vk.Commands
	jobs []*job
}

func newQueue(dev *vk.Device) (*queue, error) {
	q := &queue{
		jobs: make(chan *job, batchSize), free: make(chan *batch, batchCount), pending: make(chan *batch, batchCount),
	}
	for range batchCount {
		cmds, err := dev.NewCommands()
		if err != nil {
			for len(q.free) > 0 {
				(<-q.free).cmds.Close()
			}
			return nil, err
		}
		q.free <- &batch{cmds: cmds}
	}
	q.done.Go(q.submit)
	q.done.Go(q.wait)
	return q, nil
}

// do has the device carry out what record records, and waits until it has.
func (q *queue) do(record func(*vk.Commands)) error {
	return q.await(&job{record: record, done: make(chan error, 1)})
}

// doLong is do for what may take as long as deviceLimit by itself.
func (q *queue) doLong(record func(*vk.Commands)) error {
	return q.await(&job{record: record, long: true, done: make(chan error, 1)})
}

func (q *queue) await(j *job) error {
	q.jobs <- j
	return <-j.done
}

// close ends the queue. No call may be under way.
func (q *queue) close() {
	close(q.jobs)
	q.done.Wait()
	for range batchCount {
		(<-q.free).cmds.Close()
	}
}

func (q *queue) submit() {
	defer close(q.pending)
	for j := range q.jobs {
		b := <-q.free
		b.jobs = append(b.jobs[:0], j)
		err := b.cmds.Begin()
		if err == nil {
			j.record(b.cmds)
			for len(b.jobs) < batchSize && !j.long {
				more, ok := q.next()
				if !ok {
					break
				}
				j = more
				b.jobs = append(b.jobs, j)
				j.record(b.cmds)
			}
			err = b.cmds.Submit()
		}
		if err != nil {
			b.finish(err)
			q.free <- b
			continue
		}
		q.submits.Add(1)
		q.pending <- b
	}
}

// next returns a job that has come already.
func (q *queue) next() (*job, bool) {
	select {
	case j, ok := <-q.jobs:
		return j, ok
	default:
		return nil, false
	}
}

func (q *queue) wait() {
	for b := range q.pending {
		b.finish(b.cmds.Wait(deviceLimit))
		q.free <- b
	}
}

func (b *batch) finish(err error) {
	for _, j := range b.jobs {
		j.done <- err
	}
}
