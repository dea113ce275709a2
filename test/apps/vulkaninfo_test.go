// SPDX-License-Identifier: Apache-2.0

//go:build linux

package apps

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/memspan/memspan/vulkan/registry"
)

// What vulkaninfo may say differently:
//   - extensions that memspan does not carry (vulkan/registry/extensions.txt
//     says why), and the structures that only they define: windows, and memory,
//     fences and semaphores shared outside Vulkan;
//   - presentation by device groups, which is part of the first;
//   - features that are hidden because their memory or addresses could not be
//     carried;
//   - how much of a heap is in use just now.

// loaderOwn are extensions that the loader or debugging layers answer.
var loaderOwn = []string{"VK_KHR_portability_enumeration", "VK_EXT_debug_utils", "VK_EXT_debug_report"}

// hiddenFeatures are never offered.
var hiddenFeatures = []string{
	"protectedMemory", "bufferDeviceAddressCaptureReplay",
	"accelerationStructureCaptureReplay", "rayTracingPipelineShaderGroupHandleCaptureReplay",
	"rayTracingPipelineShaderGroupHandleCaptureReplayMixed",
}

var changing = regexp.MustCompile(`(heapBudget|heapUsage|budget|usage) +=`)

// TestVulkaninfo compares all that vulkaninfo says about the device: limits,
// features, formats, queue families, memory.
func TestVulkaninfo(t *testing.T) {
	needs(t, "vulkaninfo")
	d := serve(t, nil)
	native := d.run(t, "native", "vulkaninfo")
	for _, transport := range transports {
		ours := d.run(t, transport, "vulkaninfo")
		if want, got := carried(native), carried(ours); got != want {
			t.Errorf("%s:\n%s", transport, difference(want, got))
		}
		for name := range offered(ours) {
			if !carriedExtension(name) {
				t.Errorf("%s: %s is offered", transport, name)
			}
		}
	}
}

var extensionLine = regexp.MustCompile(`^\t(VK_[A-Za-z0-9_]+) +: extension revision`)

func offered(text string) map[string]bool {
	list := make(map[string]bool)
	for line := range strings.Lines(text) {
		if m := extensionLine.FindStringSubmatch(line); m != nil {
			list[m[1]] = true
		}
	}
	return list
}

func carriedExtension(name string) bool {
	_, ok := registry.ExtensionByName(name)
	return ok || slices.Contains(loaderOwn, name)
}

// carried returns the lines of what vulkaninfo printed that must be the same.
func carried(text string) string {
	var b strings.Builder
	skip, previous := false, ""
	for line := range strings.Lines(text) {
		name := strings.TrimSpace(line)
		switch {
		case skip && name == "":
			skip = false
			continue
		case strings.HasPrefix(name, "Present Capabilities"):
			skip = true
		case strings.HasPrefix(name, "VkPhysicalDevice") && strings.HasSuffix(name, ":"):
			skip = registry.StructByName(strings.TrimSuffix(name, ":")) == registry.None
		}
		drop := skip || changing.MatchString(line)
		if m := extensionLine.FindStringSubmatch(line); m != nil {
			drop = drop || !carriedExtension(m[1])
		}
		// The numbers of extensions, and the lines under them, which are as long.
		drop = drop || strings.Contains(line, "Extensions: count =") && !strings.HasPrefix(line, "\t") ||
			strings.Contains(previous, "Extensions: count =") && strings.HasPrefix(name, "===")
		for _, feature := range hiddenFeatures {
			drop = drop || strings.HasPrefix(name, feature+" ")
		}
		previous = line
		if !drop {
			b.WriteString(line)
		}
	}
	return b.String()
}

// TestVulkaninfoJSON compares the Vulkan profile of the device: what
// applications that test for one ask.
func TestVulkaninfoJSON(t *testing.T) {
	needs(t, "vulkaninfo")
	d := serve(t, nil)
	profile := func(transport string) map[string]any {
		dir := t.TempDir()
		d.runIn(t, dir, nil, transport, "vulkaninfo", "-j", "-o", "profile.json")
		data, err := os.ReadFile(filepath.Join(dir, "profile.json"))
		check(t, err)
		var p map[string]any
		check(t, json.Unmarshal(data, &p))
		return p
	}
	native := profile("native")
	for _, transport := range transports {
		compareJSON(t, transport, "", native, profile(transport))
	}
}

// compareJSON compares two values at a path.
func compareJSON(t *testing.T, transport, path string, native, ours any) {
	t.Helper()
	a, isObject := native.(map[string]any)
	z, also := ours.(map[string]any)
	if !isObject || !also {
		if fmt.Sprint(native) != fmt.Sprint(ours) {
			t.Errorf("%s: %s: native %v, memspan %v", transport, path, native, ours)
		}
		return
	}
	for name := range z {
		if _, ok := a[name]; !ok {
			t.Errorf("%s: %s/%s: only with memspan", transport, path, name)
		}
	}
	for name, value := range a {
		switch {
		case strings.HasSuffix(path, "/extensions") && !carriedExtension(name),
			strings.HasPrefix(name, "VkPhysicalDevice") && registry.StructByName(name) == registry.None,
			slices.Contains(hiddenFeatures, name):
			continue
		}
		compareJSON(t, transport, path+"/"+name, value, z[name])
	}
}
