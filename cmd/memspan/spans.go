// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/memspan/memspan"
)

// A report is what put, get and cp did.
type report struct {
	Span     memspan.SpanStat `json:"span"` // afterwards
	Bytes    int64            `json:"bytes"`
	Seconds  float64          `json:"seconds"`
	OnDevice *bool            `json:"on_device,omitempty"` // cp: the GPU copied
}

func transferred(stat memspan.SpanStat, n int64, took time.Duration) report {
	return report{Span: stat, Bytes: n, Seconds: took.Seconds()}
}

// report prints what was done.
func (o *options) report(cmd *cobra.Command, r report) error {
	if o.json {
		return printJSON(cmd.OutOrStdout(), r)
	}
	where := ""
	if r.OnDevice != nil && *r.OnDevice {
		where = ", on the device"
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: %s in %s (%s%s), version %d, held by %s\n",
		label(r.Span), humanSize(r.Bytes), roundTime(r.Seconds), rate(r.Bytes, r.Seconds), where, r.Span.Version, holders(r.Span))
	return err
}

func roundTime(seconds float64) time.Duration {
	d := time.Duration(seconds * float64(time.Second))
	if d > time.Second {
		return d.Round(10 * time.Millisecond)
	}
	return d.Round(10 * time.Microsecond)
}

// label is what a person calls a span: what finds it.
func label(s memspan.SpanStat) string {
	if s.Name != "" && !s.Unpublished {
		return s.Name
	}
	return s.ID
}

// holders lists the tiers that hold all of a span's current bytes, and those
// that hold a part as "vram (3 of 8)".
func holders(s memspan.SpanStat) string {
	var list []string
	for _, tier := range []string{"vram", "host", "disk"} {
		switch t := s.Tiers[tier]; {
		case t.Current == 0:
		case t.Current == s.Blocks:
			list = append(list, tier)
		default:
			list = append(list, fmt.Sprintf("%s (%d of %d)", tier, t.Current, s.Blocks))
		}
	}
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, ", ")
}

// free frees the span of a name or id.
func free(ctx context.Context, client *memspan.Client, name string) error {
	span, err := client.Open(ctx, name)
	if err != nil {
		return err
	}
	return span.Free(ctx)
}

func newList(opts *options) *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the daemon's spans, and the Vulkan applications that use its GPU",
		Example: `  memspan ls
  memspan ls --json | jq -r '.[].name'`,
		Args: args(cobra.NoArgs, "no arguments"),
		RunE: opts.withClient(func(cmd *cobra.Command, client *memspan.Client, _ []string) error {
			spans, err := client.List(cmd.Context())
			if err != nil {
				return err
			}
			slices.SortFunc(spans, func(a, b memspan.SpanStat) int { return strings.Compare(label(a), label(b)) })
			if opts.json {
				return printJSON(cmd.OutOrStdout(), append([]memspan.SpanStat{}, spans...)) // [], not null
			}
			t := newTable(cmd.OutOrStdout(), "NAME", "SIZE", "TIER", "HOME", "POLICY", "STATE", "VERSION", "HELD BY")
			for _, s := range spans {
				t.row(label(s), humanSize(s.Size), s.Tier.String(), s.Home.String(), s.Policy.String(),
					s.State.String(), strconv.FormatUint(s.Version, 10), holders(s))
			}
			if err := t.flush(); err != nil {
				return err
			}
			stats, err := client.Stats(cmd.Context())
			if err != nil {
				return err
			}
			return printApplications(cmd.OutOrStdout(), stats.Vulkan)
		}),
	}
}

