// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"encoding/binary"
	"math/bits"
	"runtime"
	"sync"

	"github.com/memspan/memspan/vulkan/registry"
)

const (
	// maxQueries is how many answers are kept for one object.
	maxQueries = 4096
	// firstElements is how many elements are asked for at first.
	firstElements = 256
	maxElements   = 1 << 16
)

// formatNotSupported is a failure that stays one.
const formatNotSupported = -11

// A queryCache holds the replies to immutable queries, by request.
type queryCache struct {
	mu      sync.RWMutex
	replies map[string][]byte
	coming  map[string]*pending // asked ahead
}

func newQueryCache() *queryCache { return &queryCache{replies: make(map[string][]byte)} }

func (c *queryCache) get(key []byte) ([]byte, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	reply, ok := c.replies[string(key)]
	return reply, ok
}

func (c *queryCache) put(key, reply []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.replies) >= maxQueries {
		clear(c.replies)
	}
	c.replies[string(key)] = reply
	delete(c.coming, string(key))
}

// asked returns what was asked ahead, nil if it was not.
func (c *queryCache) asked(key []byte) *pending {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.coming[string(key)]
}

// expect notes what was asked ahead; nil takes it back.
func (c *queryCache) expect(key []byte, p *pending) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p == nil {
		delete(c.coming, string(key))
		return
	}
	if c.coming == nil {
		c.coming = make(map[string]*pending)
	}
	c.coming[string(key)] = p
}

// requests holds memory for requests.
var requests = sync.Pool{New: func() any {
	b := make([]byte, 0, 1<<10)
	return &b
}}

// cacheOf returns what is kept for the object that a command is dispatched on.
func (d *Driver) cacheOf(o *object) *queryCache {
	if o == nil {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.early
	}
	switch s := o.state.(type) {
	case *instanceState:
		return s.cache
	case *physicalState:
		return s.cache
	case *deviceState:
		return s.cache
	}
	return newQueryCache()
}

// askOnce answers an immutable query.
func (d *Driver) askOnce(cmd registry.Index, a *registry.Args) uint64 {
	o, l, err := d.linkOf(cmd, a)
	if err != nil {
		return d.failure(cmd, err)
	}
	if cmd := canonical(cmd); cmd == registry.VkEnumeratePhysicalDeviceGroups {
		// The worker names those that it knows.
		if _, result := d.physicalDevices(registry.VkEnumeratePhysicalDevices, o); result != success {
			return result
		}
	}
	return d.cached(cmd, a, a, l, d.cacheOf(o))
}

// cached answers a query from the cache, or asks and keeps the answer. key is
// the query as it is known in the cache.
func (d *Driver) cached(cmd registry.Index, key, a *registry.Args, l *link, cache *queryCache) uint64 {
	request := requests.Get().(*[]byte)
	defer requests.Put(request)
	var err error
	*request = binary.LittleEndian.AppendUint16((*request)[:0], uint16(cmd))
	*request, err = d.codec.AppendCall(*request, &registry.Commands[cmd], key, &d.env)
	if err != nil {
		return d.failure(cmd, err)
	}
	reply, known := cache.get(*request)
	if p := cache.asked(*request); p != nil && !known {
		if reply, err = l.finish(cmd, p); err != nil {
			cache.expect(*request, nil) // its own failure will tell more
			reply = nil
		}
	}
	if !known && reply == nil {
		if reply, err = l.ask(cmd, a); err != nil {
			return d.failure(cmd, err)
		}
	}
	result, err := l.store(reply, cmd, a)
	if err != nil {
		return d.failure(cmd, err)
	}
	if r := int32(uint32(result)); !known && (registry.Commands[cmd].Returns != registry.Result || r >= 0 || r == formatNotSupported) {
		cache.put(*request, reply)
	}
	return result
}

