// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/memspan/memspan/vulkan/registry"
	"github.com/memspan/memspan/vulkan/stream"
)

// both runs a test over a unix socket, where waiting threads read themselves,
// and over a pipe, where a goroutine reads for them.
func both(t *testing.T, f func(t *testing.T, pipes bool)) {
	for _, pipes := range []bool{false, true} {
		t.Run(fmt.Sprintf("pipe=%v", pipes), func(t *testing.T) { f(t, pipes) })
	}
}

// signalAll answers every submission by its fence's signal: submissions counts
// those of each fence.
func signalAll() func(*peer, stream.Message) bool {
	submissions := make(map[uint64]uint64) // the peer's goroutine's
	return func(p *peer, m stream.Message) bool {
		if registry.Index(m.Op) == registry.VkQueueSubmit {
			fence := idIn(m.Body, len(m.Body)-8)
			submissions[fence]++
			p.signal(stream.Signal{Kind: stream.SignalFence, ID: fence, Value: submissions[fence]})
		}
		return false
	}
}

func (s *scene) submit(fence uint64) {
	s.t.Helper()
	s.must(registry.VkQueueSubmit, s.queue, 0, 0, fence)
}

func TestFences(t *testing.T) {
	both(t, func(t *testing.T, pipes bool) {
		s := newScene(t, pipes, nil)
		fence := s.fence(s.device)
		made := s.make(registry.VkCreateFence, s.device, s.words(sFence, 0, 1), 0)
		s.must(registry.VkGetFenceStatus, s.device, made)
		s.waitFor(s.device, made)
		one := s.words(fence)
		if r := s.call(registry.VkWaitForFences, s.device, 1, one, 1, 0); r != timedOut {
			t.Errorf("a wait of no time: %d", r)
		}
		if r := s.call(registry.VkWaitForFences, s.device, 1, one, 1, 1e6); r != timedOut {
			t.Errorf("a wait of 1 ms: %d", r)
		}
		pair := s.words(fence, made)
		s.must(registry.VkWaitForFences, s.device, 2, pair, 0, forEver)
		if r := s.call(registry.VkWaitForFences, s.device, 2, pair, 1, 1e6); r != timedOut {
			t.Errorf("a wait for both: %d", r)
		}
		s.submit(fence)
		id := s.d.objects.get(fence).id
		s.p.waitFor(registry.VkQueueSubmit, 1)
		go s.p.signal(stream.Signal{Kind: stream.SignalFence, ID: id, Value: 1})
		s.must(registry.VkWaitForFences, s.device, 2, pair, 1, forEver)
		s.must(registry.VkResetFences, s.device, 2, pair)
		if r := s.call(registry.VkGetFenceStatus, s.device, made); r != notReady {
			t.Errorf("after its reset the fence is %d", r)
		}
		// A signal that was under way when the fence was reset is not that of
		// the next submission.
		s.submit(fence)
		s.p.signal(stream.Signal{Kind: stream.SignalFence, ID: id, Value: 1})
		if r := s.call(registry.VkWaitForFences, s.device, 1, one, 1, 20e6); r != timedOut {
			t.Errorf("an old signal counted: %d", r)
		}
		s.p.signal(stream.Signal{Kind: stream.SignalFence, ID: id, Value: 2})
		for r := s.call(registry.VkGetFenceStatus, s.device, fence); r != success; r = s.call(registry.VkGetFenceStatus, s.device, fence) {
			if r != notReady {
				t.Fatalf("a poll: %d", r)
			}
			runtime.Gosched()
		}
	})
}

