// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

func newBench(opts *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure against the native driver",
		Example: `  memspan bench vulkan
  memspan bench vulkan --pairs 21 --json`,
		Args: args(cobra.NoArgs, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return usagef("what is to be measured is missing: vulkan")
		},
	}
	cmd.AddCommand(newBenchVulkan(opts))
	return cmd
}

func newBenchVulkan(opts *options) *cobra.Command {
	var rounds int
	var sizes []string
	var server, manifest string
	var measure bool
	cmd := &cobra.Command{
		Use:   "vulkan",
		Short: "Measure a Vulkan application through memspan against the native driver",
		Long: `Vulkan runs one small application again and again, in turn with the native driver
and through memspan: on one machine with the device's own pages, on one machine
with pages kept in step, and over TCP on loopback. It prints medians, and the
median of the ratios of each round to the native one in it: rates are better
above 1, times below.

It starts daemons of its own. With --server the application runs on that server
too.`,
		Args: args(cobra.NoArgs, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			bytes := make([]int64, len(sizes))
			for i, s := range sizes {
				var n size
				if err := n.Set(s); err != nil || n < 4 || n%4 != 0 {
					return usagef("--sizes %s: want a multiple of 4 bytes, like 1MiB", s)
				}
				bytes[i] = int64(n)
			}
			if rounds < 1 {
				return usagef("--pairs %d: want a positive number", rounds)
			}
			if measure {
				m, err := measureVulkan(cmd.Context(), bytes)
				if err != nil {
					return err
				}
				return json.NewEncoder(cmd.OutOrStdout()).Encode(m)
			}
			return benchVulkan(cmd, opts, server, manifest, sizes, rounds)
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&rounds, "pairs", 5, "`rounds`, of each way in turn")
	flags.StringSliceVar(&sizes, "sizes", []string{"4KiB", "1MiB", "10MiB", "100MiB"}, "`bytes` of staging buffers")
	flags.StringVar(&server, "server", "", "another daemon's `address`, to be measured too")
	flags.StringVar(&manifest, "icd", "", "`file`: the manifest of memspan's Vulkan driver (default: the one beside this program)")
	flags.BoolVar(&measure, "measure", false, "be the application")
	flags.Lookup("measure").Hidden = true
	return cmd
}

// A measured is a figure of one run of the application.
type measured struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"` // µs, ms: less is better; MB/s: more is
}

// A way is one of those in which the application runs.
type way struct {
	name string
	env  []string // nil: as it is
}

// A benchRow is a figure in all ways.
type benchRow struct {
	Name string               `json:"name"`
	Unit string               `json:"unit"`
	Ways map[string]benchCell `json:"ways"`
}

// A benchCell is what one way came to.
type benchCell struct {
	Median float64 `json:"median"`
	// Ratio is the median of the ratios to the native driver in the same round,
	// between the smallest and the largest.
	Ratio float64 `json:"ratio"`
	Least float64 `json:"least"`
	Most  float64 `json:"most"`
}

func benchVulkan(cmd *cobra.Command, opts *options, server, manifest string, sizes []string, rounds int) (err error) {
	manifest, err = findDriver(manifest)
	if err != nil {
		return err
	}
	ways := []way{{name: "native"}}
	add := func(name, address string, o *options) error {
		env, err := o.applicationEnvironment(address, manifest)
		ways = append(ways, way{name, env})
		return err
	}
	for _, hide := range []string{"", "import"} {
		args := []string{"--no-vram", "--listen", "127.0.0.1:0", "--token-file", "token"}
		if hide != "" {
			args = append(args, "--vulkan-hide", hide)
		}
		d, err := startDaemon(cmd.Context(), args...)
		if err != nil {
			return err
		}
		defer func() {
			if stopErr := d.stop(); err == nil {
				err = stopErr
			}
		}()
		unix, tcp := d.addresses[0], d.addresses[1]
		if hide == "" {
			if err := add("one machine", unix, opts); err != nil {
				return err
			}
			own := *opts
			own.tokenFile = d.dir + "/token"
			if err := add("TCP", tcp, &own); err != nil {
				return err
			}
		} else if err := add("no import", unix, opts); err != nil {
			return err
		}
	}
	if server != "" {
		if err := add(server, server, opts); err != nil {
			return err
		}
	}
	samples := make(map[string][][]measured) // by way, then round
	for range rounds {
		for _, w := range ways {
			m, err := runMeasuring(cmd.Context(), w, sizes, cmd.ErrOrStderr())
			if err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
			samples[w.name] = append(samples[w.name], m)
		}
	}
	rows := compareWays(ways, samples)
	if opts.json {
		return json.NewEncoder(cmd.OutOrStdout()).Encode(rows)
	}
	header := []string{"WHAT"}
	for _, w := range ways {
		header = append(header, strings.ToUpper(w.name))
	}
	t := newTable(cmd.OutOrStdout(), header...)
	for _, r := range rows {
		cells := []string{r.Name}
		for _, w := range ways {
			c := r.Ways[w.name]
			cell := fmt.Sprintf("%.3g %s", c.Median, r.Unit)
			if w.name != ways[0].name {
				cell += fmt.Sprintf("  %.2f (%.2f–%.2f)", c.Ratio, c.Least, c.Most)
			}
			cells = append(cells, cell)
		}
		t.row(cells...)
	}
	return t.flush()
}

// runMeasuring runs the application once.
func runMeasuring(ctx context.Context, w way, sizes []string, stderr io.Writer) ([]measured, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	app := exec.CommandContext(ctx, program, "bench", "vulkan", "--measure", "--sizes", strings.Join(sizes, ","))
	app.Env, app.Stderr = w.env, stderr
	out, err := app.Output()
	if err != nil {
		return nil, err
	}
	var m []measured
	if err := json.NewDecoder(bytes.NewReader(out)).Decode(&m); err != nil {
		return nil, err
	}
	return m, nil
}

// compareWays makes rows of samples, in the order in which they were taken. The
// first way is what the others are compared with.
func compareWays(ways []way, samples map[string][][]measured) []benchRow {
	native := samples[ways[0].name]
	rows := make([]benchRow, len(native[0]))
	for i, m := range native[0] {
		rows[i] = benchRow{m.Name, m.Unit, make(map[string]benchCell)}
		for _, w := range ways {
			var values, ratios []float64
			for round, ms := range samples[w.name] {
				values = append(values, ms[i].Value)
				ratios = append(ratios, ms[i].Value/native[round][i].Value)
			}
			slices.Sort(ratios)
			rows[i].Ways[w.name] = benchCell{median(values), median(ratios), ratios[0], ratios[len(ratios)-1]}
		}
	}
	return rows
}

// median returns the middle of some values, NaN of none.
func median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	slices.Sort(values)
	return (values[(len(values)-1)/2] + values[len(values)/2]) / 2
}
