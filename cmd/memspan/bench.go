// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func newBench(opts *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure against the native driver",
		Example: `  memspan bench vulkan
  memspan bench vulkan --pairs 21 --json
  memspan bench vulkan --link 1Gbit/1ms --link 100Mbit/10ms`,
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
	var links []string
	var measure bool
	cmd := &cobra.Command{
		Use:   "vulkan [flags] [-- APP [ARG...]]",
		Short: "Measure a Vulkan application through memspan against the native driver",
		Long: `Vulkan runs one small application again and again, in turn with the native driver
and through memspan: on one machine with the device's own pages, on one machine
with pages kept in step, and over TCP on loopback. It prints medians, and the
median of the ratios of each round to the native one in it: rates are better
above 1, times below.

It starts daemons of its own. With --server the application runs on that server
too, and with --link over a network of that rate and round trip.

With APP it measures that: how long it takes, and what it says on the connection.
It must print the same in all ways. One more round, of which nothing is counted,
comes first: drivers compile shaders in it.`,
		Example: `  memspan bench vulkan --pairs 11
  memspan bench vulkan --link 100Mbit/10ms -- ./app`,
		RunE: func(cmd *cobra.Command, argv []string) (err error) {
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
			b := vulkanBench{opts: opts, app: argv, sizes: sizes, rounds: rounds, server: server}
			for _, s := range links {
				l, err := parseLink(s)
				if err != nil {
					return err
				}
				b.links = append(b.links, l)
			}
			if b.manifest, err = findDriver(manifest); err != nil {
				return err
			}
			return b.run(cmd)
		},
	}
	flags := cmd.Flags()
	flags.SetInterspersed(false) // the application's flags are its own
	flags.IntVar(&rounds, "pairs", 5, "`rounds`, of each way in turn")
	flags.StringSliceVar(&sizes, "sizes", []string{"4KiB", "1MiB", "10MiB", "100MiB"}, "`bytes` of staging buffers")
	flags.StringVar(&server, "server", "", "another daemon's `address`, to be measured too")
	flags.StringArrayVar(&links, "link", nil, "a network to be measured over too, as `rate/roundtrip`; may be repeated")
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

// traceVariable names the file in which the driver counts calls and round trips.
const traceVariable = "MEMSPAN_TRACE"

// A vulkanBench is what to measure.
type vulkanBench struct {
	opts     *options
	manifest string
	app      []string // empty: this program's own
	sizes    []string
	rounds   int
	server   string
	links    []shapedLink

	ways []way
}

// add adds a way by which an application reaches a daemon.
func (b *vulkanBench) add(name, address string, o *options) error {
	env, err := o.applicationEnvironment(address, b.manifest)
	b.ways = append(b.ways, way{name, env})
	return err
}

func (b *vulkanBench) run(cmd *cobra.Command) (err error) {
	ctx := cmd.Context()
	b.ways = []way{{name: "native"}}
	serve := []string{"--no-vram", "--listen", "127.0.0.1:0", "--token-file", "token"}
	d, err := startDaemon(ctx, serve...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	apart, err := startDaemon(ctx, append(serve, "--vulkan-hide", "import")...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, apart.stop()) }()
	own := *b.opts
	own.tokenFile = filepath.Join(d.dir, "token")
	unix, tcp := d.addresses[0], d.addresses[1]
	err = errors.Join(b.add("one machine", unix, b.opts), b.add("no import", apart.addresses[0], b.opts), b.add("TCP", tcp, &own))
	for _, l := range b.links {
		address, stop, linkErr := l.open(ctx, strings.TrimPrefix(tcp, "tcp://"))
		if linkErr != nil {
			return linkErr
		}
		defer stop()
		err = errors.Join(err, b.add(l.name, "tcp://"+address, &own))
	}
	if b.server != "" {
		err = errors.Join(err, b.add(b.server, b.server, b.opts))
	}
	if err != nil {
		return err
	}
	rows, err := b.measure(ctx, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	if b.opts.json {
		return json.NewEncoder(cmd.OutOrStdout()).Encode(rows)
	}
	return b.print(cmd.OutOrStdout(), rows)
}

// measure runs the application in all ways in turn.
func (b *vulkanBench) measure(ctx context.Context, stderr io.Writer) ([]benchRow, error) {
	samples := make(map[string][][]measured) // by way, then round
	var printed []byte
	for round := range b.rounds + 1 {
		if round == 0 && len(b.app) == 0 {
			continue // it warms up by itself
		}
		for _, w := range b.ways {
			m, out, err := b.runOnce(ctx, w, stderr)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", w.name, err)
			}
			switch {
			case printed == nil:
				printed = out
			case !bytes.Equal(printed, out):
				return nil, fmt.Errorf("%s: %s prints something else than before: %.200q, not %.200q", w.name, b.app[0], out, printed)
			}
			if round > 0 {
				samples[w.name] = append(samples[w.name], m)
			}
		}
	}
	return compareWays(b.ways, samples), nil
}

