// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/memspan/memspan/server"
)

// vulkanFlags say how a daemon lends its GPUs to applications.
type vulkanFlags struct {
	off      bool
	workers  int
	memory   size
	deadline time.Duration
	hide     []string
}

func (f *vulkanFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.BoolVar(&f.off, "no-vulkan", false, "lend no GPU to Vulkan applications")
	flags.IntVar(&f.workers, "vulkan-workers", 32, "most Vulkan `applications` at a time")
	flags.Var(&f.memory, "vulkan-memory", "most device memory that one Vulkan application may hold (default what the device gives)")
	flags.DurationVar(&f.deadline, "vulkan-deadline", 0, "`duration` after which a Vulkan application whose submission still runs loses its device (default never)")
	flags.StringSliceVar(&f.hide, "vulkan-hide", nil, "treat as absent: host-coherent, import")
}

// config turns the flags into the server's configuration, nil if no GPU is to
// be lent.
func (f *vulkanFlags) config() (*server.VulkanConfig, error) {
	switch {
	case f.workers <= 0:
		return nil, usagef("--vulkan-workers %d: want a positive number", f.workers)
	case f.deadline < 0:
		return nil, usagef("--vulkan-deadline %v: want a positive duration, like 10s", f.deadline)
	}
	for _, what := range f.hide {
		if what != "host-coherent" && what != "import" {
			return nil, usagef("--vulkan-hide %s: want host-coherent or import", what)
		}
	}
	if f.off {
		return nil, nil
	}
	cfg := &server.VulkanConfig{
		Workers:          f.workers,
		Memory:           int64(f.memory),
		Deadline:         f.deadline,
		HideHostCoherent: slices.Contains(f.hide, "host-coherent"),
		HideImport:       slices.Contains(f.hide, "import"),
	}
	if dir, err := os.UserCacheDir(); err == nil { // else drivers compile anew for each application
		cfg.ShaderCache = filepath.Join(dir, "memspan", "shaders")
	}
	return cfg, nil
}
