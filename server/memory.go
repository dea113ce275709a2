// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"os"
	"strconv"
	"strings"
)

// fallbackMemory is assumed where the system does not tell.
const fallbackMemory = 2 << 30

// availableMemory returns the bytes of RAM that this process may hope for: what
// the kernel calls available, or the control group's limit if that is less.
func availableMemory() int64 {
	available := int64(fallbackMemory)
	if data, err := os.ReadFile("/proc/meminfo"); err == nil {
		if n, ok := meminfo(data, "MemAvailable:"); ok {
			available = n
		}
	}
	if n, ok := cgroupLimit(); ok {
		available = min(available, n)
	}
	return available
}

// meminfo finds a field of /proc/meminfo, in bytes.
func meminfo(data []byte, field string) (n int64, ok bool) {
	for line := range bytes.Lines(data) {
		words := strings.Fields(string(line))
		if len(words) >= 2 && words[0] == field {
			kib, err := strconv.ParseInt(words[1], 10, 64)
			return kib << 10, err == nil
		}
	}
	return 0, false
}

// cgroupLimit returns the memory limit of this process's control group, where
// one is set (cgroup v2, memory.max).
func cgroupLimit() (n int64, ok bool) {
	self, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return 0, false
	}
	for line := range bytes.Lines(self) {
		path, found := strings.CutPrefix(strings.TrimSpace(string(line)), "0::")
		if !found {
			continue
		}
		limit, err := os.ReadFile("/sys/fs/cgroup" + path + "/memory.max")
		if err != nil {
			return 0, false
		}
		n, err := strconv.ParseInt(strings.TrimSpace(string(limit)), 10, 64)
		return n, err == nil // "max" is no number
	}
	return 0, false
}
