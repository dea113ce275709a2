// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/memspan/memspan"
)

// adviceFlags are the kinds of advice, by the flag that gives them.
var adviceFlags = []struct {
	name  string
	kind  memspan.AdviceKind
	usage string
}{
	{"prefetch", memspan.AdvisePrefetch, "bring the blocks to this `tier`"},
	{"evict", memspan.AdviseEvict, "give up this `tier`'s copies of the blocks, written back first if they are the last"},
	{"pin", memspan.AdvisePin, "bring the blocks to this `tier` and keep them there, until --unpin or until the span is freed"},
	{"unpin", memspan.AdviseUnpin, "let this `tier`'s copies of the blocks be evicted again"},
	{"preferred", memspan.AdvisePrefer, "let writes go to this `tier` from now on; moves nothing"},
}

func newAdvise(opts *options) *cobra.Command {
	var tiers [5]string // by adviceFlags
	var part byteRange
	cmd := &cobra.Command{
		Use:   "advise SPAN --prefetch|--evict|--pin|--unpin|--preferred TIER",
		Short: "Say where a span's bytes are wanted: prefetch, evict, pin, prefer",
		Long: `Advise moves blocks of a span between tiers, keeps them where they are or changes
where writes go. It waits until that is done, and says what it took and what was
moved. The verbs are those of CUDA's unified memory: --prefetch is what
cudaMemPrefetchAsync does, --preferred what cudaMemAdviseSetPreferredLocation
does for writes, and --pin makes that last.

Bytes do not change by it. Blocks that are pinned, busy, lost or the last copy
are skipped; it then exits 1, though the others are done. Where --range touches
a part of a block the whole block is meant.`,
		Example: `  memspan advise weights --prefetch vram
  memspan advise weights --pin vram --range 0:64MiB
  memspan advise weights --evict host
  memspan advise weights --preferred vram --json | jq -r .was`,
		Args:              args(cobra.ExactArgs(1), "one span's name or id"),
		ValidArgsFunction: opts.spanNames(1),
	}
	flags := cmd.Flags()
	for i, f := range adviceFlags {
		flags.StringVar(&tiers[i], f.name, "", f.usage)
		// The only error is an unknown flag.
		_ = cmd.RegisterFlagCompletionFunc(f.name, cobra.FixedCompletions([]string{"vram", "host", "disk"}, cobra.ShellCompDirectiveNoFileComp))
	}
	flags.Var(&part, "range", "the bytes meant, as `offset:length` like 1GiB:64MiB; without a length to the span's end (default all)")
	parse := func() (a memspan.Advice, err error) {
		given := 0
		for i, f := range adviceFlags {
			if !cmd.Flags().Changed(f.name) {
				continue
			}
			given++
			a.Do = f.kind
			if err := a.Tier.UnmarshalText([]byte(tiers[i])); err != nil {
				return a, usagef("--%s %s: want vram, host or disk", f.name, tiers[i])
			}
		}
		switch {
		case given != 1:
			return a, usagef("advise takes one of --prefetch, --evict, --pin, --unpin and --preferred; it was given %d", given)
		case a.Do == memspan.AdvisePrefer && part.given:
			return a, usagef("--preferred is about the whole span: give no --range")
		}
		return a, nil
	}
	run := opts.withClient(func(cmd *cobra.Command, client *memspan.Client, args []string) error {
		advice, err := parse()
		if err != nil {
			return err
		}
		span, err := client.Open(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		if advice.Range, err = part.of(span.Size()); err != nil {
			return err
		}
		start := time.Now()
		done, err := span.Advise(cmd.Context(), advice)
		if err != nil {
			return err
		}
		r := adviceReport{Span: args[0], Advice: advice.Do, Tier: advice.Tier, Advised: done, Seconds: time.Since(start).Seconds()}
		if opts.json {
			err = printJSON(cmd.OutOrStdout(), r)
		} else {
			err = r.print(cmd.OutOrStdout())
		}
		if err == nil && len(done.Skipped) > 0 {
			err = errReported
		}
		return err
	})
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if _, err := parse(); err != nil { // before the daemon is asked
			return err
		}
		return run(cmd, args)
	}
	return cmd
}

// An adviceReport is what advise did.
type adviceReport struct {
	Span   string             `json:"span"`
	Advice memspan.AdviceKind `json:"advice"`
	Tier   memspan.Tier       `json:"tier"`
	memspan.Advised
	Seconds float64 `json:"seconds"`
}

func (r adviceReport) print(w io.Writer) error {
	if r.Was != nil {
		_, err := fmt.Fprintf(w, "%s: writes go to %s from now on; they went to %s\n", r.Span, r.Tier, r.Was)
		return err
	}
	if _, err := fmt.Fprintf(w, "%s: %s %s: %d of %s changed, %s in %s\n", r.Span, r.Advice, r.Tier,
		r.Changed, countOf(r.Blocks, "block"), humanSize(r.Bytes), roundTime(r.Seconds)); err != nil {
		return err
	}
	t := newTable(w)
	t.row("  planned", describeMoves(r.Advice, r.Planned))
	t.row("  moved", describeMoves(r.Advice, r.Moved))
	t.row("  there already", countOf(r.There, "block"))
	for _, skip := range r.Skipped {
		t.row("  skipped", fmt.Sprintf("%s from number %d on, %s: %s", countOf(skip.Blocks, "block"), skip.First, skip.Code, skip.Message))
	}
	return t.flush()
}

// describeMoves says what goes where, as in "2 blocks vram -> host, 2 MiB".
func describeMoves(kind memspan.AdviceKind, moves []memspan.Move) string {
	var parts []string
	for _, m := range moves {
		from := m.From.String()
		if !m.From.Any() {
			from = "zeros"
		}
		parts = append(parts, fmt.Sprintf("%s %s -> %s, %s", countOf(m.Blocks, "block"), from, m.To, humanSize(m.Bytes)))
	}
	switch {
	case len(parts) == 0:
		return "nothing to copy"
	case kind == memspan.AdviseEvict:
		return "written back: " + strings.Join(parts, "; ")
	}
	return strings.Join(parts, "; ")
}

// A byteRange is given on the command line as OFFSET:LENGTH. It
// implements pflag.Value.
type byteRange struct {
	off, n size // n 0: to the end
	given  bool
}

// Set implements pflag.Value.
func (r *byteRange) Set(text string) error {
	off, n, ok := strings.Cut(text, ":")
	if !ok {
		return errors.New("want OFFSET:LENGTH, like 1GiB:64MiB")
	}
	*r = byteRange{given: true}
	if off != "" {
		if err := r.off.Set(off); err != nil {
			return err
		}
	}
	if n == "" {
		return nil
	}
	if err := r.n.Set(n); err != nil {
		return err
	}
	if r.n == 0 {
		return errors.New("the length is 0: want at least one byte")
	}
	return nil
}

// String implements pflag.Value.
func (r *byteRange) String() string {
	if !r.given {
		return ""
	}
	return fmt.Sprintf("%d:%d", r.off, r.n)
}

// Type implements pflag.Value.
func (r *byteRange) Type() string { return "range" }

// of returns the range within a span of so many bytes; the zero one is all of
// it.
func (r *byteRange) of(total int64) (memspan.Range, error) {
	part := memspan.Range{Offset: int64(r.off), Length: int64(r.n)}
	if r.given && part.Length == 0 {
		if part.Length = total - part.Offset; part.Length <= 0 {
			return part, usagef("--range %d: the span has %d bytes", part.Offset, total)
		}
	}
	return part, nil
}
