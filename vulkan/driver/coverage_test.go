// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package driver

import (
	"slices"
	"strings"
	"testing"

	"github.com/memspan/memspan/vulkan/registry"
)

const (
	sFeatures2        = 1000059000
	featuresSize      = 220 // VkPhysicalDeviceFeatures
	extensionProperty = 260 // VkExtensionProperties
	queueFamily       = 24  // VkQueueFamilyProperties
)

// texts returns the address of an array of C strings.
func (a *app) texts(list []string) uint64 {
	words := make([]uint64, 0, len(list)+1)
	for _, s := range list {
		words = append(words, a.text(s))
	}
	return a.words(append(words, 0)...)
}

// extensionsOf asks for extensions by the two-call idiom: args, then the count
// and the array.
func (a *app) extensionsOf(cmd registry.Index, args ...uint64) []string {
	a.t.Helper()
	count := a.words(0)
	a.must(cmd, append(slices.Clone(args), count, 0)...)
	n := int(load32(count))
	array := a.room((n + 1) * extensionProperty)
	a.must(cmd, append(slices.Clone(args), count, array)...)
	var names []string
	for i := range n {
		names = append(names, stringAt(array+uint64(i*extensionProperty)))
	}
	return names
}

// featureStructs are the structures of features that the tables know: those
// that an extension or a version brought.
func featureStructs() []registry.Index {
	var list []registry.Index
	for i, s := range registry.Structs {
		if s.SType != registry.NoSType && strings.HasPrefix(s.Name, "VkPhysicalDevice") && strings.Contains(s.Name, "Features") && s.Name != "VkPhysicalDeviceFeatures2" {
			list = append(list, registry.Index(i))
		}
	}
	return list
}

// chainOf returns VkPhysicalDeviceFeatures2 and a chain of structures.
func (a *app) chainOf(structs []registry.Index) (head uint64, at map[registry.Index]uint64) {
	at = make(map[registry.Index]uint64)
	next := uint64(0)
	for _, i := range structs {
		p := a.room(int(registry.Structs[i].Size))
		store32(p, registry.Structs[i].SType)
		store64(p+8, next)
		at[i], next = p, p
	}
	head = a.room(16 + featuresSize)
	store32(head, sFeatures2)
	store64(head+8, next)
	return head, at
}

// on reports whether a structure of features has any.
func on(p uint64, size int) bool {
	return slices.ContainsFunc(bytesAt(p+16, size-16), func(b byte) bool { return b != 0 })
}

// An offer is what a driver advertises.
type offer struct {
	instance, physical             uint64
	version                        uint32
	instanceExtensions, extensions []string
}

// everything makes an instance with all there is and asks what devices have.
func (a *app) everything() offer {
	a.t.Helper()
	o := offer{instanceExtensions: a.extensionsOf(registry.VkEnumerateInstanceExtensionProperties, 0)}
	application := a.words(0, 0, 0, 0, 0, two(0, version(13)))
	o.instance = a.make(registry.VkCreateInstance, a.words(sInstance, 0, 0, application, 0, 0,
		uint64(len(o.instanceExtensions)), a.texts(o.instanceExtensions)), 0)
	o.physical = a.physical(o.instance)
	o.extensions = a.extensionsOf(registry.VkEnumerateDeviceExtensionProperties, o.physical, 0)
	properties := a.room(824)
	a.call(registry.VkGetPhysicalDeviceProperties, o.physical, properties)
	o.version = load32(properties)
	return o
}

// createDevice makes a device with all extensions and the chain of features.
func (a *app) createDevice(o offer, chain uint64) (device uint64, result int32) {
	priority := a.words(0x3f800000)
	queue := a.words(sQueueInfo, 0, two(0, 0), 1, priority)
	out := a.words(0)
	result = a.call(registry.VkCreateDevice, o.physical, a.words(sDevice, chain, two(0, 1), queue, 0, 0,
		uint64(len(o.extensions)), a.texts(o.extensions), 0), 0, out)
	return load64(out), result
}

