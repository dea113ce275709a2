// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/memspan/memspan/internal/fdpass"
	"github.com/memspan/memspan/vulkan/registry"
	"github.com/memspan/memspan/vulkan/stream"
	"github.com/memspan/memspan/wire"
)

// mutatedVariable has the test binary be a worker whose client is file 3.
const mutatedVariable = "MEMSPAN_TEST_MUTATED"

// serveMutated is that worker.
func serveMutated() int {
	nc, err := fdpass.UnixConn(os.NewFile(3, "client"))
	if err == nil {
		err = Serve(context.Background(), wire.NewConn(nc, wire.Config{}), Config{Log: quiet, Memory: 64 << 20, Objects: 4096, QueueDepth: 64, Deadline: time.Second})
	}
	fmt.Fprintln(os.Stderr, "served:", err)
	return 0
}

// A recorder keeps what is written.
type recorder struct {
	net.Conn
	mu   sync.Mutex
	sent bytes.Buffer
}

func (r *recorder) Write(b []byte) (int, error) {
	r.mu.Lock()
	r.sent.Write(b)
	r.mu.Unlock()
	return r.Conn.Write(b)
}

// recordedSession returns the messages of a small program, as its driver sent
// them.
func recordedSession(t *testing.T) []stream.Message {
	t.Helper()
	near, far := sockets(t)
	tape := &recorder{Conn: near}
	c := beginOn(t, Config{}, tape, far, 0)
	w := c.workload(8192)
	c.shadows = map[uint64][]byte{w.memory: make([]byte, w.size)}
	c.send(binary.LittleEndian.AppendUint64(c.conn.Begin(stream.OpMemoryMap, 0, 0), w.memory))
	c.write(w.memory, 5, []byte{1, 2, 3})
	c.made(registry.VkDescriptorUpdateTemplate, registry.VkCreateDescriptorUpdateTemplate, w.device, c.mem(
		1000085000, 0, 1<<32, c.mem(0, 1|6<<32, 0, 24), 0,
		c.made(registry.VkDescriptorSetLayout, registry.VkCreateDescriptorSetLayout, w.device, c.mem(32, 0, 1<<32, c.mem(0|6<<32, 1|32<<32, 0)), 0),
		0, 0, 0), 0)
	event := c.made(registry.VkEvent, registry.VkCreateEvent, w.device, c.mem(10, 0, 0), 0)
	semaphore := c.made(registry.VkSemaphore, registry.VkCreateSemaphore, w.device, c.mem(9, c.mem(1000207002, 0, 1, 0), 0), 0)
	fence := c.made(registry.VkFence, registry.VkCreateFence, w.device, c.mem(8, 0, 0), 0)
	c.record(w.commands,
		recorded{registry.VkBeginCommandBuffer, []uint64{c.mem(42, 0, 0, 0)}},
		recorded{registry.VkCmdFillBuffer, []uint64{w.buffer, 0, w.size, 7}},
		recorded{registry.VkCmdUpdateBuffer, []uint64{w.buffer, 0, 8, c.mem(9)}},
		recorded{registry.VkCmdCopyBuffer, []uint64{w.buffer, w.buffer, 1, c.mem(0, 4096, 64)}},
		recorded{registry.VkCmdSetEvent, []uint64{event, 0x1000}},
		recorded{registry.VkEndCommandBuffer, nil},
	)
	batch := c.mem(4, c.mem(1000207003, 0, 0, 0, 1, c.mem(1)), 0, 0, 0, 1, c.mem(w.commands), 1, c.mem(semaphore))
	c.do(registry.VkQueueSubmit, w.queue, 1, batch, fence)
	c.do(registry.VkDeviceWaitIdle, w.device)
	c.do(registry.VkQueueSubmit2, w.queue, 1, c.mem(1000314004, 0, 0, 0, 1, c.mem(1000314006, 0, w.commands, 0), 0, 0), 0)
	c.do(registry.VkQueueWaitIdle, w.queue)
	for _, name := range []registry.Index{registry.VkGetPhysicalDeviceProperties2, registry.VkGetPhysicalDeviceFeatures2} {
		c.do(name, w.gpu, c.mem(append([]uint64{map[registry.Index]uint64{registry.VkGetPhysicalDeviceProperties2: 1000059001, registry.VkGetPhysicalDeviceFeatures2: 1000059000}[name]}, make([]uint64, 128)...)...))
	}
	c.do(registry.VkEnumerateDeviceExtensionProperties, w.gpu, 0, c.mem(0), 0)
	c.post(registry.VkFreeMemory, w.device, w.memory, 0)
	c.post(registry.VkDestroyBuffer, w.device, w.buffer, 0)
	c.post(registry.VkDestroyDevice, w.device, 0)
	c.post(registry.VkDestroyInstance, w.instance, 0)
	c.end()

	from, to := net.Pipe()
	go func() {
		from.Write(tape.sent.Bytes())
		from.Close()
	}()
	sc := stream.New(wire.NewConn(to, wire.Config{}))
	defer sc.Close()
	var list []stream.Message
	for {
		m, err := sc.Read()
		if err != nil {
			return list
		}
		m.Body = bytes.Clone(m.Body)
		list = append(list, m)
	}
}

