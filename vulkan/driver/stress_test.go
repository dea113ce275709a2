// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/memspan/memspan/vulkan/registry"
	"github.com/memspan/memspan/vulkan/stream"
	"github.com/memspan/memspan/wire"
)

// A thread that waits for a semaphore is woken by another's vkSignalSemaphore,
// of which nothing comes back from the device.
func TestHostSignalWakes(t *testing.T) {
	both(t, func(t *testing.T, pipes bool) {
		s := newScene(t, pipes, nil)
		kind := s.words(1000207002, 0, 1, 0)
		semaphore := s.make(registry.VkCreateSemaphore, s.device, s.words(sSemaphore, kind, 0), 0)
		begin := time.Now()
		for value := range uint64(20) {
			var wg sync.WaitGroup
			for range 3 {
				info := s.words(1000207004, 0, two(0, 1), s.words(semaphore), s.words(value+1))
				wg.Go(func() {
					if r := s.call(registry.VkWaitSemaphores, s.device, info, 20e9); r != success {
						t.Errorf("a wait for %d: %d", value+1, r)
					}
				})
			}
			for l := s.d.current.Load(); l.waiting.Load() < 3; {
				runtime.Gosched()
			}
			s.must(registry.VkSignalSemaphore, s.device, s.words(1000207005, 0, semaphore, value+1))
			wg.Wait()
		}
		// The watch's pings would wake them too, a second later each time.
		if d := time.Since(begin); d > 18*time.Second {
			t.Errorf("20 rounds took %v", d)
		}
	})
}

// tcpPair returns two ends of a TCP connection.
func tcpPair(t testing.TB) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return a, b
}

// A ragged connection writes what it is given in pieces, so that messages come
// in parts.
type ragged struct {
	net.Conn
	rand *rand.Rand // the writer's
}

func (c ragged) Write(b []byte) (int, error) {
	done := 0
	for done < len(b) {
		n := min(len(b)-done, 1+c.rand.IntN(40))
		n, err := c.Conn.Write(b[done : done+n])
		done += n
		if err != nil {
			return done, err
		}
		if c.rand.IntN(4) == 0 {
			runtime.Gosched()
		}
	}
	return done, nil
}

// lateSignals answers each submission by its fence's signal, at once or some
// time later, together with others or behind a reply.
func lateSignals() func(*peer, stream.Message) bool {
	r := rand.New(rand.NewPCG(1, 2)) // the peer's goroutine's, as all that follows
	submissions := make(map[uint64]uint64)
	var late []stream.Signal
	return func(p *peer, m stream.Message) bool {
		if registry.Index(m.Op) == registry.VkQueueSubmit {
			fence := idIn(m.Body, len(m.Body)-8)
			submissions[fence]++
			late = append(late, stream.Signal{Kind: stream.SignalFence, ID: fence, Value: submissions[fence]})
		}
		switch r.IntN(4) {
		case 0:
			return false // with a later message; there is one, as somebody polls or asks
		case 1:
			r.Shuffle(len(late), func(i, j int) { late[i], late[j] = late[j], late[i] })
			fallthrough
		case 2:
			p.signal(late...)
		default:
			for _, s := range late {
				p.signal(s)
			}
		}
		late = late[:0]
		return false
	}
}

// stressTime is how long a stress lasts: a minute with MEMSPAN_SLOW=1.
func stressTime() time.Duration {
	if os.Getenv("MEMSPAN_SLOW") == "1" {
		return time.Minute
	}
	return 2 * time.Second
}

