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

// A benchRow is one that 'memspan bench vulkan --json' prints.
type benchRow struct {
	Name string
	Ways map[string]struct{ Median, Ratio float64 }
}

func bench(t *testing.T, args ...string) []benchRow {
	t.Helper()
	needs(t)
	program, err := built.memspan()
	check(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, append([]string{"bench", "vulkan", "--pairs", "1", "--json"}, args...)...).Output()
	check(t, err)
	var rows []benchRow
	check(t, json.Unmarshal(out, &rows))
	return rows
}

// TestBench runs 'memspan bench vulkan', whose application verifies what it
// copies, once in every way.
func TestBench(t *testing.T) {
	var names []string
	for _, r := range bench(t, "--sizes", "256KiB", "--link", "1Gbit/1ms") {
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

// TestBenchOfAnApplication measures another program: it makes round trips over
// TCP, and none natively.
func TestBenchOfAnApplication(t *testing.T) {
	app := program(t, "compute", computeShader)
	rows := make(map[string]benchRow)
	for _, r := range bench(t, "--", app, "mapped") {
		rows[r.Name] = r
	}
	if c := rows["wall"].Ways["TCP"]; !(c.Median > 0) || !(c.Ratio > 0) {
		t.Errorf("wall time over TCP: %+v", c)
	}
	trips, sent := rows["round trips"].Ways, rows["sent"].Ways
	if trips["TCP"].Median < 1 || trips["native"].Median != 0 || !(sent["TCP"].Median > 0) {
		t.Errorf("round trips %+v, sent %+v", trips, sent)
	}
}
