// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/memspan/memspan/internal/vk"
	"github.com/memspan/memspan/vulkan/stream"
)

var (
	// errDeadline is a submission that took longer than it may.
	errDeadline = errors.New("render: a submission did not finish in time")
	// errDepth is one submission too many under way.
	errDepth = errors.New("render: too many submissions under way")
)

const (
	notReady vk.Result = 1
	// waitSlice is how long a queue's goroutine stays in the driver at most
	// before it looks whether it should end.
	waitSlice = 100 * time.Millisecond
)

// A submission is what was given to a queue in one call and how its end shows.
type submission struct {
	device *device
	writes []write   // what it may write of memory that can be mapped
	events []*object // that it sets or resets
	joins  bool      // it may have waited for other queues
	// points are the timeline semaphores that it signals, in order.
	points []point
	// fence is signalled at its end; 0 if the last point is its end.
	fence uint64
	own   bool // fence is the renderer's
	idle  bool // it is the renderer's whole, for a wait for idle

	signal stream.Signal // of the application's fence, if it has one
	facts  []*facts      // of its command buffers
	gate   gate          // what it waits for; the queue's goroutine's
	// finished is closed when all of it has been observed, or never will be.
	finished chan struct{}
	failed   bool // it will not end; to be read when finished is closed
}

// A point is a value that a timeline semaphore reaches within a submission.
// It is waited for by itself: the application may go on, and signal what the
// rest of the submission waits for, as soon as the value is there.
type point struct {
	semaphore uint64
	value     uint64
	signal    stream.Signal
}

// A queue is a VkQueue and the goroutine that waits for what is submitted to
// it. Submissions end in order: a fence is signalled after all earlier ones.
type queue struct {
	device   *device
	real     uintptr
	depth    int           // submissions under way at most
	deadline time.Duration // of the oldest submission; 0: none
	// observe is called, by one goroutine at a time, when a submission has come
	// to a point, or to its end: then last is true.
	observe func(s *submission, signal stream.Signal, last bool)
	// events is called every now and then while a submission that sets events is
	// under way.
	events func(s *submission)
	// lost is called with the first error.
	lost func(error)

	mu      sync.Mutex
	cond    *sync.Cond    // for the goroutine, on mu
	waiting []*submission // the first one is being waited for
	closing bool
	failed  bool
	why     error // it failed

	joins bool // submissions to it waited for semaphores; the stream's goroutine's

	caller *caller // the goroutine's; the stream's while nothing waits
	ended  chan struct{}
}

// start starts the queue's goroutine, which close ends.
func (q *queue) start() {
	q.cond = sync.NewCond(&q.mu)
	q.caller, q.ended = new(caller), make(chan struct{})
	go func() {
		defer close(q.ended)
		q.run()
	}()
}

// submitted takes over a submission that the driver has taken. For up to spin,
// if nothing else is under way, it looks whether the submission has ended
// already, which costs less than waking a goroutine. Only the stream's
// goroutine calls it.
func (q *queue) submitted(s *submission, spin time.Duration) error {
	s.finished = make(chan struct{})
	q.mu.Lock()
	if q.failed || q.closing {
		q.mu.Unlock()
		s.failed = true
		close(s.finished)
		return nil // the device is lost, which the client knows
	}
	depth := q.depth
	if s.idle {
		depth += maxAside // those who wait for it are bounded otherwise
	}
	if len(q.waiting) >= depth {
		q.mu.Unlock()
		s.failed = true
		close(s.finished)
		return fmt.Errorf("%w: %d", errDepth, q.depth)
	}
	alone := len(q.waiting) == 0
	if alone && spin > 0 && len(s.points) == 0 {
		q.mu.Unlock()
		if q.poll(s, spin) {
			q.finish(s)
			return nil
		}
		q.mu.Lock()
	}
	q.waiting = append(q.waiting, s)
	q.mu.Unlock()
	if alone {
		q.cond.Signal()
	}
	return nil
}

// poll reports whether a submission's fence is signalled within spin.
func (q *queue) poll(s *submission, spin time.Duration) bool {
	for begin := time.Now(); ; {
		if q.caller.fenceStatus(q.device, s.fence) != notReady {
			return true // or failed: finish finds out
		}
		if time.Since(begin) > spin {
			return false
		}
	}
}

// last returns the youngest submission that has not been observed whole, or
// nil. When its finished is closed, all before it have been observed too.
func (q *queue) last() *submission {
	q.mu.Lock()
	defer q.mu.Unlock()
	if n := len(q.waiting); n > 0 {
		return q.waiting[n-1]
	}
	return nil
}

// underWay returns how many submissions have not been observed whole.
func (q *queue) underWay() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.waiting)
}

// close ends the goroutine and waits for it. What has not ended by then is not
// observed any more.
func (q *queue) close() {
	q.mu.Lock()
	q.closing = true
	q.mu.Unlock()
	q.cond.Signal()
	<-q.ended
}

func (q *queue) isClosing() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.closing
}

// run waits for submissions, one after the other.
func (q *queue) run() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		for len(q.waiting) == 0 && !q.closing {
			q.cond.Wait()
		}
		if q.closing || q.failed {
			for _, s := range q.waiting {
				s.failed = true
				close(s.finished)
			}
			q.waiting = nil
			if q.closing {
				return
			}
			continue
		}
		s := q.waiting[0]
		q.mu.Unlock()
		q.finish(s)
		q.mu.Lock()
		q.waiting[0] = nil
		q.waiting = q.waiting[1:]
	}
}

// finish waits for a submission and has it observed.
func (q *queue) finish(s *submission) {
	s.failed = true
	defer close(s.finished)
	begin := &clock{time.Now(), &s.gate}
	for i, p := range s.points {
		if !q.await(begin, "vkWaitSemaphores", func() vk.Result {
			return q.caller.waitSemaphore(q.device, p.semaphore, p.value, q.slice(s))
		}) {
			return
		}
		q.observe(s, p.signal, s.fence == 0 && i == len(s.points)-1)
	}
	if s.fence == 0 {
		s.failed = false
		return
	}
	if !q.await(begin, "vkWaitForFences", func() vk.Result {
		return q.caller.waitFence(q.device, s.fence, q.slice(s))
	}) {
		return
	}
	q.observe(s, s.signal, true)
	s.failed = false
	if s.own {
		if err := q.device.giveFence(q.caller, s.fence); err != nil {
			q.fail(err)
		}
	}
}

// await calls wait until it does not time out, the deadline is over or the
// queue is closing, and reports whether what was waited for is there.
func (q *queue) await(begin *clock, call string, wait func() vk.Result) bool {
	for {
		r := wait()
		if r == vk.Success {
			return true
		}
		if r != vk.Timeout {
			q.fail(&vk.Error{Call: call, Result: r})
			return false
		}
		if begin.over(q) {
			q.fail(fmt.Errorf("%w: %v", errDeadline, q.deadline))
			return false
		}
		if q.isClosing() {
			return false
		}
	}
}

// fail gives up the queue.
func (q *queue) fail(err error) {
	q.mu.Lock()
	first := !q.failed
	if q.failed = true; first {
		q.why = err
	}
	q.mu.Unlock()
	if first {
		q.lost(err)
	}
}