// Many threads wait with and without timeouts, poll and ask, while signals,
// replies and pings come in parts, early and late. A wake-up that is lost shows
// as a wait that outlasts everything.
func TestStressWaits(t *testing.T) {
	for name, pair := range map[string]func(testing.TB) (net.Conn, net.Conn){"unix": sockets, "tcp": tcpPair} {
		t.Run(name, func(t *testing.T) {
			peers := make(chan *peer, 1)
			var serving sync.WaitGroup
			t.Cleanup(serving.Wait)
			cfg := Config{Dial: func(context.Context) (Connection, error) {
				client, worker := pair(t)
				worker = ragged{worker, rand.New(rand.NewPCG(3, 4))}
				p := &peer{t: t, sc: stream.New(wire.NewConn(worker, wire.Config{})), answer: lateSignals(), forgets: true}
				p.came = sync.NewCond(&p.mu)
				serving.Go(p.serve)
				peers <- p
				return Connection{Wire: wire.NewConn(client, wire.Config{})}, nil
			}}
			s := newSceneOf(t, cfg, peers)
			end := time.Now().Add(stressTime())
			var queue sync.Mutex
			var threads sync.WaitGroup
			var rounds atomic.Int64
			// Each message may be the one that brings late signals.
			var asked atomic.Bool
			stop := make(chan struct{})
			threads.Go(func() {
				for {
					select {
					case <-stop:
						return
					case <-time.After(time.Millisecond):
						if !asked.Swap(true) {
							s.call(registry.VkDeviceWaitIdle, s.device)
							asked.Store(false)
						}
					}
				}
			})
			var workers sync.WaitGroup
			for w := range 8 {
				fence := s.fence(s.device)
				list := s.words(fence)
				r := rand.New(rand.NewPCG(uint64(w), 5))
				workers.Go(func() {
					for i := 0; time.Now().Before(end); i++ {
						queue.Lock()
						result := s.call(registry.VkQueueSubmit, s.queue, 0, 0, fence)
						queue.Unlock()
						begin := time.Now()
						kind := r.IntN(4)
						switch {
						case result != success:
						case kind == 0:
							for result = notReady; result == notReady && time.Since(begin) < 20*time.Second; runtime.Gosched() {
								result = s.call(registry.VkGetFenceStatus, s.device, fence)
							}
						case kind == 1:
							for result = timedOut; result == timedOut && time.Since(begin) < 20*time.Second; {
								result = s.call(registry.VkWaitForFences, s.device, 1, list, 1, r.Uint64N(300e3))
							}
						default:
							result = s.call(registry.VkWaitForFences, s.device, 1, list, 1, 20e9)
						}
						if result != success {
							t.Errorf("thread %d, round %d, way %d: %d after %v", w, i, kind, result, time.Since(begin))
							return
						}
						if r := s.call(registry.VkResetFences, s.device, 1, list); r != success {
							t.Errorf("reset: %d", r)
							return
						}
						rounds.Add(1)
					}
				})
			}
			workers.Wait()
			close(stop)
			threads.Wait()
			t.Logf("%d rounds", rounds.Load())
			if rounds.Load() == 0 {
				t.Error("nothing happened")
			}
		})
	}
}

