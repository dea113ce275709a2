// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/memspan/memspan"
)

// demoSizes are those of the phase-08 document's benchmarks, and one more.
var demoSizes = [...]int64{4 << 10, 1 << 20, 10 << 20, 100 << 20}

// The ways to the daemon that demo takes.
const (
	pathUnix = "unix" // mappings are the daemon's own pages
	pathTLS  = "tls"  // mappings are shadow buffers
)

type demoFlags struct {
	sizes   sizes
	tiers   []string
	paths   []string
	verbose bool
}

func newDemo(opts *options) *cobra.Command {
	f := demoFlags{sizes: demoSizes[:]}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Send bytes to the GPU and back over every path, and verify each word",
		Long: `Demo starts a daemon of its own and takes bytes all the way: map a staging span
that the CPU can reach, write a pattern, unmap; copy it to a span in device
memory on the GPU's queue; overwrite the staging span; copy back; map, and
compare every 32-bit word; compare the device's span once more without mapping.

It does so for each size, for RAM and for device memory, over the unix socket
(the mapping is the memory) and over TLS (the mapping is a shadow buffer), with
a constant and with a pattern in which no two words are alike.

Write is the time to map, store and unmap; read, to map and to load. Wire counts
the bytes that both moved over the connection. Without Vulkan it shows RAM only.
It exits 1 if a single word is wrong.`,
		Example: `  memspan demo
  memspan demo -v --sizes 1MiB --paths unix
  memspan demo --tiers host --json`,
		Args: args(cobra.NoArgs, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error { return demo(cmd, opts, &f) },
	}
	flags := cmd.Flags()
	flags.Var(&f.sizes, "sizes", "span sizes to try, separated by commas")
	flags.StringSliceVar(&f.tiers, "tiers", nil, "`tiers` to try: host, vram (default all that there are)")
	flags.StringSliceVar(&f.paths, "paths", []string{pathUnix, pathTLS}, "`ways` to the daemon to try: unix, tls")
	flags.BoolVarP(&f.verbose, "verbose", "v", false, "tell the steps of the first run")
	return cmd
}

// A demoReport is what 'memspan demo --json' prints.
type demoReport struct {
	OK    bool          `json:"ok"`
	Tiers string        `json:"tiers"` // what the daemon has
	Runs  []*demoResult `json:"runs"`
}

func demo(cmd *cobra.Command, opts *options, f *demoFlags) (err error) {
	for _, path := range f.paths {
		if path != pathUnix && path != pathTLS {
			return usagef("--paths %s: want unix or tls", path)
		}
	}
	var tiers []memspan.Tier
	for _, name := range f.tiers {
		t, err := parseTier("--tiers", name)
		if err != nil {
			return err
		}
		tiers = append(tiers, t)
	}
	ctx, out, errOut := cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr()
	daemon, err := startDaemon(ctx, "--listen", "127.0.0.1:0", "--token-file", "token", "--tls", "--tls-dir", "tls")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, daemon.stop()) }()

	clients := make(map[string]*memspan.Client)
	defer func() {
		for _, client := range clients {
			err = errors.Join(err, client.Close())
		}
	}()
	var have memspan.TierMask
	for _, path := range f.paths {
		client, err := daemon.dial(ctx, path)
		if err != nil {
			return err
		}
		clients[path] = client
		have = client.Tiers()
	}
	switch {
	case !have.Has(memspan.VRAM) && slices.Contains(tiers, memspan.VRAM):
		return errors.New("there is no device memory: the daemon found no Vulkan device; see 'memspan doctor' for what to install")
	case !have.Has(memspan.VRAM) && len(tiers) == 0:
		fmt.Fprintln(errOut, "memspan: no Vulkan device was found: showing RAM only. 'memspan doctor' says what to install.")
		tiers = []memspan.Tier{memspan.Host}
	case len(tiers) == 0:
		tiers = []memspan.Tier{memspan.Host, memspan.VRAM}
	}

	steps := out
	if opts.json {
		steps = errOut
	}
	report := demoReport{OK: true, Tiers: have.String()}
	runs := plan(tiers, f.paths, f.sizes)
	bar := newSteps(errOut, "demo", len(runs))
	defer bar.stop()
	for i, run := range runs {
		run.say = func(string, ...any) {}
		if f.verbose && i == 0 {
			run.say = func(format string, args ...any) { fmt.Fprintf(steps, format+"\n", args...) }
		}
		r := run.do(ctx, clients[run.path])
		if err := ctx.Err(); err != nil {
			return err
		}
		report.add(r)
		bar.add(1)
	}
	bar.stop()
	return report.finish(out, opts.json)
}

func (r *demoReport) add(run *demoResult) {
	r.Runs = append(r.Runs, run)
	r.OK = r.OK && run.Verdict == verdictOK
}

// finish prints the report. If a run went wrong, so does the command.
func (r *demoReport) finish(w io.Writer, asJSON bool) error {
	var err error
	if asJSON {
		err = printJSON(w, r)
	} else {
		err = r.print(w)
	}
	if err == nil && !r.OK {
		err = errReported
	}
	return err
}

// plan lists the runs: every combination, sizes growing.
func plan(tiers []memspan.Tier, paths []string, sizes []int64) []*demoRun {
	var runs []*demoRun
	for _, tier := range tiers {
		for _, path := range paths {
			for _, size := range sizes {
				for _, pattern := range patterns {
					runs = append(runs, &demoRun{tier: tier, path: path, size: size, pattern: pattern})
				}
			}
		}
	}
	return runs
}

func (r *demoReport) print(w io.Writer) error {
	t := newTable(w, "TIER", "SIZE", "PATH", "PATTERN", "WRITE MB/s", "READ MB/s", "ON THE WIRE", "COPIED BY", "VERDICT")
	for _, run := range r.Runs {
		t.row(run.Tier, humanSize(run.Size), run.pathText(), run.Pattern, mbs(run.WriteMBs), mbs(run.ReadMBs),
			humanSize(run.WireBytes), run.copiedBy(), run.Verdict)
	}
	if err := t.flush(); err != nil {
		return err
	}
	var words int64
	for _, run := range r.Runs {
		words += run.Words
		if run.Detail != "" {
			fmt.Fprintf(w, "\n%s %s over %s, pattern %s: %s", run.Tier, humanSize(run.Size), run.pathText(), run.Pattern, run.Detail)
		}
	}
	verdict := fmt.Sprintf("All %d words are right.", words)
	if !r.OK {
		verdict = "FAILED"
	}
	_, err := fmt.Fprintf(w, "\n%s\n", verdict)
	return err
}

func (r *demoResult) pathText() string {
	if r.Direct {
		return r.Path + " (direct)"
	}
	return r.Path + " (shadow)"
}

func (r *demoResult) copiedBy() string {
	if r.OnDevice {
		return "GPU"
	}
	return "CPU"
}

func mbs(v float64) string {
	if v == 0 {
		return "-"
	}
	return strings.TrimSuffix(strconv.FormatFloat(v, 'f', 1, 64), ".0")
}

// dial connects to the demo's daemon over a path.
func (d *daemon) dial(ctx context.Context, path string) (*memspan.Client, error) {
	prefix := map[string]string{pathUnix: "unix:", pathTLS: "tls://"}[path]
	for _, address := range d.addresses {
		if strings.HasPrefix(address, prefix) {
			return memspan.Dial(ctx, address, &memspan.Options{Token: d.token, Name: "memspan demo"})
		}
	}
	return nil, fmt.Errorf("the demo's daemon listens on %s, none of which is %s", strings.Join(d.addresses, ", "), path)
}
