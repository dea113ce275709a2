// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/internal/memlimit"
	"github.com/memspan/memspan/internal/userfault"
	"github.com/memspan/memspan/tier"
	"github.com/memspan/memspan/tier/vram"
)

// Bounds on what doctor waits for: a driver may compile shaders when it is
// first loaded, a daemon answers at once.
const (
	deviceTimeout = 30 * time.Second
	daemonTimeout = 10 * time.Second
)

// diagnose runs all checks, those of a data and a shared directory if they are
// named. Each stands alone, so that one that fails hides no other.
func diagnose(ctx context.Context, opts *options, data, shared string) *diagnosis {
	d := &diagnosis{OK: true, Version: thisVersion(), Devices: []vram.DeviceInfo{}}
	memory := memlimit.System()
	if peersAreKnown {
		d.checkDaemonsNeeds(ctx, memory)
	} else { // a system that runs no daemon
		d.Checks = append(d.Checks, checkMemory(memory))
	}
	if data != "" {
		d.Checks = append(d.Checks, checkData(data))
	}
	if shared != "" {
		d.Checks = append(d.Checks, checkShared(shared))
	}
	d.Checks = append(d.Checks, checkDaemon(ctx, opts))
	for _, c := range d.Checks {
		if c.State == stateEssential {
			d.OK = false
		}
	}
	return d
}

// checkDaemonsNeeds looks at what the daemon and the applications it serves need.
func (d *diagnosis) checkDaemonsNeeds(ctx context.Context, memory memlimit.Memory) {
	devices, vulkan := checkVulkan(ctx)
	d.Devices = append(d.Devices, devices...)
	d.Checks = append(d.Checks,
		vulkan,
		checkDriver(),
		checkImport(devices),
		checkSharing(),
		checkTracking(),
		checkKernel(),
		checkMemory(memory),
		checkControlGroup(memory),
		checkLimit("open files", "Max open files", 1024, 4096,
			"each direct mapping keeps a descriptor open", "ulimit -n 65536"),
		checkLimit("locked memory", "Max locked memory", 64<<10, 0,
			"GPU drivers pin memory they import", "ulimit -l unlimited"),
		checkNumber("memory maps", "/proc/sys/vm/max_map_count", 65530,
			"each mapping takes up to three", "sudo sysctl -w vm.max_map_count=262144"),
		checkNumber("TCP receive buffer", "/proc/sys/net/ipv4/tcp_rmem", 4<<20,
			"more keeps long links busy", "sudo sysctl -w net.ipv4.tcp_rmem='4096 131072 33554432'"),
		checkNumber("TCP send buffer", "/proc/sys/net/ipv4/tcp_wmem", 4<<20,
			"more keeps long links busy", "sudo sysctl -w net.ipv4.tcp_wmem='4096 65536 33554432'"),
	)
}

func checkVulkan(ctx context.Context) ([]vram.DeviceInfo, check) {
	ctx, cancel := context.WithTimeout(ctx, deviceTimeout)
	defer cancel()
	c := check{Name: "Vulkan", State: stateAbsent, Meaning: "no VRAM tier: spans live in RAM"}
	devices, err := vram.Probe(ctx, vram.Config{})
	switch {
	case err == nil && len(devices) > 0:
		c.State, c.Found = stateOK, countOf(len(devices), "device")
		c.Meaning = "spans can live in device memory"
	case err == nil:
		c.Found = "a loader without devices"
		c.Fix = "sudo apt-get install mesa-vulkan-drivers, or your GPU vendor's driver"
	case errors.Is(err, tier.ErrAbsent):
		c.Found, c.Reason = "none", err.Error()
		c.Fix = "sudo apt-get install libvulkan1 mesa-vulkan-drivers"
	default:
		c.Found, c.Reason = "driver fails", err.Error()
		c.Fix = "see why the driver fails: memspan serve --log-level debug"
	}
	return devices, c
}

