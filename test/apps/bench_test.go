// SPDX-License-Identifier: Apache-2.0

//go:build linux

package apps

import (
	"context"
	"encoding/json"
	"os/exec"
	"slices"
	"testing"
)

// TestBench runs 'memspan bench vulkan', whose application verifies what it
// copies, once in every way.
func TestBench(t *testing.T) {
	needs(t)
	program, err := built.memspan()
	check(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, "bench", "vulkan", "--pairs", "1", "--sizes", "256KiB", "--link", "1Gbit/1ms", "--json").Output()
	check(t, err)
	var rows []struct {
		Name string
		Ways map[string]struct{ Median, Ratio float64 }
	}
	check(t, json.Unmarshal(out, &rows))
	var names []string
	for _, r := range rows {
		names = append(names, r.Name)
		for _, way := range []string{"native", "one machine", "no import", "TCP", "1Gbit/1ms"} {
			if c := r.Ways[way]; !(c.Median > 0) || !(c.Ratio > 0) {
				t.Errorf("%s, %s: %+v", r.Name, way, c)
			}
		}
	}
	for _, name := range []string{"empty submit and wait", "fence status", "write 256 KiB, mapped anew", "read 256 KiB, kept mapped"} {
		if !slices.Contains(names, name) {
			t.Errorf("there is no row %q among %q", name, names)
		}
	}
}
