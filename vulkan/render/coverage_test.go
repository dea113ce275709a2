// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"slices"
	"testing"

	"github.com/memspan/memspan/internal/vk"
	"github.com/memspan/memspan/vulkan/registry"
)

// names asks for the names of extensions.
func (c *client) names(command registry.Index, args ...uint64) []string {
	c.t.Helper()
	count := c.mem(0)
	c.do(command, append(slices.Clone(args), count, 0)...)
	array := c.mem(make([]uint64, (word(count)+1)*extensionProperties/8)...)
	c.do(command, append(slices.Clone(args), count, array)...)
	var list []string
	for i := range word(count) {
		list = append(list, (structure(array) + structure(i*extensionProperties)).text())
	}
	return list
}

// texts returns the address of an array of strings.
func (c *client) texts(list []string) uint64 {
	words := []uint64{}
	for _, s := range list {
		b := append([]byte(s), 0)
		c.keep = append(c.keep, b)
		words = append(words, address(&b[0]))
	}
	return c.mem(append(words, 0)...)
}

// The driver has every command of what is offered, by one of its names.
func TestOfferedCommandsAreThere(t *testing.T) {
	c := begin(t, Config{})
	ofInstance := c.names(registry.VkEnumerateInstanceExtensionProperties, 0)
	app := c.mem(0, 0, 0, 0, 0, uint64(vk.MakeVersion(1, 3))<<32)
	instance := c.made(registry.VkInstance, registry.VkCreateInstance,
		c.mem(1, 0, 0, app, 0, 0, uint64(len(ofInstance)), c.texts(ofInstance)), 0)
	count, out := c.mem(1), c.mem(c.handle(registry.VkPhysicalDevice))
	c.do(registry.VkEnumeratePhysicalDevices, instance, count, out)
	gpu := word(out)
	ofDevice := c.names(registry.VkEnumerateDeviceExtensionProperties, gpu, 0)
	queue := c.mem(2, 0, 0, 1, c.mem(0))
	made := c.made(registry.VkDevice, registry.VkCreateDevice, gpu,
		c.mem(3, 0, 1<<32, queue, 0, 0, uint64(len(ofDevice)), c.texts(ofDevice), 0), 0)
	properties := c.mem(make([]uint64, 110)...)
	c.do(registry.VkGetPhysicalDeviceProperties, gpu, properties)
	version := structure(properties).u32(0)
	c.stopServing()

	n := 0
	for i := range registry.Commands {
		command := &registry.Commands[i]
		core := command.Core > 0 && uint32(vk.MakeVersion(1, uint32(command.Core)-10)) <= version
		if !core && !slices.ContainsFunc(command.Extensions, func(x string) bool {
			return slices.Contains(ofInstance, x) || slices.Contains(ofDevice, x)
		}) {
			continue
		}
		n++
		var first *object
		switch command.First {
		case registry.None:
		case registry.VkInstance:
			first = c.r.table.find(idOf(registry.VkInstance, instance))
		case registry.VkPhysicalDevice:
			first = c.r.table.find(idOf(registry.VkPhysicalDevice, gpu))
		default:
			first = c.r.table.find(idOf(registry.VkDevice, made))
		}
		if command.Name != "vkGetInstanceProcAddr" && c.r.proc(i, first) == 0 {
			t.Errorf("the driver has no %s", command.Name)
		}
	}
	t.Logf("%d commands", n)
}