// print prints a table, of which the first way is what the others are compared
// with.
func (b *vulkanBench) print(stdout io.Writer, rows []benchRow) error {
	header := []string{"WHAT"}
	for _, w := range b.ways {
		header = append(header, strings.ToUpper(w.name))
	}
	t := newTable(stdout, header...)
	for _, r := range rows {
		cells := []string{r.Name}
		for _, w := range b.ways {
			c := r.Ways[w.name]
			cell := fmt.Sprintf("%.3g %s", c.Median, r.Unit)
			if w.name != b.ways[0].name && c.Ratio > 0 {
				cell += fmt.Sprintf("  %.2f (%.2f–%.2f)", c.Ratio, c.Least, c.Most)
			}
			cells = append(cells, cell)
		}
		t.row(cells...)
	}
	return t.flush()
}

// runOnce runs the application once. It returns what was measured and, if the
// application is not this program's own, what it printed.
func (b *vulkanBench) runOnce(ctx context.Context, w way, stderr io.Writer) ([]measured, []byte, error) {
	if len(b.app) > 0 {
		return runApp(ctx, w, b.app, stderr)
	}
	program, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	app := exec.CommandContext(ctx, program, "bench", "vulkan", "--measure", "--sizes", strings.Join(b.sizes, ","))
	app.Env, app.Stderr = w.env, stderr
	out, err := app.Output()
	if err != nil {
		return nil, nil, err
	}
	var m []measured
	err = json.NewDecoder(bytes.NewReader(out)).Decode(&m)
	return m, nil, err
}

// runApp runs any application, and has the driver count what it says.
func runApp(ctx context.Context, w way, argv []string, stderr io.Writer) ([]measured, []byte, error) {
	trace, err := os.CreateTemp("", "memspan-trace-*")
	if err != nil {
		return nil, nil, err
	}
	defer os.Remove(trace.Name())
	defer trace.Close()
	app := exec.CommandContext(ctx, argv[0], argv[1:]...)
	app.Env, app.Stderr = append(slices.Clip(w.env), traceVariable+"="+trace.Name()), stderr
	if w.env == nil {
		app.Env = nil
	}
	begin := time.Now()
	out, err := app.Output()
	took := time.Since(begin)
	if err != nil {
		return nil, nil, err
	}
	var trips, sent, received float64
	for lines := bufio.NewScanner(trace); lines.Scan(); { // a table for each time that the last instance went
		f := strings.Fields(lines.Text())
		switch {
		case len(f) == 3 && f[2] == "total":
			trips += number(f[1])
		case len(f) == 5 && f[2] == "sent,":
			sent, received = sent+number(f[0]), received+number(f[3])
		}
	}
	return []measured{
		{"wall", milliseconds(took), "ms"}, {"processor time of the application", milliseconds(app.ProcessState.UserTime() + app.ProcessState.SystemTime()), "ms"},
		{"round trips", trips, ""}, {"sent", sent / 1e6, "MB"}, {"received", received / 1e6, "MB"},
	}, out, nil
}

// number returns a trace's number.
func number(s string) float64 {
	n, err := strconv.ParseFloat(s, 64)
	if err != nil {
		return math.NaN()
	}
	return n
}

func milliseconds(d time.Duration) float64 { return d.Seconds() * 1e3 }

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
				ratio := 0.0 // to what there is nothing of
				if n := native[round][i].Value; n > 0 {
					ratio = ms[i].Value / n
				}
				ratios = append(ratios, ratio)
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
