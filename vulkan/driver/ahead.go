// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"encoding/binary"
	"runtime"

	"github.com/memspan/memspan/vulkan/registry"
	"github.com/memspan/memspan/vulkan/stream"
)

// All applications begin alike, with questions one after the other, each of
// which is a round trip. As handles are named on this side, most can be asked
// before what they are about exists: with the greeting, and with the creation
// of an instance. The answers wait where those of queries are kept.

// askAhead sends a query whose answer will be wanted. Without it the query is
// asked when it is.
func (d *Driver) askAhead(l *link, cmd registry.Index, a *registry.Args, cache *queryCache) {
	key := binary.LittleEndian.AppendUint16(nil, uint16(cmd))
	key, err := d.codec.AppendCall(key, &registry.Commands[cmd], a, &d.env)
	if err != nil {
		return
	}
	if p, err := l.begin(cmd, func(serial uint64) error { return l.encode(cmd, a, stream.FlagReply, serial) }); err == nil {
		cache.expect(key, p)
	}
}

// askElements is askAhead for what enumerate answers.
func (d *Driver) askElements(l *link, cmd registry.Index, a *registry.Args, count int, cache *queryCache) {
	all, words := elements(a, count, firstElements, int(registry.Commands[cmd].Params[count+1].ElemSize))
	d.askAhead(l, cmd, &all, cache)
	runtime.KeepAlive(words)
}

// askEarly asks what the loader does before there is an instance.
func (d *Driver) askEarly(l *link, cache *queryCache) {
	version := []uint64{0}
	d.askAhead(l, registry.VkEnumerateInstanceVersion, &registry.Args{addressOf(version)}, cache)
	runtime.KeepAlive(version)
	d.askElements(l, registry.VkEnumerateInstanceExtensionProperties, new(registry.Args), 1, cache)
}

// A listing is physical devices that were asked for.
type listing struct {
	n     int // room
	words []uint64
	args  registry.Args
	all   []*object
	p     *pending
}

// list asks for up to n physical devices of an instance.
func (d *Driver) list(instance *object, n int) (*listing, error) {
	const cmd = registry.VkEnumeratePhysicalDevices
	words := make([]uint64, 1+n) // the count, the handles
	words[0] = uint64(n)
	s := &listing{n: n, words: words, args: registry.Args{instance.handle, addressOf(words), addressOf(words[1:])}}
	var err error
	s.all, err = d.createAll(cmd, &s.args, instance, uint32(n), func(int) any { return &physicalState{cache: newQueryCache()} })
	if err == nil {
		s.p, err = instance.link.begin(cmd, func(serial uint64) error { return instance.link.encode(cmd, &s.args, stream.FlagReply, serial) })
	}
	return s, err
}

// got waits for the devices and returns them; those that are not there end.
func (d *Driver) got(instance *object, s *listing) ([]*object, uint64) {
	const cmd = registry.VkEnumeratePhysicalDevices
	var result uint64
	reply, err := instance.link.finish(cmd, s.p)
	if err == nil {
		result, err = instance.link.store(reply, cmd, &s.args)
	}
	if err != nil {
		result = d.failure(cmd, err)
	}
	n := min(int(uint32(s.words[0])), s.n)
	if int32(uint32(result)) < 0 || result == incomplete && s.n < maxPhysical {
		n = 0
	}
	for _, o := range s.all[n:] {
		d.objects.drop(o)
	}
	return s.all[:n], result
}

// askOfInstance asks, behind the creation of an instance, for its devices and
// what is asked of the first of them.
func (d *Driver) askOfInstance(instance *object) {
	s, err := d.list(instance, firstPhysical)
	if err != nil {
		for _, o := range s.all {
			d.objects.drop(o)
		}
		return
	}
	instance.state.(*instanceState).ahead = s
	first, l := s.all[0], instance.link
	cache := first.state.(*physicalState).cache
	room := make([]uint64, 1024/8) // nothing is stored here
	for _, cmd := range []registry.Index{registry.VkGetPhysicalDeviceProperties, registry.VkGetPhysicalDeviceFeatures, registry.VkGetPhysicalDeviceMemoryProperties} {
		d.askAhead(l, cmd, &registry.Args{first.handle, addressOf(room)}, cache)
	}
	runtime.KeepAlive(room)
	d.askElements(l, registry.VkGetPhysicalDeviceQueueFamilyProperties, &registry.Args{first.handle}, 1, cache)
	d.askElements(l, registry.VkEnumerateDeviceExtensionProperties, &registry.Args{first.handle}, 2, cache)
}
