// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/memspan/memspan/vulkan/handover"
)

func TestMain(m *testing.M) {
	if os.Getenv(handover.WorkerVariable) == handover.WorkerValue {
		vulkanWorker()
		return
	}
	goleak.VerifyTestMain(m)
}
