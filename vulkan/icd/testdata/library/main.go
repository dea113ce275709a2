// SPDX-License-Identifier: Apache-2.0

//go:build cgo

// Command library is a driver that has every command of every extension, and fails them all.
package main

import (
	"os"

	"github.com/memspan/memspan/vulkan/icd"
	"github.com/memspan/memspan/vulkan/registry"
)

func init() {
	icd.Handle(func(command registry.Index, args *registry.Args) uint64 {
		if command == registry.VkGetDeviceProcAddr {
			return 1
		}
		return ^uint64(2) // VK_ERROR_INITIALIZATION_FAILED
	})
	icd.AtExit(func() { os.Stdout.WriteString("exits\n") })
}

func main() {}
