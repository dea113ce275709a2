// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package vram

import (
	"testing"

	"github.com/memspan/memspan/tier"
	"github.com/memspan/memspan/tier/tiertest"
)

// modes are the paths that bytes take on different devices.
var modes = []struct {
	name string
	cfg  Config
}{
	{"Plain", Config{}},
	{"HideHostVisible", Config{HideHostVisible: true}},
	{"HideHostCoherent", Config{HideHostCoherent: true}},
	{"HideBoth", Config{HideHostVisible: true, HideHostCoherent: true}},
}

func TestConformance(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			cfg := mode.cfg
			cfg.Budget = 40 << 20
			tiertest.Run(t, func(t *testing.T) tier.Tier { return startTest(t, cfg) })
		})
	}
}
