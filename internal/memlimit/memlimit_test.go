// SPDX-License-Identifier: Apache-2.0

package memlimit_test

import (
	"os"
	"testing"
	"testing/fstest"

	"github.com/memspan/memspan/internal/memlimit"
)

func TestRead(t *testing.T) {
	const meminfo = "MemTotal:       16000000 kB\nMemFree:          100 kB\nMemAvailable:    8000000 kB\n"
	const available = 8000000 << 10
	for _, tc := range []struct {
		name   string
		files  map[string]string
		want   memlimit.Memory
		usable int64
	}{
		{"nothing can be read", nil, memlimit.Memory{}, 0},
		{"no groups", map[string]string{"proc/meminfo": meminfo}, memlimit.Memory{Available: available}, available},
		{"no limit", map[string]string{
			"proc/meminfo":                 meminfo,
			"proc/self/cgroup":             "0::/a\n",
			"sys/fs/cgroup/a/memory.max":   "max\n",
			"sys/fs/cgroup/a/b/memory.max": "4096\n", // a child's
		}, memlimit.Memory{Available: available}, available},
		{"the process's own group", map[string]string{
			"proc/meminfo":               meminfo,
			"proc/self/cgroup":           "0::/a\n",
			"sys/fs/cgroup/a/memory.max": "1048576\n",
		}, memlimit.Memory{Available: available, Group: 1 << 20}, 1 << 20},
		{"a group between", map[string]string{
			"proc/self/cgroup":               "0::/a/b/c\n",
			"sys/fs/cgroup/a/b/c/memory.max": "max\n",
			"sys/fs/cgroup/a/b/memory.max":   "2097152\n",
			"sys/fs/cgroup/a/memory.max":     "4194304\n",
		}, memlimit.Memory{Group: 2 << 20}, 2 << 20},
		{"the outermost group", map[string]string{
			"proc/meminfo":                   meminfo,
			"proc/self/cgroup":               "0::/a/b/c\n",
			"sys/fs/cgroup/a/b/c/memory.max": "8388608\n",
			"sys/fs/cgroup/memory.max":       "4194304\n", // a container's root
		}, memlimit.Memory{Available: available, Group: 4 << 20}, 4 << 20},
		{"more than there is", map[string]string{
			"proc/meminfo":               meminfo,
			"proc/self/cgroup":           "0::/a\n",
			"sys/fs/cgroup/a/memory.max": "1099511627776\n",
		}, memlimit.Memory{Available: available, Group: 1 << 40}, available},
		{"above the namespace", map[string]string{
			"proc/self/cgroup":         "0::/../other\n",
			"sys/fs/cgroup/memory.max": "4096\n",
		}, memlimit.Memory{Group: 4096}, 4096},
		{"version 1", map[string]string{
			"proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/a/b\n0::/a/b\n",
			"sys/fs/cgroup/memory/a/b/memory.limit_in_bytes": "9223372036854771712\n",
			"sys/fs/cgroup/memory/a/memory.limit_in_bytes":   "4194304\n",
			"sys/fs/cgroup/memory/x/memory.limit_in_bytes":   "4096\n",
		}, memlimit.Memory{Group: 4 << 20}, 4 << 20},
		{"nonsense", map[string]string{
			"proc/meminfo":               "MemAvailable: much kB\nMemAvailable:",
			"proc/self/cgroup":           "0\n\n0::\n0::/a\n",
			"sys/fs/cgroup/a/memory.max": "-5\n",
		}, memlimit.Memory{}, 0},
	} {
		root := make(fstest.MapFS)
		for name, text := range tc.files {
			root[name] = &fstest.MapFile{Data: []byte(text)}
		}
		got := memlimit.Read(root)
		if got != tc.want || got.Usable() != tc.usable {
			t.Errorf("%s: %+v, usable %d; want %+v, usable %d", tc.name, got, got.Usable(), tc.want, tc.usable)
		}
	}
}

// This machine's files have the form that Read expects.
func TestReadHere(t *testing.T) {
	if _, err := os.Stat("/proc/meminfo"); err != nil {
		t.Skip(err)
	}
	if m := memlimit.Read(os.DirFS("/")); m.Available <= 0 || m.Group < 0 {
		t.Errorf("%+v", m)
	}
}