// Rounds in which every thread waits, what they wait for comes, and then nothing
// more: a wake-up that is lost would be made good by nothing but the answer to a
// ping, and the peer gives none. So it costs the device.
func TestQuietRounds(t *testing.T) {
	const threads = 5
	for name, pair := range map[string]func(testing.TB) (net.Conn, net.Conn){
		"unix": sockets, "tcp": tcpPair, "pipe": func(testing.TB) (net.Conn, net.Conn) { return net.Pipe() },
	} {
		t.Run(name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(7, 8)) // the peer's goroutine's, as all that follows
			submissions := make(map[uint64]uint64)
			var answers []func(p *peer)
			answer := func(p *peer, m stream.Message) bool {
				switch {
				case m.Op == stream.OpPing:
					return true
				case registry.Index(m.Op) == registry.VkQueueSubmit:
					fence := idIn(m.Body, len(m.Body)-8)
					submissions[fence]++
					signal := stream.Signal{Kind: stream.SignalFence, ID: fence, Value: submissions[fence]}
					answers = append(answers, func(p *peer) { p.signal(signal) })
				case registry.Index(m.Op) == registry.VkDeviceWaitIdle:
					serial := m.Serial
					answers = append(answers, func(p *peer) {
						p.send(stream.Op(registry.VkDeviceWaitIdle), stream.FlagReply, serial, []byte{0, 0, 0, 0})
					})
				default:
					return false
				}
				if len(answers) == threads {
					r.Shuffle(threads, func(i, j int) { answers[i], answers[j] = answers[j], answers[i] })
					for _, a := range answers {
						for range r.IntN(4) {
							runtime.Gosched()
						}
						a(p)
					}
					answers = answers[:0]
				}
				return true
			}
			peers := make(chan *peer, 1)
			var serving sync.WaitGroup
			t.Cleanup(serving.Wait)
			cfg := Config{Dial: func(context.Context) (Connection, error) {
				client, worker := pair(t)
				p := &peer{t: t, sc: stream.New(wire.NewConn(worker, wire.Config{})), answer: answer, forgets: true}
				p.came = sync.NewCond(&p.mu)
				serving.Go(p.serve)
				peers <- p
				return Connection{Wire: wire.NewConn(client, wire.Config{})}, nil
			}}
			s := newSceneOf(t, cfg, peers)
			s.d.current.Load().loading.Add(1) // a busy machine has as long as one that loads a driver
			var fences, lists [threads]uint64
			for w := range threads {
				fences[w] = s.fence(s.device)
				lists[w] = s.words(fences[w])
			}
			end := time.Now().Add(stressTime() / 2)
			var queue sync.Mutex
			rounds := 0
			for ; time.Now().Before(end) && !t.Failed(); rounds++ {
				var waiting sync.WaitGroup
				for w := range threads {
					waiting.Go(func() {
						if w == rounds%(threads+2) { // in most rounds one asks
							if r := s.call(registry.VkDeviceWaitIdle, s.device); r != success {
								t.Errorf("idle: %d", r)
							}
							return
						}
						queue.Lock()
						r := s.call(registry.VkQueueSubmit, s.queue, 0, 0, fences[w])
						queue.Unlock()
						if r == success {
							r = s.call(registry.VkWaitForFences, s.device, 1, lists[w], 1, 60e9)
						}
						if r == success {
							r = s.call(registry.VkResetFences, s.device, 1, lists[w])
						}
						if r != success {
							t.Errorf("thread %d: %d", w, r)
						}
					})
				}
				waiting.Wait()
			}
			t.Logf("%d rounds", rounds)
		})
	}
}

// An application that only polls learns of signals without waiting for
// anything, also when the signal comes long after its last other call.
func TestPollHears(t *testing.T) {
	both(t, func(t *testing.T, pipes bool) {
		s := newScene(t, pipes, nil)
		fence := s.fence(s.device)
		list := s.words(fence)
		id := s.d.objects.get(fence).id
		for i := range uint64(200) {
			s.submit(fence)
			if i%3 == 0 { // an end of waiting is no end of hearing
				s.call(registry.VkWaitForFences, s.device, 1, list, 1, 50e3)
			}
			if r := s.call(registry.VkGetFenceStatus, s.device, fence); r != notReady {
				t.Fatalf("round %d: %d before the signal", i, r)
			}
			s.p.signal(stream.Signal{Kind: stream.SignalFence, ID: id, Value: i + 1})
			begin := time.Now()
			for s.call(registry.VkGetFenceStatus, s.device, fence) == notReady {
				if time.Since(begin) > 20*time.Second {
					t.Fatalf("round %d: the signal is not heard", i)
				}
				runtime.Gosched()
			}
			s.must(registry.VkResetFences, s.device, 1, list)
		}
	})
}

// A message of which only a part has come holds up nobody who polls, and nothing
// is lost of it.
func TestPartOfAMessage(t *testing.T) {
	client, worker := sockets(t)
	peers := make(chan *peer, 1)
	var serving sync.WaitGroup
	t.Cleanup(serving.Wait)
	cfg := Config{Dial: func(context.Context) (Connection, error) {
		p := &peer{t: t, sc: stream.New(wire.NewConn(worker, wire.Config{}))}
		p.came = sync.NewCond(&p.mu)
		serving.Go(p.serve)
		peers <- p
		return Connection{Wire: wire.NewConn(client, wire.Config{})}, nil
	}}
	s := newSceneOf(t, cfg, peers)
	fence := s.fence(s.device)
	s.submit(fence)
	s.p.waitFor(registry.VkQueueSubmit, 1)
	// A message in two frames, of which the first has no end of it.
	signal := stream.Signal{Kind: stream.SignalFence, ID: s.d.objects.get(fence).id, Value: 1}.Append(nil)
	message := binary.LittleEndian.AppendUint32(nil, uint32(len(signal)))
	message = binary.LittleEndian.AppendUint16(message, uint16(stream.OpSignal))
	message = append(binary.LittleEndian.AppendUint16(message, 0), make([]byte, 8)...)
	message = append(message, signal...)
	send := func(b []byte) {
		if err := s.p.sc.Wire().WriteFrame(wire.Header{Kind: wire.KindStream}, nil, b); err != nil {
			t.Fatal(err)
		}
	}
	send(message[:5])
	polled := make(chan struct{})
	go func() {
		defer close(polled)
		for range 100 {
			if r := s.call(registry.VkGetFenceStatus, s.device, fence); r != notReady {
				t.Errorf("a poll: %d", r)
			}
			runtime.Gosched()
		}
	}()
	<-polled
	time.AfterFunc(20*time.Millisecond, func() { send(message[5:]) })
	s.waitFor(s.device, fence)
}