// checkDriver looks for the Vulkan driver that applications load.
func checkDriver() check {
	if _, err := findDriver(""); err != nil {
		return check{Name: "Vulkan driver", State: stateAbsent, Found: "none", Meaning: "no Vulkan application here can use a GPU elsewhere",
			Reason: err.Error(), Fix: "make build, with a C compiler"}
	}
	return check{Name: "Vulkan driver", State: stateOK, Found: "built", Meaning: "memspan run starts Vulkan applications on any GPU"}
}

// checkImport says how the memory that Vulkan applications on this machine map
// gets to its devices.
func checkImport(devices []vram.DeviceInfo) check {
	c := check{Name: "host memory import", State: stateAbsent, Found: "no device", Meaning: "no GPU here to lend"}
	n := 0
	for _, d := range devices {
		if d.ImportsHostMemory {
			n++
		}
	}
	switch {
	case len(devices) == 0:
	case n == len(devices):
		c.State, c.Found, c.Meaning = stateOK, "works", "what Vulkan applications here map is the device's memory: no copies"
	default:
		c.State, c.Found = stateLimited, fmt.Sprintf("%d of %s", n, countOf(len(devices), "device"))
		c.Meaning = "what Vulkan applications here map is copied, changed bytes only"
		c.Reason = "no VK_EXT_external_memory_host: " + strings.Join(without(devices), ", ")
	}
	return c
}

// without returns the names of the devices that cannot import memory.
func without(devices []vram.DeviceInfo) (names []string) {
	for _, d := range devices {
		if !d.ImportsHostMemory {
			names = append(names, d.Name)
		}
	}
	return names
}

