// SPDX-License-Identifier: Apache-2.0

//go:build !linux || novulkan || !(amd64 || arm64)

package vram

import (
	"context"
	"fmt"

	"github.com/memspan/memspan/internal/vk"
	"github.com/memspan/memspan/tier"
)

// errBuild says why this build has no workers.
var errBuild = func() error {
	_, err := vk.Devices()
	return fmt.Errorf("%w: %w", tier.ErrAbsent, err)
}()

// Worker fails in this build.
func Worker(context.Context) error { return errBuild }
