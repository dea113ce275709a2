// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"log/slog"
	"time"
)

// A Config says how to serve an application. The zero value of a field means
// what its comment says.
type Config struct {
	Log *slog.Logger // 0: slog.Default

	Objects    int           // handles at a time; 0: 1 Mi
	QueueDepth int           // submissions of one queue under way; 0: 16 Ki
	Deadline   time.Duration // of the oldest submission of a queue, then the device counts as lost; 0: none
	Memory     int64         // bytes of device memory; 0: no limit
	// Device offers one GPU only: its index, the beginning of its UUID or a part
	// of its name; "": all.
	Device string
	// Report, if not nil, is told now and then, at most four times a second, what
	// GPU is in use and what is held. It must not wait for long.
	Report func(Usage)
	// HideHostCoherent tells the application of no memory that is coherent, and
	// HideImport shares none with it: for tests of what other drivers lack.
	HideHostCoherent, HideImport bool
	// Spin is for how long a submission is polled for its end before its queue's
	// goroutine is woken to wait for it; 0: 20 µs; negative: not at all.
	Spin time.Duration
}

// A Usage is what an application uses.
type Usage struct {
	Device  string // the name of the GPU, once there is one
	Memory  int64  // bytes of device memory
	Objects int    // handles
}

func (c Config) withDefaults() Config {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Objects == 0 {
		c.Objects = 1 << 20
	}
	if c.QueueDepth == 0 {
		c.QueueDepth = 16 << 10
	}
	if c.Spin == 0 {
		c.Spin = 20 * time.Microsecond
	}
	return c
}
