// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/memspan/memspan/vulkan/handover"
	"github.com/memspan/memspan/vulkan/stream"
)

// The test binary is also the worker of TestWorker and TestMutatedStreams.
func TestMain(m *testing.M) {
	if os.Getenv(handover.WorkerVariable) == handover.WorkerValue {
		if err := Worker(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Getenv(mutatedVariable) != "" {
		os.Exit(serveMutated())
	}
	goleak.VerifyTestMain(m)
}

// A seen keeps what a queue told.
type seen struct {
	mu      sync.Mutex
	signals []stream.Signal
	lasts   int
	came    chan struct{} // has room for all that a test expects
	err     chan error
}

func startQueue(t testing.TB, n *native, deadline time.Duration) (*queue, *seen) {
	s := &seen{came: make(chan struct{}, 1000), err: make(chan error, 1)}
	q := &queue{device: n.device, real: n.queue, depth: 100, deadline: deadline,
		observe: func(_ *submission, signal stream.Signal, last bool) {
			s.mu.Lock()
			defer s.mu.Unlock()
			if signal.Kind != 0 {
				s.signals = append(s.signals, signal)
			}
			if last {
				s.lasts++
			}
			s.came <- struct{}{}
		},
		lost: func(err error) { s.err <- err },
	}
	q.start()
	t.Cleanup(q.close)
	return q, s
}

func signalOf(kind stream.SignalKind, id, value uint64) stream.Signal {
	return stream.Signal{Kind: kind, ID: id, Value: value}
}

// Fences are observed in the order of submission, whether polled or waited for,
// and the renderer's own ones are used again.
func TestQueueFences(t *testing.T) {
	n := openNative(t)
	q, s := startQueue(t, n, 0)
	c := new(caller)
	for i := range uint64(20) {
		fence, err := n.device.takeFence(c)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.submitFence(n.device, n.queue, fence); err != nil {
			t.Fatal(err)
		}
		sub := &submission{fence: fence, own: true, signal: signalOf(stream.SignalFence, 7, i)}
		spin := time.Duration(0)
		if i%2 == 0 {
			spin = time.Minute // ends with the fence
		}
		if err := q.submitted(sub, spin); err != nil {
			t.Fatal(err)
		}
		<-sub.finished
	}
	if len(s.signals) != 20 || s.lasts != 20 || !slices.IsSortedFunc(s.signals, func(a, b stream.Signal) int { return int(a.Value) - int(b.Value) }) {
		t.Errorf("%d submissions ended with %v", s.lasts, s.signals)
	}
	if len(n.device.spare) == 0 || len(n.device.spare) > 2 {
		t.Errorf("%d fences for one submission at a time", len(n.device.spare))
	}
}

// A value that the first batch of a submission signals is told before the
// second batch, which waits for the host, is done.
func TestQueueTimeline(t *testing.T) {
	n := openNative(t)
	q, s := startQueue(t, n, 0)
	first, host, second := n.timeline(), n.timeline(), n.timeline()
	n.submit(0, 0, first, 5, 0)
	n.submit(host, 1, second, 9, 0)
	sub := &submission{points: []point{
		{first, 5, signalOf(stream.SignalSemaphore, 1, 5)},
		{second, 9, signalOf(stream.SignalSemaphore, 2, 9)},
	}}
	if err := q.submitted(sub, time.Minute); err != nil {
		t.Fatal(err)
	}
	<-s.came
	select {
	case <-sub.finished:
		t.Fatal("it ended before the host's signal")
	default:
	}
	if q.last() != sub {
		t.Error("it is not the one that is waited for")
	}
	n.signal(host, 1)
	<-sub.finished
	if want := []stream.Signal{signalOf(stream.SignalSemaphore, 1, 5), signalOf(stream.SignalSemaphore, 2, 9)}; !slices.Equal(s.signals, want) || s.lasts != 1 {
		t.Errorf("%v, %d ends", s.signals, s.lasts)
	}
	if v, r := q.caller.semaphoreValue(n.device, second); v != 9 || r != 0 {
		t.Errorf("the semaphore's value is %d, %v", v, r)
	}
}

// A submission that never ends costs the device, not the queue's goroutine.
func TestQueueDeadline(t *testing.T) {
	n := openNative(t)
	q, s := startQueue(t, n, time.Millisecond)
	host, never := n.timeline(), n.timeline()
	n.submit(host, 1, never, 1, 0)
	sub := &submission{points: []point{{never, 1, signalOf(stream.SignalSemaphore, 1, 1)}}}
	if err := q.submitted(sub, 0); err != nil {
		t.Fatal(err)
	}
	if err := <-s.err; !errors.Is(err, errDeadline) {
		t.Errorf("%v", err)
	}
	<-sub.finished
	later := &submission{points: []point{{never, 1, signalOf(stream.SignalSemaphore, 1, 1)}}}
	if err := q.submitted(later, 0); err != nil {
		t.Error(err)
	}
	<-later.finished
	n.signal(host, 1) // the device must become idle
}

// The time that a submission waits for the application, or for one of another
// queue that does, is not its own.
func TestDeadlineWaitsForTheHost(t *testing.T) {
	n := openNative(t)
	q, _ := startQueue(t, n, time.Millisecond)
	host := n.timeline()
	other := &submission{finished: make(chan struct{})}
	past := func() time.Time { return time.Now().Add(-time.Hour) }
	g := &gate{points: []point{{semaphore: host, value: 3}}, after: []*submission{other}}
	c := &clock{past(), g}
	if c.over(q) {
		t.Error("it waits for the host, and its time is over")
	}
	n.signal(host, 3)
	if c.begin = past(); c.over(q) {
		t.Error("it waits for another, and its time is over")
	}
	close(other.finished)
	if c.begin = past(); !c.over(q) {
		t.Error("its time is not over")
	}
}

// Closing ends the wait, and everybody who waits for submissions.
func TestQueueClose(t *testing.T) {
	n := openNative(t)
	q, s := startQueue(t, n, 0)
	q.depth = 3
	host, never := n.timeline(), n.timeline()
	var subs []*submission
	for i := range uint64(3) {
		n.submit(host, 1, never, 1+i, 0)
		sub := &submission{points: []point{{never, 1 + i, stream.Signal{}}}}
		if err := q.submitted(sub, 0); err != nil {
			t.Fatal(err)
		}
		subs = append(subs, sub)
	}
	if err := q.submitted(&submission{points: subs[0].points}, 0); !errors.Is(err, errDepth) {
		t.Errorf("one too many: %v", err)
	}
	q.close()
	for _, sub := range subs {
		<-sub.finished
	}
	if len(s.signals) != 0 || s.lasts != 0 {
		t.Errorf("%v", s.signals)
	}
	n.signal(host, 1)
}

// BenchmarkSubmit is an empty submission, from its call to its observation.
func BenchmarkSubmit(b *testing.B) {
	n := openNative(b)
	for name, spin := range map[string]time.Duration{"poll": 50 * time.Microsecond, "wait": 0} {
		b.Run(name, func(b *testing.B) {
			q, s := startQueue(b, n, 0)
			c := new(caller)
			for b.Loop() {
				fence, err := n.device.takeFence(c)
				if err != nil {
					b.Fatal(err)
				}
				if err := c.submitFence(n.device, n.queue, fence); err != nil {
					b.Fatal(err)
				}
				if err := q.submitted(&submission{fence: fence, own: true}, spin); err != nil {
					b.Fatal(err)
				}
				<-s.came
			}
		})
	}
}