func countOf(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// checkSharing makes sealed shared memory and maps it once more, as a client
// does.
func checkSharing() check {
	c := check{Name: "memfd with seals", State: stateEssential, Meaning: "no memory can be shared between processes",
		Fix: "use Linux 3.17 or later, and a sandbox that allows memfd_create"}
	region, err := memfd.Create("memspan-doctor", int64(os.Getpagesize()))
	if err != nil {
		c.Found, c.Reason = "none", err.Error()
		return c
	}
	defer region.Close()
	f, err := region.Reopen(false)
	if err != nil {
		// Everything but read-only mappings needs no /proc.
		c.State, c.Found, c.Reason = stateLimited, "in part", err.Error()
		c.Meaning, c.Fix = "read-only mappings cannot be shared", "mount -t proc proc /proc"
		return c
	}
	f.Close()
	return check{Name: c.Name, State: stateOK, Found: "works", Meaning: "programs on this machine map spans without a copy"}
}

func checkTracking() check {
	c := check{Name: "userfaultfd, PAGEMAP_SCAN", State: stateOK, Found: "works",
		Meaning: "remote mappings find written pages at once"}
	if err := userfault.Probe(); err != nil {
		c.State, c.Found, c.Reason = stateLimited, "none", err.Error()
		c.Meaning = "remote mappings compare all their bytes to find written ones"
		c.Fix = "use Linux 6.7 or later, and a sandbox that allows userfaultfd"
	}
	return c
}

func checkKernel() check {
	release := readLine("/proc/sys/kernel/osrelease")
	c := check{Name: "kernel", State: stateOK, Found: release, Meaning: "has all that memspan uses"}
	major, minor, ok := kernelVersion(release)
	switch {
	case !ok:
		c.State, c.Found, c.Meaning = stateLimited, "unknown: "+release, "the other checks tell"
	case major < 5:
		c.State, c.Meaning, c.Fix = stateLimited, "older than any memspan is tested on", "use Linux 5.10 or later"
	case major < 6 || major == 6 && minor < 7:
		c.State, c.Meaning, c.Fix = stateLimited, "has no PAGEMAP_SCAN", "use Linux 6.7 or later"
	}
	return c
}

// kernelVersion reads the beginning of a release like "6.1.0-18-amd64".
func kernelVersion(release string) (major, minor int, ok bool) {
	n, _ := fmt.Sscanf(release, "%d.%d", &major, &minor)
	return major, minor, n == 2
}

// smallMemory is less than a daemon and one large span need, in bytes.
const smallMemory = 256 << 20

func checkMemory(memory memlimit.Memory) check {
	c := check{Name: "available memory", State: stateOK, Meaning: "serve takes half of it for spans, unless --host-budget says otherwise"}
	switch n := memory.Available; {
	case n == 0:
		c.State, c.Found = stateLimited, "unknown"
		c.Fix = "memspan serve --host-budget SIZE"
	case n < smallMemory:
		c.State, c.Found = stateLimited, humanSize(n)
		c.Fix = "end other programs"
	default:
		c.Found = humanSize(n)
	}
	return c
}

func checkControlGroup(memory memlimit.Memory) check {
	c := check{Name: "memory limit (cgroup)", State: stateOK, Found: "none", Meaning: "only the machine limits the daemon"}
	if memory.Group > 0 {
		c.Found, c.Meaning = humanSize(memory.Group), "the daemon stays below half of it by itself"
		if memory.Group < smallMemory {
			c.State, c.Fix = stateLimited, "raise MemoryMax= of the service, or --memory of the container"
		}
	}
	return c
}

// checkLimit looks at a resource limit of this process: below need memspan
// cannot do much, below want it is limited. Want 0: only need counts.
func checkLimit(name, label string, need, want int64, meaning, fix string) check {
	c := check{Name: name, State: stateOK, Found: "unknown", Meaning: meaning}
	soft, ok := processLimit(readFile("/proc/self/limits"), label)
	switch {
	case !ok:
		return c
	case soft < 0:
		c.Found = "unlimited"
		return c
	}
	c.Found = strconv.FormatInt(soft, 10)
	if soft < max(need, want) {
		c.State, c.Fix = stateLimited, fix
	}
	return c
}

// processLimit finds the soft limit of a line of /proc/PID/limits; unlimited
// is -1.
func processLimit(limits, label string) (n int64, ok bool) {
	for line := range strings.Lines(limits) {
		rest, found := strings.CutPrefix(line, label)
		if !found {
			continue
		}
		fields := strings.Fields(rest)
		if len(fields) == 0 {
			return 0, false
		}
		if fields[0] == "unlimited" {
			return -1, true
		}
		n, err := strconv.ParseInt(fields[0], 10, 64)
		return n, err == nil
	}
	return 0, false
}

// checkNumber looks at a kernel setting whose last number should be at least
// want.
func checkNumber(name, path string, want int64, meaning, fix string) check {
	c := check{Name: name, State: stateOK, Found: "unknown", Meaning: meaning}
	fields := strings.Fields(readLine(path))
	if len(fields) == 0 {
		return c
	}
	n, err := strconv.ParseInt(fields[len(fields)-1], 10, 64)
	if err != nil {
		return c
	}
	c.Found = strconv.FormatInt(n, 10)
	if n < want {
		c.State, c.Fix = stateLimited, fix
	}
	return c
}

func checkDaemon(ctx context.Context, opts *options) check {
	ctx, cancel := context.WithTimeout(ctx, daemonTimeout)
	defer cancel()
	c := check{Name: "daemon", State: stateAbsent, Meaning: "no spans here yet", Fix: "memspan serve"}
	client, err := opts.dial(ctx)
	if err != nil {
		c.Found, c.Reason = "no answer", err.Error()
		return c
	}
	defer client.Close()
	return check{Name: c.Name, State: stateOK,
		Found:   fmt.Sprintf("answers, protocol %d", thisVersion().Protocol),
		Meaning: "holds spans in " + client.Tiers().String()}
}

func readFile(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return string(data)
}

func readLine(path string) string { return strings.TrimSpace(readFile(path)) }
