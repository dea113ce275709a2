// SPDX-License-Identifier: Apache-2.0

//go:build cgo

// Command libvulkan_memspan is memspan's Vulkan driver as the library that the
// Vulkan loader opens in an application (go build -buildmode=c-shared; `make
// build` does it). It connects when the application first needs a GPU; where,
// the environment says (package wire/dial), else this user's own daemon.
//
// MEMSPAN_TRACE=FILE, or - for the standard error, prints the calls and round
// trips of each command when the last instance is destroyed, and when the
// process exits.
package main

import (
	"context"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/memspan/memspan/vulkan/driver"
	"github.com/memspan/memspan/vulkan/icd"
	"github.com/memspan/memspan/wire/control"
	"github.com/memspan/memspan/wire/dial"
)

// connectTimeout bounds dialing and the start of a worker.
const connectTimeout = 30 * time.Second

func init() {
	// The variables that tune Go's runtime are the application's, which may be
	// in Go itself: they do not mean this library. The heap is small (mapped
	// memory is not in it), so collections may be rare; threads of the
	// application need a processor each while they are in here, but not a whole
	// machine's.
	debug.SetGCPercent(400)
	debug.SetMemoryLimit(math.MaxInt64)
	runtime.GOMAXPROCS(min(max(4, runtime.NumCPU()), 16))

	name := "?"
	if len(os.Args) > 0 {
		name = filepath.Base(os.Args[0])
	}
	logger := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})).With("driver", "memspan")
	out := trace(logger)
	d := driver.New(driver.Config{
		Dial:   func(ctx context.Context) (driver.Connection, error) { return connect(ctx, name) },
		Alloc:  icd.Alloc,
		Free:   icd.Free,
		Name:   name,
		Logger: logger,
		Trace:  out,
	})
	icd.Handle(d.Call)
	if out != nil {
		icd.AtExit(func() { _ = d.WriteTrace() }) // nobody is left to be told of an error
	}
}

func main() {}

func connect(ctx context.Context, name string) (driver.Connection, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	address, options, err := dial.Environment()
	if err != nil {
		return driver.Connection{}, err
	}
	options.Name, options.Plain = name, true
	c, err := dial.Dial(ctx, address, options)
	if err != nil {
		return driver.Connection{}, err
	}
	var started control.VulkanStarted
	if err := c.Ask(ctx, control.OpVulkan, control.Vulkan{Application: name, PID: os.Getpid()}, &started); err != nil {
		return driver.Connection{}, err
	}
	return driver.Connection{Wire: c.Wire, Files: c.Files != nil}, nil
}

// trace opens what MEMSPAN_TRACE names; nil without it.
func trace(logger *slog.Logger) io.Writer {
	switch path := os.Getenv("MEMSPAN_TRACE"); path {
	case "":
		return nil
	case "-":
		return os.Stderr
	default:
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
		if err != nil {
			logger.Warn("no trace", "error", err)
			return nil
		}
		return f
	}
}