func newStat(opts *options) *cobra.Command {
	return &cobra.Command{
		Use:   "stat [SPAN]",
		Short: "Describe a span, or count what the daemon holds",
		Long: `Stat with a span's name or id says all there is to say about it. For each tier
that has some of its blocks: how many are current and how many stale, which
versions they have (each block counts its own writes), how many are dirty: current
there, and home has yet to be given them, whose debt they are; and how many are
pinned, by advice or a mapping.

Without one it counts: spans by coherency state (total, host_only, device_only,
synced, dirty), and blocks by tier (total_blocks, vram_copies, host_copies,
disk_copies, dirty_blocks) with the barriers so far (sync_count, epoch). With
device memory it also counts the bytes that went there and back through memory
that the CPU can map (mapped) or through the queue (staged), and those that were
moved within it (device). Then it lists the sessions, and what each has read and
written; of direct mappings only what their releases found changed is known.`,
		Example: `  memspan stat
  memspan stat weights
  memspan stat --json | jq .tiered.epoch`,
		Args:              args(cobra.MaximumNArgs(1), "at most one span"),
		ValidArgsFunction: opts.spanNames(1),
		RunE: opts.withClient(func(cmd *cobra.Command, client *memspan.Client, args []string) error {
			if len(args) == 0 {
				stats, err := client.Stats(cmd.Context())
				if err != nil {
					return err
				}
				if opts.json {
					return printJSON(cmd.OutOrStdout(), stats)
				}
				return printStats(cmd.OutOrStdout(), stats)
			}
			span, err := client.Open(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			stat, err := span.Stat(cmd.Context())
			if err != nil {
				return err
			}
			if opts.json {
				return printJSON(cmd.OutOrStdout(), stat)
			}
			return printSpan(cmd.OutOrStdout(), stat)
		}),
	}
}

// A count is one field of the documents' statistics, under its name there.
type count struct {
	name string
	n    uint64
}

// spanCounts are the fields of coherency.Stats.
func spanCounts(s memspan.Stats) []count {
	c := s.Coherency
	return []count{
		{"total", uint64(c.Total)},
		{"host_only", uint64(c.HostOnly)},
		{"device_only", uint64(c.DeviceOnly)},
		{"synced", uint64(c.Synced)},
		{"dirty", uint64(c.Dirty)},
	}
}

// blockCounts are the fields of coherency.TieredStats.
func blockCounts(s memspan.Stats) []count {
	c := s.Tiered
	return []count{
		{"total_blocks", uint64(c.TotalBlocks)},
		{"vram_copies", uint64(c.VRAMCopies)},
		{"host_copies", uint64(c.HostCopies)},
		{"disk_copies", uint64(c.DiskCopies)},
		{"dirty_blocks", uint64(c.DirtyBlocks)},
		{"sync_count", c.SyncCount},
		{"epoch", c.Epoch},
	}
}

func printStats(w io.Writer, s memspan.Stats) error {
	t := newTable(w)
	section := func(title string, counts []count) {
		t.row(title)
		for _, c := range counts {
			t.row("  "+c.name, strconv.FormatUint(c.n, 10))
		}
	}
	section("spans", spanCounts(s))
	section("blocks", blockCounts(s))
	t.row("daemon")
	t.row("  sessions", strconv.Itoa(s.Sessions))
	t.row("  mappings", strconv.Itoa(s.Mappings))
	t.row("  vulkan applications", strconv.Itoa(len(s.Vulkan)))
	for _, tier := range []string{"vram", "host", "disk"} {
		b, ok := s.Budgets[tier]
		if !ok {
			continue
		}
		used := humanSize(b.Used)
		if b.Budget > 0 {
			used += " of " + humanSize(b.Budget)
		}
		t.row("  "+tier, used)
	}
	if v := s.VRAM; v != nil {
		section("vram", []count{
			{"mapped", uint64(v.Mapped)},
			{"staged", uint64(v.Staged)},
			{"device", uint64(v.Device)},
			{"submits", uint64(v.Submits)},
			{"flushes", uint64(v.Flushes)},
			{"workers", uint64(v.Workers)},
			{"slabs", uint64(v.Slabs)},
			{"slots", uint64(v.Slots)},
		})
	}
	if err := t.flush(); err != nil {
		return err
	}
	if err := printSessions(w, s.SessionList); err != nil {
		return err
	}
	return printApplications(w, s.Vulkan)
}

// printSessions lists the clients that are connected: at least whoever asks.
func printSessions(w io.Writer, list []memspan.SessionStat) error {
	fmt.Fprintln(w)
	t := newTable(w, "SESSION", "CLIENT", "FROM", "SINCE", "HANDLES", "MAPPINGS", "LOCKS", "READ", "WRITTEN")
	for _, s := range list {
		t.row(strconv.FormatUint(s.Session, 10), cmp.Or(s.Client, "?"), origin(s), s.Since.Local().Format(time.TimeOnly),
			strconv.Itoa(s.Handles), strconv.Itoa(s.Mappings), strconv.Itoa(s.Locks), humanSize(s.Read), humanSize(s.Written))
	}
	return t.flush()
}

// origin says where a session comes from.
func origin(s memspan.SessionStat) string {
	if s.PID != 0 {
		return fmt.Sprintf("process %d", s.PID)
	}
	return string(s.Transport) + " " + s.Peer
}

// printApplications lists Vulkan applications, if there are any.
func printApplications(w io.Writer, list []memspan.VulkanStat) error {
	if len(list) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	t := newTable(w, "APPLICATION", "PID", "FROM", "WORKER", "DEVICE", "MEMORY", "OBJECTS", "SINCE")
	for _, a := range list {
		t.row(cmp.Or(a.Application, "?"), strconv.Itoa(a.PID), cmp.Or(a.Peer, "this machine"), strconv.Itoa(a.Worker),
			cmp.Or(a.Device, "none yet"), humanSize(a.Memory), strconv.Itoa(a.Objects), a.Since.Local().Format(time.TimeOnly))
	}
	return t.flush()
}

func printSpan(w io.Writer, s memspan.SpanStat) error {
	if err := printFields(w, s); err != nil || len(s.Tiers) == 0 {
		return err
	}
	fmt.Fprintln(w)
	return printTiers(w, s)
}

// printFields says what there is to say about a span as a whole.
func printFields(w io.Writer, s memspan.SpanStat) error {
	t := newTable(w)
	t.row("name", label(s))
	t.row("id", s.ID)
	if s.Unpublished {
		t.row("published", "no: "+s.Name+" is another span's name, or none's")
	}
	t.row("size", fmt.Sprintf("%s (%d bytes)", humanSize(s.Size), s.Size))
	t.row("tier", s.Tier.String())
	t.row("home", s.Home.String())
	t.row("policy", s.Policy.String())
	if s.Placement != "" {
		t.row("placement", string(s.Placement))
	}
	t.row("created", s.Created.Local().Format(time.RFC3339))
	t.row("state", s.State.String())
	t.row("version", strconv.FormatUint(s.Version, 10))
	t.row("blocks", strconv.Itoa(s.Blocks))
	t.row("debt", fmt.Sprintf("%d blocks", s.Debt))
	t.row("lost", fmt.Sprintf("%d blocks", s.Lost))
	t.row("unclean", fmt.Sprintf("%d blocks", s.Unclean))
	t.row("read", humanSize(s.Read))
	t.row("written", humanSize(s.Written))
	t.row("mappings", fmt.Sprintf("%d direct, %d shadow", s.Direct, s.Shadow))
	t.row("locks", strconv.Itoa(s.Locks))
	if s.Error != "" {
		t.row("error", s.Error)
	}
	return t.flush()
}

// printTiers says what each tier has of a span, in blocks.
func printTiers(w io.Writer, s memspan.SpanStat) error {
	t := newTable(w, tierHeader...)
	for _, row := range tierRows(s) {
		t.row(row...)
	}
	return t.flush()
}

var tierHeader = []string{"TIER", "CURRENT", "STALE", "BYTES", "VERSION", "DIRTY", "DEBT", "PINNED"}

// tierRows is a row for each tier that has a share of a span.
func tierRows(s memspan.SpanStat) (rows [][]string) {
	for _, tier := range []string{"vram", "host", "disk"} {
		share, ok := s.Tiers[tier]
		if !ok {
			continue
		}
		if tier == s.Home.String() {
			tier += " (home)"
		}
		rows = append(rows, []string{tier, strconv.Itoa(share.Current), strconv.Itoa(share.Stale), humanSize(share.Bytes),
			versions(share), strconv.Itoa(share.Dirty), strconv.Itoa(share.Debt), strconv.Itoa(share.Pinned)})
	}
	return rows
}

// versions returns those of the blocks that a tier holds, from the least to the
// greatest.
func versions(t memspan.TierStat) string {
	switch {
	case t.Current+t.Stale == 0:
		return "-"
	case t.Lowest == t.Highest:
		return strconv.FormatUint(t.Lowest, 10)
	}
	return fmt.Sprintf("%d..%d", t.Lowest, t.Highest)
}

func newCopy(opts *options) *cobra.Command {
	var spec spanFlags
	cmd := &cobra.Command{
		Use:   "cp SOURCE DESTINATION",
		Short: "Copy a span to another inside the daemon",
		Long: `Cp copies all of one span to another. The bytes stay inside the daemon, and on
the device where both spans are in its memory.

A destination that does not exist is made like the source, but for what the
flags say. One that exists must be as long as the source.`,
		Example: `  memspan cp weights weights.bak
  memspan cp weights weights.gpu --tier vram --placement device-local`,
		Args:              args(cobra.ExactArgs(2), "two spans"),
		ValidArgsFunction: opts.spanNames(2),
	}
	spec.add(cmd)
	cmd.RunE = opts.withClient(func(cmd *cobra.Command, client *memspan.Client, args []string) error {
		ctx := cmd.Context()
		src, err := client.Open(ctx, args[0])
		if err != nil {
			return err
		}
		dst, made, err := destination(ctx, client, args[1], src, &spec)
		if err != nil {
			return err
		}
		start := time.Now()
		commit, err := dst.Copy(ctx, 0, src, 0, src.Size())
		took := time.Since(start)
		if err == nil && made {
			err = dst.Publish(ctx)
		}
		if err != nil {
			return errors.Join(err, dst.Close())
		}
		stat, err := dst.Stat(ctx)
		if err != nil {
			return err
		}
		r := transferred(stat, src.Size(), took)
		r.OnDevice = &commit.Device
		return opts.report(cmd, r)
	})
	return cmd
}

// destination opens the span that cp copies to, or makes it, to be published
// when it is whole.
func destination(ctx context.Context, client *memspan.Client, name string, src *memspan.Span, spec *spanFlags) (dst *memspan.Span, made bool, err error) {
	dst, err = client.Open(ctx, name)
	if err == nil {
		if dst.Size() != src.Size() {
			return nil, false, fmt.Errorf("%s has %d bytes and the source %d; copy to a span of the same size, or to a new name", name, dst.Size(), src.Size())
		}
		return dst, false, nil
	}
	if !errors.Is(err, memspan.ErrNotFound) {
		return nil, false, err
	}
	like := src.Info()
	config, err := spec.config(memspan.SpanConfig{
		Size: like.Size, Tier: memspan.On(like.Tier), Home: memspan.On(like.Home), Policy: like.Policy, Placement: like.Placement,
	})
	if err != nil {
		return nil, false, err
	}
	config.Name, config.Unpublished = name, true
	dst, err = client.Alloc(ctx, config)
	return dst, true, err
}

func newRemove(opts *options) *cobra.Command {
	return &cobra.Command{
		Use:     "rm SPAN...",
		Aliases: []string{"remove"},
		Short:   "Free spans",
		Long: `Rm frees spans and the memory they take. Programs that have them mapped are
told. Where one cannot be freed the others are all the same.`,
		Example: `  memspan rm weights
  memspan rm old1 old2 --json`,
		Args:              args(cobra.MinimumNArgs(1), "at least one span"),
		ValidArgsFunction: opts.spanNames(0),
		RunE: opts.withClient(func(cmd *cobra.Command, client *memspan.Client, args []string) error {
			removed := []string{}
			var errs []error
			for _, name := range args {
				if err := free(cmd.Context(), client, name); err != nil {
					errs = append(errs, err)
					continue
				}
				removed = append(removed, name)
			}
			if opts.json {
				errs = append(errs, printJSON(cmd.OutOrStdout(), struct {
					Removed []string `json:"removed"`
				}{removed}))
			}
			return errors.Join(errs...)
		}),
	}
}
