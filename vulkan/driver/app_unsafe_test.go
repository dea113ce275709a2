// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"bytes"
	"log/slog"
	"runtime"
	"sync"
	"testing"
	"unsafe"

	"github.com/memspan/memspan/vulkan/registry"
)

// cMemory is memory as C hands it out: it does not move, and nobody else uses
// it.
type cMemory struct {
	mu   sync.Mutex
	live map[uintptr][]uint64
}

func (c *cMemory) alloc(size uintptr) uintptr {
	b := make([]uint64, (size+7)/8)
	p := uintptr(unsafe.Pointer(&b[0]))
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.live == nil {
		c.live = make(map[uintptr][]uint64)
	}
	c.live[p] = b
	return p
}

func (c *cMemory) free(p uintptr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.live[p] == nil {
		panic("freed twice, or never allocated")
	}
	delete(c.live, p)
}

// An app calls a driver as an application does.
type app struct {
	t      testing.TB
	d      *Driver
	c      *cMemory
	log    *bytes.Buffer
	logMu  sync.Mutex
	memory [][]uint64 // kept until the test ends
	memMu  sync.Mutex
}

func newApp(t testing.TB, cfg Config) *app {
	a := &app{t: t, c: new(cMemory), log: new(bytes.Buffer)}
	cfg.Alloc, cfg.Free = a.c.alloc, a.c.free
	cfg.Name = "test"
	cfg.Logger = slog.New(slog.NewTextHandler(a, nil))
	a.d = New(cfg)
	t.Cleanup(func() {
		if err := a.d.Close(); err != nil {
			t.Error(err)
		}
		runtime.KeepAlive(a.memory)
	})
	return a
}

// Write takes the log.
func (a *app) Write(b []byte) (int, error) {
	a.logMu.Lock()
	defer a.logMu.Unlock()
	return a.log.Write(b)
}

func (a *app) logged() string {
	a.logMu.Lock()
	defer a.logMu.Unlock()
	return a.log.String()
}

// words returns the address of words that live as long as the test.
func (a *app) words(w ...uint64) uint64 {
	a.memMu.Lock()
	defer a.memMu.Unlock()
	a.memory = append(a.memory, w)
	return addressOf(w)
}

// two packs two 32-bit members into a word.
func two(low, high uint32) uint64 { return uint64(low) | uint64(high)<<32 }

// call calls a command.
func (a *app) call(cmd registry.Index, args ...uint64) int32 {
	var all registry.Args
	copy(all[:], args)
	return int32(uint32(a.d.Call(cmd, &all)))
}

// must calls a command that has to succeed.
func (a *app) must(cmd registry.Index, args ...uint64) {
	a.t.Helper()
	if r := a.call(cmd, args...); r != success {
		a.t.Fatalf("%s: VkResult %d; log:\n%s", registry.Commands[cmd].Name, r, a.logged())
	}
}

// make calls a command whose last argument receives a handle, and returns it.
func (a *app) make(cmd registry.Index, args ...uint64) uint64 {
	a.t.Helper()
	out := a.words(0xdead)
	a.must(cmd, append(args, out)...)
	if load64(out) == 0 {
		a.t.Fatalf("%s returned a null handle", registry.Commands[cmd].Name)
	}
	return load64(out)
}

// The sTypes that the tests use.
const (
	sInstance      = 1
	sQueueInfo     = 2
	sDevice        = 3
	sSubmit        = 4
	sAllocate      = 5
	sFence         = 8
	sSemaphore     = 9
	sEvent         = 10
	sBuffer        = 12
	sPoolSets      = 33
	sAllocateSets  = 34
	sSetLayout     = 32
	sCommandPool   = 39
	sCommandBuffer = 40
	sBegin         = 42
)

func (a *app) instance() uint64 {
	a.t.Helper()
	return a.make(registry.VkCreateInstance, a.words(sInstance, 0, 0, 0, 0, 0, 0, 0), 0)
}

func (a *app) device(physical uint64) uint64 {
	a.t.Helper()
	priority := a.words(0x3f800000)
	queue := a.words(sQueueInfo, 0, two(0, 0), 1, priority)
	return a.make(registry.VkCreateDevice, physical, a.words(sDevice, 0, two(0, 1), queue, 0, 0, 0, 0, 0), 0)
}

func (a *app) queue(device uint64) uint64 {
	a.t.Helper()
	return a.make(registry.VkGetDeviceQueue, device, 0, 0)
}

func (a *app) fence(device uint64) uint64 {
	a.t.Helper()
	return a.make(registry.VkCreateFence, device, a.words(sFence, 0, 0), 0)
}

func (a *app) commandBuffer(device uint64) (pool, buffer uint64) {
	a.t.Helper()
	pool = a.make(registry.VkCreateCommandPool, device, a.words(sCommandPool, 0, two(2, 0)), 0)
	return pool, a.make(registry.VkAllocateCommandBuffers, device, a.words(sCommandBuffer, 0, pool, two(0, 1)))
}

func (a *app) begin(buffer uint64) {
	a.t.Helper()
	a.must(registry.VkBeginCommandBuffer, buffer, a.words(sBegin, 0, 0, 0xbad))
}

// submission returns a VkSubmitInfo of one command buffer.
func (a *app) submission(buffer uint64) uint64 {
	return a.words(sSubmit, 0, 0, 0, 0, 1, a.words(buffer), 0, 0)
}

const forEver = ^uint64(0)

func (a *app) waitFor(device, fence uint64) {
	a.t.Helper()
	a.must(registry.VkWaitForFences, device, 1, a.words(fence), 1, forEver)
}

// room returns the address of n bytes of zeros.
func (a *app) room(n int) uint64 { return a.words(make([]uint64, (n+7)/8)...) }

// text returns the address of a C string.
func (a *app) text(s string) uint64 {
	p := a.room(len(s) + 1)
	copy(bytesAt(p, len(s)), s)
	return p
}
