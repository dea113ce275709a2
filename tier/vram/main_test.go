// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package vram

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"testing"

	"go.uber.org/goleak"
)

// TestMain is a worker's main function too: tests start this program as one.
func TestMain(m *testing.M) {
	if os.Getenv("MEMSPAN_WORKER") == "1" {
		if len(os.Args) > 1 {
			os.Exit(badWorker(os.Args[1]))
		}
		if err := Worker(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	// Workers of a race build would wait a second at exit.
	os.Setenv("GORACE", "atexit_sleep_ms=0")
	goleak.VerifyTestMain(m)
}

var discard = slog.New(slog.DiscardHandler)

// needVulkan fails the test where there is no Vulkan, unless the environment
// says that there is none.
func needVulkan(tb testing.TB, err error) {
	tb.Helper()
	if err == nil {
		return
	}
	if os.Getenv("MEMSPAN_TEST_NO_VULKAN") == "1" {
		tb.Skip(err)
	}
	tb.Fatal(err)
}

// startTest starts a tier whose worker is this program.
func startTest(tb testing.TB, cfg Config) *Tier {
	tb.Helper()
	self, err := os.Executable()
	if err != nil {
		tb.Fatal(err)
	}
	cfg.Command = []string{self}
	t, err := Start(tb.Context(), cfg)
	needVulkan(tb, err)
	tb.Cleanup(func() { t.Close() })
	return t
}
