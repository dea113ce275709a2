// SPDX-License-Identifier: Apache-2.0

package vram

import (
	"log/slog"

	"github.com/memspan/memspan/internal/vk"
)

// Config says how to start the tier. The zero value is usable in a program
// whose argument "worker" calls [Worker].
type Config struct {
	// Command is the argv that starts a worker: a program that calls Worker.
	// Its environment has MEMSPAN_WORKER=1. Empty: this executable with the
	// argument "worker".
	Command []string
	// Device chooses the GPU: its index, the beginning of its UUID, or a part
	// of its name, in either case. Empty: the first discrete GPU, else the
	// first device.
	Device string
	// Budget is the most device memory to take, in bytes, at least 1 MiB; 0
	// means 80 % of the device-local heap.
	Budget int64
	// HideHostVisible treats device-local memory as if the CPU could not map
	// it, and HideHostCoherent treats mapped memory as if it were not coherent:
	// tests take those paths so on drivers with one memory type.
	HideHostVisible, HideHostCoherent bool
	// Logger receives what workers say and how they end; nil discards it.
	Logger *slog.Logger
	// Lost, if not nil, is called once per dead worker, after the calls under
	// way have failed and before any call can succeed on its successor. It runs
	// on the tier's own goroutine: a worker is started only after it returns.
	Lost func()
}

// A DeviceInfo describes one Vulkan device: names, versions, heaps, memory
// types.
type DeviceInfo = vk.DeviceInfo

// Stats counts what a tier has done since Start, over all its workers.
type Stats struct {
	Mapped  int64 `json:"mapped"`  // bytes copied through mapped memory
	Staged  int64 `json:"staged"`  // bytes copied through staging chunks and the queue
	Device  int64 `json:"device"`  // bytes copied or filled on the device
	Submits int64 `json:"submits"` // submissions to the queue
	Flushes int64 `json:"flushes"` // flushes and invalidations of non-coherent memory
	Workers int64 `json:"workers"` // workers started
	Slabs   int64 `json:"slabs"`   // slabs held now
	Slots   int64 `json:"slots"`   // slots in use now
}