// enumerateInstanceVersion answers vkEnumerateInstanceVersion(pVersion).
func (d *Driver) enumerateInstanceVersion(cmd registry.Index, a *registry.Args) uint64 {
	if _, err := d.connect(); err != nil {
		store32(a[0], 1<<22) // 1.0; the instance will be refused
		return success
	}
	return d.askOnce(cmd, a)
}

// enumerateInstanceExtensions answers
// vkEnumerateInstanceExtensionProperties(pLayerName, pCount, pProperties). The
// loader asks it of every driver: one without a worker has none.
func (d *Driver) enumerateInstanceExtensions(cmd registry.Index, a *registry.Args) uint64 {
	if a[0] != 0 {
		return vkResult(layerNotPresent)
	}
	if _, err := d.connect(); err != nil {
		store32(a[1], 0)
		return success
	}
	return d.enumerate(cmd, a, 1)
}

// enumerateDeviceExtensions answers
// vkEnumerateDeviceExtensionProperties(physicalDevice, pLayerName, pCount,
// pProperties).
func (d *Driver) enumerateDeviceExtensions(cmd registry.Index, a *registry.Args) uint64 {
	if a[1] != 0 {
		return vkResult(layerNotPresent)
	}
	return d.enumerate(cmd, a, 2)
}

// enumerate answers a query whose parameters are, from count on, pCount and an
// array. It asks for the whole array at once, whatever the caller asks for:
// first the number, then the elements, is what callers do.
func (d *Driver) enumerate(cmd registry.Index, a *registry.Args, count int) uint64 {
	o, l, err := d.linkOf(cmd, a)
	if err != nil {
		return d.failure(cmd, err)
	}
	size := int(registry.Commands[cmd].Params[count+1].ElemSize)
	cache := d.cacheOf(o)
	for n := firstElements; ; n *= 4 {
		all, words := elements(a, count, n, size)
		result := d.cached(cmd, &all, &all, l, cache)
		if result == incomplete && n < maxElements {
			continue
		}
		if int32(uint32(result)) >= 0 {
			result = give(a[count], a[count+1], uint32(words[0]), addressOf(words[1:]), size)
		}
		runtime.KeepAlive(words)
		return result
	}
}

// elements returns the arguments a with room for n elements, and the room: the
// count, then the elements.
func elements(a *registry.Args, count, n, size int) (registry.Args, []uint64) {
	words := make([]uint64, 1+(n*size+7)/8)
	words[0] = uint64(n)
	all := *a
	all[count], all[count+1] = addressOf(words), addressOf(words[1:])
	return all, words
}

// enumerateQueueFamilies answers vkGetPhysicalDeviceQueueFamilyProperties(
// physicalDevice, pCount, pProperties).
func (d *Driver) enumerateQueueFamilies(cmd registry.Index, a *registry.Args) uint64 {
	return d.enumerate(cmd, a, 1)
}

// largestResult is more than any query has, bytes.
const largestResult = 64 << 10

// getQueryPoolResults answers vkGetQueryPoolResults(device, pool, firstQuery,
// queryCount, dataSize, pData, stride, flags). The room for results travels, as
// not all of it need be written: no more of it than can be.
func (d *Driver) getQueryPoolResults(cmd registry.Index, a *registry.Args) uint64 {
	const count, size, stride = 3, 4, 6
	written := *a
	if before := uint64(uint32(a[count])); before > 0 {
		high, low := bits.Mul64(before-1, a[stride])
		if room := low + largestResult; high == 0 && room > low {
			written[size] = min(a[size], room)
		}
	}
	return d.roundTrip(cmd, &written)
}

// give answers an enumeration with the n elements that lie at from.
func give(count, array uint64, n uint32, from uint64, size int) uint64 {
	if array == 0 {
		store32(count, n)
		return success
	}
	given := min(load32(count), n)
	copy(bytesAt(array, int(given)*size), bytesAt(from, int(given)*size))
	store32(count, given)
	if given < n {
		return incomplete
	}
	return success
}
