// SPDX-License-Identifier: Apache-2.0

// Package memlimit tells how much RAM a process may hope for: what the kernel
// calls available, and what the control groups around the process allow.
package memlimit

import (
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Memory is what the system says of its RAM, in bytes.
type Memory struct {
	Available int64 // that programs can have without swapping; 0: unknown
	Group     int64 // the least limit among the process's control group and those above it; 0: none
}

// Usable returns the less of both in bytes, or 0 if neither is known.
func (m Memory) Usable() int64 {
	if m.Available == 0 || m.Group != 0 && m.Group < m.Available {
		return m.Group
	}
	return m.Available
}

// Read reads it from below root, which is os.DirFS("/") on Linux: from
// /proc/meminfo, /proc/self/cgroup and the control groups of /sys/fs/cgroup. It
// never fails: what cannot be read is unknown, or no limit.
func Read(root fs.FS) Memory {
	return Memory{Available: available(root), Group: group(root)}
}

func available(root fs.FS) int64 {
	for line := range strings.Lines(read(root, "proc/meminfo")) {
		words := strings.Fields(line)
		if len(words) >= 2 && words[0] == "MemAvailable:" {
			kib, err := strconv.ParseInt(words[1], 10, 64)
			if err != nil || kib < 0 || kib > 1<<52 {
				return 0
			}
			return kib << 10
		}
	}
	return 0
}

// v1Unlimited is below what version 1 shows for no limit, which is the largest
// number of whole pages.
const v1Unlimited = 1 << 62

// group returns the least limit of the process's groups. Limits nest: the
// process's own group may have none and the container around it one.
func group(root fs.FS) int64 {
	least := int64(0)
	for line := range strings.Lines(read(root, "proc/self/cgroup")) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3) // number:controllers:path
		if len(fields) != 3 {
			continue
		}
		mount, file := "sys/fs/cgroup", "memory.max" // version 2 has no controllers here
		if fields[1] != "" {
			if !slices.Contains(strings.Split(fields[1], ","), "memory") {
				continue
			}
			mount, file = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
		}
		// A path above the root of this process's namespace begins with /..
		for dir := path.Clean("/" + fields[2]); ; dir = path.Dir(dir) {
			text := strings.TrimSpace(read(root, path.Join(mount, dir, file)))
			n, err := strconv.ParseInt(text, 10, 64) // "max" is no number
			if err == nil && n > 0 && n < v1Unlimited && (least == 0 || n < least) {
				least = n
			}
			if dir == "/" {
				break
			}
		}
	}
	return least
}

func read(root fs.FS, name string) string {
	data, err := fs.ReadFile(root, name)
	if err != nil {
		return ""
	}
	return string(data)
}