// A worker is not dead while bytes of its come, however slowly: a message may
// be long, and keeps it from answering pings.
func TestSlowMessage(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 6 s")
	}
	t.Parallel()
	both(t, func(t *testing.T, pipes bool) {
		t.Parallel()
		s := newScene(t, pipes, func(p *peer, m stream.Message) bool {
			if registry.Index(m.Op) != registry.VkDeviceWaitIdle {
				return false
			}
			tick := time.NewTicker(time.Second)
			defer tick.Stop()
			answer := binary.LittleEndian.AppendUint32(nil, 4)
			answer = binary.LittleEndian.AppendUint16(answer, uint16(m.Op))
			answer = binary.LittleEndian.AppendUint16(answer, uint16(stream.FlagReply))
			answer = append(binary.LittleEndian.AppendUint64(answer, m.Serial), 0, 0, 0, 0)
			for part := range slices.Chunk(answer, 3) {
				if err := p.sc.Wire().WriteFrame(wire.Header{Kind: wire.KindStream}, nil, part); err != nil {
					p.t.Error(err)
				}
				<-tick.C
			}
			return true
		})
		s.must(registry.VkDeviceWaitIdle, s.device)
	})
}

// A worker that is there and takes nothing any more is dead within 5 s, whatever
// the application does: also if it only polls, or only sends.
func TestDeafWorker(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 5 s")
	}
	t.Parallel()
	var acting sync.WaitGroup
	for name, act := range map[string]func(s *scene, fence uint64) int32{
		"polls": func(s *scene, fence uint64) int32 {
			runtime.Gosched()
			return s.call(registry.VkGetFenceStatus, s.device, fence)
		},
		"waits a little": func(s *scene, fence uint64) int32 {
			return s.call(registry.VkWaitForFences, s.device, 1, s.words(fence), 1, 10e6)
		},
		"waits": func(s *scene, fence uint64) int32 {
			return s.call(registry.VkWaitForFences, s.device, 1, s.words(fence), 1, forEver)
		},
		"asks": func(s *scene, _ uint64) int32 { return s.call(registry.VkDeviceWaitIdle, s.device) },
		"sends": func(s *scene, _ uint64) int32 {
			for range 1000 {
				if r := s.call(registry.VkQueueSubmit, s.queue, 0, 0, 0); r != success {
					return r
				}
			}
			return success
		},
	} {
		for _, pipes := range []bool{false, true} {
			deaf := make(chan struct{})
			s := newScene(t, pipes, func(_ *peer, m stream.Message) bool {
				if registry.Index(m.Op) == registry.VkQueueSubmit {
					<-deaf
				}
				return false
			})
			t.Cleanup(func() { close(deaf) })
			fence := s.fence(s.device)
			acting.Go(func() { // all at once, as each takes its time
				begin := time.Now()
				hung := time.AfterFunc(20*time.Second, func() { s.d.current.Load().fail(errSilent) })
				r := s.call(registry.VkQueueSubmit, s.queue, 0, 0, fence)
				for time.Since(begin) < time.Minute && r != deviceLost {
					r = act(s, fence)
				}
				found := hung.Stop() // by the driver itself
				if d := time.Since(begin); r != deviceLost || !found || d < 2*time.Second {
					t.Errorf("%s, pipe=%v: %d after %v", name, pipes, r, d)
				}
			})
		}
	}
	acting.Wait()
}