// However many threads wait, each is woken by its own fence.
func TestManyWait(t *testing.T) {
	both(t, func(t *testing.T, pipes bool) {
		s := newScene(t, pipes, signalAll())
		var queue sync.Mutex
		var wg sync.WaitGroup
		for w := range 4 {
			wg.Go(func() {
				fence := s.fence(s.device)
				list := s.words(fence)
				for i := range 300 {
					queue.Lock()
					r := s.call(registry.VkQueueSubmit, s.queue, 0, 0, fence)
					queue.Unlock()
					switch {
					case r != success:
						t.Errorf("submit: %d", r)
						return
					case (w+i)%3 == 0:
						for r = notReady; r == notReady; runtime.Gosched() {
							r = s.call(registry.VkGetFenceStatus, s.device, fence)
						}
					default:
						r = s.call(registry.VkWaitForFences, s.device, 1, list, 1, 20e9)
					}
					if r != success {
						t.Errorf("thread %d, round %d: %d", w, i, r)
						return
					}
					if r := s.call(registry.VkResetFences, s.device, 1, list); r != success {
						t.Errorf("reset: %d", r)
						return
					}
					if i%10 == 0 {
						if r := s.call(registry.VkDeviceWaitIdle, s.device); r != success {
							t.Errorf("idle: %d", r)
							return
						}
					}
				}
			})
		}
		wg.Wait()
	})
}

func TestTimelineSemaphores(t *testing.T) {
	both(t, func(t *testing.T, pipes bool) {
		s := newScene(t, pipes, nil)
		kind := s.words(1000207002, 0, 1, 7)
		a := s.make(registry.VkCreateSemaphore, s.device, s.words(sSemaphore, kind, 0), 0)
		b := s.make(registry.VkCreateSemaphore, s.device, s.words(sSemaphore, kind, 0), 0)
		value := s.words(0)
		counter := func(semaphore uint64) uint64 {
			s.must(registry.VkGetSemaphoreCounterValue, s.device, semaphore, value)
			return load64(value)
		}
		if v := counter(a); v != 7 {
			t.Errorf("at first %d", v)
		}
		wait := func(anyOne bool, av, bv, timeout uint64) int32 {
			var flags uint32
			if anyOne {
				flags = 1
			}
			info := s.words(1000207004, 0, two(flags, 2), s.words(a, b), s.words(av, bv))
			return s.call(registry.VkWaitSemaphores, s.device, info, timeout)
		}
		if r := wait(false, 7, 6, 0); r != success {
			t.Errorf("both there: %d", r)
		}
		if r := wait(false, 8, 6, 1e6); r != timedOut {
			t.Errorf("one is not: %d", r)
		}
		if r := wait(true, 8, 7, 0); r != success {
			t.Errorf("any: %d", r)
		}
		s.must(registry.VkSignalSemaphore, s.device, s.words(1000207005, 0, a, 9))
		if v := counter(a); v != 9 {
			t.Errorf("after the host's signal %d", v)
		}
		s.p.waitFor(registry.VkSignalSemaphore, 1) // at once
		go s.p.signal(
			stream.Signal{Kind: stream.SignalSemaphore, ID: s.d.objects.get(a).id, Value: 8}, // late
			stream.Signal{Kind: stream.SignalSemaphore, ID: s.d.objects.get(b).id, Value: 100})
		if r := wait(false, 9, 100, forEver); r != success {
			t.Errorf("pushed: %d", r)
		}
		if v := counter(a); v != 9 {
			t.Errorf("a counter went back to %d", v)
		}
	})
}

func TestEvents(t *testing.T) {
	s := newScene(t, false, nil)
	event := s.make(registry.VkCreateEvent, s.device, s.words(sEvent, 0, 0), 0)
	status := func() int32 { return s.call(registry.VkGetEventStatus, s.device, event) }
	if r := status(); r != eventReset {
		t.Errorf("at first %d", r)
	}
	s.must(registry.VkSetEvent, s.device, event)
	if r := status(); r != eventSet {
		t.Errorf("set: %d", r)
	}
	s.must(registry.VkResetEvent, s.device, event)
	if r := status(); r != eventReset {
		t.Errorf("reset: %d", r)
	}
	// What the device did before it learned of the reset counts no more: the
	// signal that shows that this one has come is behind it.
	id, fence := s.d.objects.get(event).id, s.fence(s.device)
	s.submit(fence)
	s.p.signal(stream.Signal{Kind: stream.SignalEvent, ID: id, Value: 1<<1 | 1},
		stream.Signal{Kind: stream.SignalFence, ID: s.d.objects.get(fence).id, Value: 1})
	s.waitFor(s.device, fence)
	if r := status(); r != eventReset {
		t.Errorf("after a signal from before the reset: %d", r)
	}
	s.p.signal(stream.Signal{Kind: stream.SignalEvent, ID: id, Value: 2<<1 | 1})
	for status() != eventSet {
		runtime.Gosched()
	}
	s.p.signal(stream.Signal{Kind: stream.SignalEvent, ID: id, Value: 2 << 1})
	for status() != eventReset {
		runtime.Gosched()
	}
}

