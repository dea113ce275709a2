// SPDX-License-Identifier: Apache-2.0

package disk_test

import (
	"testing"

	"github.com/memspan/memspan/tier"
	"github.com/memspan/memspan/tier/disk"
	"github.com/memspan/memspan/tier/tiertest"
)

func TestConformance(t *testing.T) {
	tiertest.Run(t, func(t *testing.T) tier.Tier {
		return openTier(t, disk.Config{Dir: t.TempDir(), Budget: 32 << 20})
	})
}
