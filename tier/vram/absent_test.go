// SPDX-License-Identifier: Apache-2.0

//go:build !linux || novulkan || !(amd64 || arm64)

package vram

import (
	"errors"
	"testing"

	"github.com/memspan/memspan/tier"
)

func TestAbsent(t *testing.T) {
	_, startErr := Start(t.Context(), Config{})
	_, probeErr := Probe(t.Context(), Config{})
	for _, err := range []error{startErr, probeErr, Worker(t.Context())} {
		if !errors.Is(err, tier.ErrAbsent) {
			t.Errorf("%v, want ErrAbsent", err)
		}
	}
}