// Everything ends at once, for everybody, when the worker is gone.
func TestLost(t *testing.T) {
	both(t, func(t *testing.T, pipes bool) {
		for name, lose := range map[string]func(*peer){
			"link": func(p *peer) { p.sc.Close() },
			"told": func(p *peer) {
				p.send(stream.OpLost, 0, 0, stream.Lost{Result: -4, Command: uint16(registry.VkCreateImage), Text: "why"}.Append(nil))
			},
			"nonsense": func(p *peer) { p.send(stream.OpRecord, 0, 0, nil) },
		} {
			t.Run(name, func(t *testing.T) {
				s := newScene(t, pipes, func(_ *peer, m stream.Message) bool {
					return registry.Index(m.Op) == registry.VkDeviceWaitIdle // never answered
				})
				l := s.d.current.Load()
				fence := s.fence(s.device)
				var wg sync.WaitGroup
				var waiting atomic.Int32
				for i := range 6 {
					wg.Go(func() {
						waiting.Add(1)
						var r int32
						if i%2 == 0 {
							r = s.call(registry.VkWaitForFences, s.device, 1, s.words(fence), 1, forEver)
						} else {
							r = s.call(registry.VkDeviceWaitIdle, s.device)
						}
						if r != deviceLost {
							t.Errorf("thread %d: %d", i, r)
						}
					})
				}
				s.p.waitFor(registry.VkDeviceWaitIdle, 3)
				lose(s.p)
				wg.Wait()
				for _, cmd := range []registry.Index{registry.VkGetFenceStatus, registry.VkDeviceWaitIdle} {
					if r := s.call(cmd, s.device, fence); r != deviceLost {
						t.Errorf("%s: %d", registry.Commands[cmd].Name, r)
					}
				}
				if r := s.call(registry.VkQueueSubmit, s.queue, 0, 0, fence); r != deviceLost {
					t.Errorf("submit: %d", r)
				}
				if r := s.call(registry.VkCreateBuffer, s.device, s.words(sBuffer, 0, 0, 1, 1, 0, 0), 0, s.words(0)); r != deviceLost {
					t.Errorf("create: %d", r)
				}
				s.call(registry.VkDestroyFence, s.device, fence, 0)
				s.call(registry.VkDestroyDevice, s.device, 0)
				s.call(registry.VkDestroyInstance, s.instance, 0)
				if n := s.d.objects.count(); n != 0 {
					t.Errorf("%d objects are left", n)
				}
				<-l.gone // who finds the link lost may be quicker than the log
				log := s.logged()
				if strings.Count(log, "device lost") != 1 {
					t.Errorf("the loss is not logged once:\n%s", log)
				}
				if name == "told" && !strings.Contains(log, "vkCreateImage") {
					t.Errorf("the log does not name the call:\n%s", log)
				}
				// A new instance has a new worker.
				s.app.instance()
			})
		}
	})
}

// Why a worker ended is known, also if somebody finds first that nothing can be
// sent any more.
func TestLastWord(t *testing.T) {
	both(t, func(t *testing.T, pipes bool) {
		for range 20 {
			s := newScene(t, pipes, nil)
			l := s.d.current.Load()
			fence := s.fence(s.device)
			var work sync.WaitGroup
			for range 3 {
				work.Go(func() {
					for s.call(registry.VkGetFenceStatus, s.device, fence) != deviceLost {
						s.call(registry.VkResetFences, s.device, 1, s.words(fence))
						s.call(registry.VkWaitForFences, s.device, 1, s.words(fence), 1, 0)
					}
				})
			}
			s.p.waitFor(registry.VkResetFences, 3)
			s.p.send(stream.OpLost, 0, 0, stream.Lost{Result: -4, Command: uint16(registry.VkCreateImage), Text: "why"}.Append(nil))
			s.p.sc.Close()
			work.Wait()
			<-l.gone // who finds the link lost may be quicker than the log
			if log := s.logged(); !strings.Contains(log, "vkCreateImage") {
				t.Errorf("the log does not name the call:\n%s", log)
			}
		}
	})
}

