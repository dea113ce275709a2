// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"errors"
	"runtime"
	"testing"
	"time"

	"github.com/memspan/memspan/vulkan/registry"
	"github.com/memspan/memspan/vulkan/stream"
)

// A worker that says more than the socket holds before it reads on, to an
// application that sends more than the socket holds: the driver reads while it
// writes, whatever its goroutines are busy with.
func TestBothWrite(t *testing.T) {
	both(t, func(t *testing.T, pipes bool) {
		const signals = 100_000 // 2.4 MB
		s := newScene(t, pipes, func(p *peer, m stream.Message) bool {
			if m.Op == stream.OpMemoryWrite {
				var b []byte
				for range signals {
					b = stream.Signal{Kind: stream.SignalFence, ID: 1<<63 | 1}.Append(b)
				}
				p.send(stream.OpSignal, 0, 0, b)
			}
			return false
		})
		s.must(registry.VkDeviceWaitIdle, s.device) // nothing is left to be sent
		l := s.d.current.Load()
		if l.direct {
			// A thread waits, so the background does not read, …
			l.waiting.Add(1)
			for l.reading.Load() {
				s.p.signal(stream.Signal{Kind: stream.SignalFence, ID: 1<<63 | 1})
				runtime.Gosched()
			}
		}
		if err := errors.Join(l.write(stream.OpMemoryWrite, nil, nil), l.flush()); err != nil {
			t.Fatal(err)
		}
		buf := l.sc.Begin(stream.OpMemoryRuns, 0, 0)
		// … the goroutine that would have it read answers a ping, …
		l.pinged.Store(true)
		l.tendSoon()
		for l.pinged.Load() {
			runtime.Gosched()
		}
		// … and the thread waits no more.
		if l.direct {
			l.leave()
		}
		done := make(chan error, 1)
		go func() { done <- l.sc.End(append(buf, make([]byte, 8<<20)...)) }()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(time.Minute):
			t.Error("both ends wait for each other")
			s.p.sc.Close()
			<-done
		}
	})
}
