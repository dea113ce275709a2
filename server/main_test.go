// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"context"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/memspan/memspan/tier/vram"
	"github.com/memspan/memspan/vulkan/handover"
)

func TestMain(m *testing.M) {
	if os.Getenv(handover.WorkerVariable) == handover.WorkerValue {
		vulkanWorker()
		return
	}
	if os.Getenv(handover.WorkerVariable) == "1" {
		if err := vram.Worker(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Setenv("GORACE", "atexit_sleep_ms=0") // workers of a race build would wait a second at exit
	goleak.VerifyTestMain(m)
}