// A worker that answers pings may take its time.
func TestSlowWorker(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 6 s")
	}
	t.Parallel()
	s := newScene(t, false, func(p *peer, m stream.Message) bool {
		if registry.Index(m.Op) == registry.VkDeviceWaitIdle {
			serial := m.Serial
			time.AfterFunc(6*time.Second, func() { p.send(m.Op, stream.FlagReply, serial, []byte{0, 0, 0, 0}) })
			return true
		}
		return false
	})
	s.must(registry.VkDeviceWaitIdle, s.device)
}

// A worker that has stopped is noticed, also if nobody waits for it: after one
// submission, or anything else that is sent.
func TestSilentWorker(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 5 s")
	}
	for name, send := range map[string]func(s *scene){
		"submission": func(s *scene) { s.submit(0) },
		"create":     func(s *scene) { s.fence(s.device) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var stopped atomic.Bool
			s := newScene(t, false, func(*peer, stream.Message) bool { return stopped.Load() })
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			stopped.Store(true)
			send(s)
			select {
			case <-s.d.current.Load().gone:
			case <-ctx.Done():
				t.Fatal("nobody has noticed")
			}
			if r := s.call(registry.VkQueueSubmit, s.queue, 0, 0, 0); r != deviceLost {
				t.Errorf("submit: %d", r)
			}
			if log := s.logged(); !strings.Contains(log, "silent") {
				t.Errorf("log:\n%s", log)
			}
		})
	}
}

// A worker that answers is left in peace when the application is.
func TestIdleIsQuiet(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 2 s")
	}
	t.Parallel()
	s := newScene(t, false, nil)
	l := s.d.current.Load()
	s.submit(0)
	ping := stream.OpPing
	s.p.waitFor(registry.Index(ping&0x7fff)|-0x8000, 1)
	for end := time.Now().Add(time.Minute); l.watching.Load(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatal("the worker is asked for ever")
		}
	}
}

// Pings are answered, also while the application does nothing.
func TestPingIsAnswered(t *testing.T) {
	both(t, func(t *testing.T, pipes bool) {
		s := newScene(t, pipes, nil)
		s.p.send(stream.OpPing, 0, 0, nil)
		ping := stream.OpPing
		s.p.waitFor(registry.Index(ping&0x7fff)|-0x8000, 1)
	})
}

// What is buffered leaves after a while, though nobody waits.
func TestDeferredFlush(t *testing.T) {
	s := newScene(t, false, nil)
	s.must(registry.VkCreateFence, s.device, s.words(sFence, 0, 0), 0, s.words(0))
	s.p.waitFor(registry.VkCreateFence, 1)
}

// Submissions come before everything that was called after them, and after
// everything that was called before.
func TestOrder(t *testing.T) {
	s := newScene(t, false, nil)
	pool, cb := s.commandBuffer(s.device)
	s.begin(cb)
	buffer := s.make(registry.VkCreateBuffer, s.device, s.words(sBuffer, 0, 0, 64, 2, 0, 0), 0)
	s.call(registry.VkCmdFillBuffer, cb, buffer, 0, 64, 0)
	s.must(registry.VkEndCommandBuffer, cb)
	s.must(registry.VkQueueSubmit, s.queue, 1, s.submission(cb), 0)
	s.call(registry.VkDestroyBuffer, s.device, buffer, 0)
	s.must(registry.VkResetCommandPool, s.device, pool, 0)
	s.must(registry.VkDeviceWaitIdle, s.device)
	record := stream.OpRecord
	want := []registry.Index{registry.VkCreateCommandPool, registry.VkAllocateCommandBuffers, registry.VkCreateBuffer,
		registry.Index(record&0x7fff) | -0x8000, registry.VkQueueSubmit, registry.VkDestroyBuffer, registry.VkResetCommandPool, registry.VkDeviceWaitIdle}
	got := s.p.ops()
	if i := slices.Index(got, want[0]); i < 0 || !slices.Equal(got[i:], want) {
		t.Errorf("%v, want %v", got, want)
	}
}