// What is advertised works: a device with every extension and every feature is
// made, and each of its commands has an entry point and can be carried. (What
// needs a window system is in neither: the tables' extensions.txt says which.)
func TestAllThatIsAdvertised(t *testing.T) {
	a := newApp(t, withWorker(t))
	o := a.everything()
	t.Logf("version %#x, extensions %d of instances, %d of devices", o.version, len(o.instanceExtensions), len(o.extensions))

	structs := featureStructs()
	head, at := a.chainOf(structs)
	a.call(registry.VkGetPhysicalDeviceFeatures2, o.physical, head)
	var versions, single []registry.Index // structures that enable, by version or one by one
	for _, i := range structs {
		s := &registry.Structs[i]
		if !on(at[i], int(s.Size)) {
			continue
		}
		if strings.HasPrefix(s.Name, "VkPhysicalDeviceVulkan1") {
			versions = append(versions, i)
		} else {
			single = append(single, i)
		}
	}
	// What is masked is what should be: the same feature is on or off wherever
	// it stands.
	twelve, addresses := at[registry.VkPhysicalDeviceVulkan12Features], at[registry.VkPhysicalDeviceBufferDeviceAddressFeatures]
	if load32(twelve+168) != load32(addresses+16) || load32(twelve+172)+load32(addresses+20) != 0 || load32(twelve+176) != load32(addresses+24) {
		t.Errorf("buffer addresses: %x and %x", bytesAt(twelve+168, 12), bytesAt(addresses+16, 12))
	}
	var device uint64
	for name, list := range map[string][]registry.Index{"by version": append(versions, single...), "one by one": single} {
		chain := uint64(0)
		for _, i := range list {
			store64(at[i]+8, chain)
			chain = at[i]
		}
		store64(head+8, chain)
		made, r := a.createDevice(o, head)
		if r != success {
			t.Fatalf("%d features %s: VkResult %d; log:\n%s", len(list), name, r, a.logged())
		}
		t.Logf("%s: %d structures of features", name, len(list))
		if device != 0 {
			a.call(registry.VkDestroyDevice, device, 0)
		}
		device = made
	}

	walked := 0
	for i := range registry.Commands {
		c := &registry.Commands[i]
		core := c.Core > 0 && version(c.Core) <= o.version
		extension := slices.ContainsFunc(c.Extensions, func(x string) bool {
			return slices.Contains(o.extensions, x) || slices.Contains(o.instanceExtensions, x)
		})
		ofDevice := c.First != registry.None && c.First != registry.VkInstance && c.First != registry.VkPhysicalDevice
		if ofDevice {
			has := a.call(registry.VkGetDeviceProcAddr, device, a.text(c.Name)) != 0
			if has != (core || extension) {
				t.Errorf("%s: has an entry point: %v, advertised: %v", c.Name, has, core || extension)
			}
		}
		if !core && !extension {
			continue
		}
		walked++
		if err := a.d.codec.Supported(c); err != nil && c.Name != "vkGetInstanceProcAddr" && c.Name != "vkGetDeviceProcAddr" {
			t.Errorf("%s: %v", c.Name, err)
		}
	}
	t.Logf("%d commands", walked)
	a.call(registry.VkDestroyDevice, device, 0)
	a.call(registry.VkDestroyInstance, o.instance, 0)
}

// What is not advertised is refused, and named in the log.
func TestNotAdvertised(t *testing.T) {
	a := newApp(t, withWorker(t))
	o := a.everything()
	protected := a.words(1000145001, 0, 1) // VkPhysicalDeviceProtectedMemoryFeatures
	if _, r := a.createDevice(o, protected); r != featureNotPresent {
		t.Errorf("protected memory: VkResult %d", r)
	}
	if !strings.Contains(a.logged(), "protectedMemory") {
		t.Errorf("the log does not name the feature:\n%s", a.logged())
	}
	none := o
	none.extensions = []string{"VK_KHR_external_memory_fd"}
	if _, r := a.createDevice(none, 0); r != extensionNotThere {
		t.Errorf("files as memory: VkResult %d", r)
	}
	// Images that another process shares cannot be.
	external := a.words(1000071000, 0, 1)
	info := a.words(1000059004, external, two(37, 1), two(0, 1), 0) // RGBA8, 2D, optimal, transfer source
	properties := a.words(1000059003, 0, ^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0))
	if r := a.call(registry.VkGetPhysicalDeviceImageFormatProperties2, o.physical, info, properties); r != formatNotSupported || load64(properties+16) != 0 {
		t.Errorf("external image: VkResult %d, width %d", r, load32(properties+16))
	}
	store32(external+16, 0)
	a.must(registry.VkGetPhysicalDeviceImageFormatProperties2, o.physical, info, properties)

	count := a.words(0)
	a.call(registry.VkGetPhysicalDeviceQueueFamilyProperties, o.physical, count, 0)
	n := int(load32(count))
	families := a.room(n * queueFamily)
	a.call(registry.VkGetPhysicalDeviceQueueFamilyProperties, o.physical, count, families)
	for i := range n {
		if flags := load32(families + uint64(i*queueFamily)); flags == 0 || flags&^0xf != 0 {
			t.Errorf("family %d: flags %#x", i, flags)
		}
	}
	a.call(registry.VkDestroyInstance, o.instance, 0)
}

// Host clocks are of another machine.
func TestCalibratedTimestamps(t *testing.T) {
	a := newApp(t, withWorker(t))
	o := a.everything()
	if !slices.Contains(o.extensions, "VK_EXT_calibrated_timestamps") {
		t.Skip("not offered")
	}
	count, domains := a.words(0), a.words(^uint64(0))
	a.must(registry.VkGetPhysicalDeviceCalibrateableTimeDomainsEXT, o.physical, count, 0)
	if n := load32(count); n != 1 {
		t.Fatalf("%d time domains", n)
	}
	a.must(registry.VkGetPhysicalDeviceCalibrateableTimeDomainsEXT, o.physical, count, domains)
	if domain := load32(domains); domain != 0 {
		t.Errorf("time domain %d", domain)
	}
	store32(count, 0)
	if r := a.call(registry.VkGetPhysicalDeviceCalibrateableTimeDomainsEXT, o.physical, count, domains); r != incomplete || load32(count) != 0 {
		t.Errorf("no room: VkResult %d, %d", r, load32(count))
	}
	device, r := a.createDevice(o, 0)
	if r != success {
		t.Fatal(r)
	}
	const sCalibrated = 1000184000
	last := uint64(0)
	for range 3 {
		stamp, deviation := a.words(0), a.words(0)
		a.must(registry.VkGetCalibratedTimestampsEXT, device, 1, a.words(sCalibrated, 0, 0), stamp, deviation)
		if load64(stamp) <= last {
			t.Errorf("%d after %d", load64(stamp), last)
		}
		last = load64(stamp)
	}
	a.call(registry.VkDestroyDevice, device, 0)
	a.call(registry.VkDestroyInstance, o.instance, 0)
}
