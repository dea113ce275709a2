// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/spf13/cobra"

	"github.com/memspan/memspan"
)

// shortestInterval bounds how often top asks the daemon, which looks at every
// block for it.
const shortestInterval = 100 * time.Millisecond

func newTop(opts *options) *cobra.Command {
	interval, once := time.Second, false
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Watch the daemon: tiers, spans, sessions, Vulkan applications",
		Long: `Top shows what the daemon holds and moves, live: how full the tiers are, each
span with its state, debt, mappings and rates, the sessions, and the Vulkan
applications that use its GPU. Press ? in it for its keys.

What direct mappings read is known to nobody but their programs, and what they
store only when they flush: rates are without it.

--once prints two samples' difference, an interval apart, and ends; with --json
as one document, rates in bytes per second.`,
		Example: `  memspan top
  memspan top --interval 250ms
  memspan top --once
  memspan top --once --json | jq '.tiers[] | {tier, used, write_rate}'`,
		Args: args(cobra.NoArgs, "no arguments"),
	}
	flags := cmd.Flags()
	flags.DurationVar(&interval, "interval", interval, "`time` between two samples")
	flags.BoolVar(&once, "once", false, "print one sample and end")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		switch {
		case interval < shortestInterval:
			return usagef("--interval %v: want at least %v", interval, shortestInterval)
		case once:
			return topOnce(cmd.Context(), opts, interval, cmd.OutOrStdout())
		case opts.json:
			return usagef("--json goes with --once: top without it is for a terminal")
		case !isTerminal(cmd.OutOrStdout()):
			return usagef("standard output is no terminal that top could draw on: use memspan top --once")
		}
		return watch(cmd.Context(), opts, interval, cmd.InOrStdin(), cmd.OutOrStdout())
	}
	return cmd
}

// topOnce prints one sample with rates over an interval.
func topOnce(ctx context.Context, opts *options, interval time.Duration, w io.Writer) (err error) {
	s := &sampler{dial: opts.dial}
	defer func() { err = errors.Join(err, s.close()) }()
	if _, err := s.next(ctx); err != nil {
		return err
	}
	select {
	case <-time.After(interval):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	sample, err := s.next(ctx)
	if err != nil {
		return err
	}
	if opts.json {
		return printJSON(w, sample)
	}
	return sample.print(w)
}

// print writes the sample as text.
func (s *topSample) print(w io.Writer) error {
	if _, err := fmt.Fprintln(w, s.summary()); err != nil {
		return err
	}
	for _, t := range s.Tiers {
		if _, err := fmt.Fprintln(w, tierLine(t, 20)); err != nil {
			return err
		}
	}
	for _, p := range topPanes() {
		rows := p.rows(s, p.sort, false)
		if len(rows) == 0 {
			continue
		}
		var header []string
		for _, c := range p.columns {
			header = append(header, c.title)
		}
		fmt.Fprintln(w)
		t := newTable(w, header...)
		for _, row := range rows {
			t.row(row.cells...)
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	return nil
}

// summary is the sample in one line.
func (s *topSample) summary() string {
	blocks := 0
	for _, sp := range s.Spans {
		blocks += sp.Blocks
	}
	return fmt.Sprintf("%s, %s, %s, %s, epoch %d", countOf(len(s.Spans), "span"), countOf(blocks, "block"),
		countOf(len(s.Sessions), "session"), countOf(s.Mappings, "mapping"), s.Epoch)
}

// watch runs top on a terminal until its user ends it or ctx ends.
func watch(ctx context.Context, opts *options, interval time.Duration, in io.Reader, out io.Writer) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	s := &sampler{dial: opts.dial}
	defer func() {
		cancel()
		err = errors.Join(err, s.close())
	}()
	first, err := s.next(ctx)
	if err != nil { // what is wrong now is said where it can be read
		return err
	}
	m := newTopModel(cmp.Or(opts.daemon(), memspan.DefaultAddress()), interval, first, func() (*topSample, error) { return s.next(ctx) })
	// Signals end ctx, which ends the program.
	_, err = tea.NewProgram(m, tea.WithContext(ctx), tea.WithInput(in), tea.WithOutput(out), tea.WithoutSignalHandler()).Run()
	if errors.Is(err, tea.ErrProgramKilled) && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}