// mutate changes a body a little.
func mutate(r *rand.Rand, b []byte) []byte {
	b = bytes.Clone(b)
	interesting := []uint64{0, 1, 2, 0xff, 1 << 20, 1<<31 - 1, 1 << 31, 1<<32 - 1, 1 << 32, 1 << 63, 1<<64 - 1}
	for range 1 + r.IntN(3) {
		if len(b) == 0 {
			return append(b, byte(r.Uint32()))
		}
		at := r.IntN(len(b))
		switch r.IntN(7) {
		case 0:
			b[at] = byte(r.Uint32())
		case 1:
			b[at] ^= 1 << r.IntN(8)
		case 2:
			if at += 4; at <= len(b) {
				binary.LittleEndian.PutUint32(b[at-4:], uint32(interesting[r.IntN(len(interesting))]))
			}
		case 3:
			if at += 8; at <= len(b) {
				binary.LittleEndian.PutUint64(b[at-8:], interesting[r.IntN(len(interesting))])
			}
		case 4:
			b = b[:at]
		case 5:
			b = append(b[:at:at], b[min(len(b), at+1+r.IntN(8)):]...)
		default: // a pointer becomes null, or is none any more
			if b[at] <= 1 {
				b[at] ^= 1
			}
		}
	}
	return b
}

// A program's messages, a little changed, end at worst their own worker, and
// that by an error or in the driver: never by a panic of ours. Two minutes with
// MEMSPAN_SLOW=1.
func TestMutatedStreams(t *testing.T) {
	messages := recordedSession(t)
	if len(messages) < 30 {
		t.Fatalf("%d messages were recorded", len(messages))
	}
	end := time.Now().Add(3 * time.Second)
	if os.Getenv("MEMSPAN_SLOW") == "1" {
		end = time.Now().Add(2 * time.Minute)
	}
	seed, crashes, stuck := uint64(0), 0, 0
	for ; time.Now().Before(end) && !t.Failed(); seed++ {
		said, killed := replay(t, messages, rand.New(rand.NewPCG(seed, 6)), seed == 0)
		switch {
		case strings.Contains(said, "during cgo execution"), strings.HasPrefix(said, "signal: "):
			// In the driver, which trusts its callers; if in a thread of its own,
			// the Go runtime says nothing.
			crashes++
		case killed:
			stuck++
		case !strings.Contains(said, "served: "):
			t.Errorf("seed %d: the worker died:\n%s", seed, said)
		case seed == 0 && !strings.Contains(said, "served: <nil>"):
			t.Errorf("unchanged: %s", said)
		}
	}
	t.Logf("%d streams; %d ended in the driver, %d stuck there", seed, crashes, stuck)
}

// replay sends the messages to a worker, some of them changed, and returns what
// it said in the end.
func replay(t *testing.T, messages []stream.Message, r *rand.Rand, unchanged bool) (said string, killed bool) {
	t.Helper()
	near, file, err := fdpass.Pair()
	if err != nil {
		t.Fatal(err)
	}
	var errors bytes.Buffer
	worker := exec.Command(os.Args[0])
	worker.Env = append(os.Environ(), mutatedVariable+"=1")
	worker.ExtraFiles, worker.Stderr = []*os.File{file}, &errors
	err = worker.Start()
	file.Close()
	if err != nil {
		t.Fatal(err)
	}
	patience := time.AfterFunc(10*time.Second, func() { worker.Process.Kill() })
	var reading sync.WaitGroup
	reading.Go(func() { io.Copy(io.Discard, near) })
	sc := stream.New(wire.NewConn(near, wire.Config{}))
	for i, m := range messages {
		body := m.Body
		if i > 0 && !unchanged && r.IntN(len(messages)/2) == 0 {
			body = mutate(r, body)
		}
		if sc.Write(m.Op, m.Flags, m.Serial, body, nil) != nil || sc.Flush() != nil {
			break // it has ended
		}
	}
	near.CloseWrite()
	ended := worker.Wait()
	killed = !patience.Stop()
	near.Close()
	reading.Wait()
	if errors.Len() == 0 && ended != nil {
		return ended.Error(), killed
	}
	return errors.String(), killed
}
