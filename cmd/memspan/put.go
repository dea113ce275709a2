// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/memspan/memspan"
)

// pieceSize is how much of a file is in this process's memory at a time. It is
// several blocks, so that one call keeps several of them on their way.
const pieceSize = 8 << 20

// spanFlags describe a span to be made.
type spanFlags struct {
	tier, home, policy, placement string
}

func (f *spanFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.tier, "tier", "", "`tier` that writes go to: host, vram or disk")
	flags.StringVar(&f.home, "home", "", "`tier` that the span belongs to, and that write-through writes reach too (default the one of --tier); what belongs to disk outlives the daemon")
	flags.StringVar(&f.policy, "policy", "", "what a write waits for: write-back (one tier), write-through (home too) or write-all")
	flags.StringVar(&f.placement, "placement", "", "device memory to use: host-visible or device-local (default any)")
	for name, values := range map[string][]string{
		"tier":      {"host", "vram", "disk"},
		"home":      {"host", "vram", "disk"},
		"policy":    {"write-back", "write-through", "write-all"},
		"placement": {"host-visible", "device-local"},
	} {
		// The only error is an unknown flag.
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	}
}

func newPut(opts *options) *cobra.Command {
	var (
		spec    spanFlags
		name    string
		replace bool
	)
	cmd := &cobra.Command{
		Use:   "put FILE|-",
		Short: "Make a span of a file's bytes",
		Long: `Put makes a span as long as the file and copies the file's bytes to it, a few
at a time. - is standard input.

A span's size is fixed when it is made. Input whose length is not known before
its end, like a pipe, is therefore kept in a temporary file ($TMPDIR) until then.

The span is found by its name once all its bytes are there. If putting fails, or
is killed, nothing is left of it, and with --replace the old span is as it was.`,
		Example: `  memspan put model.bin --name weights
  memspan put model.bin --name weights --tier vram --replace
  zstd -dc table.zst | memspan put - --name table --tier vram --home host --policy write-through
  memspan put notes.db --tier host --home disk --policy write-through`,
		Args: args(cobra.ExactArgs(1), "one file, or - for standard input"),
	}
	spec.add(cmd)
	cmd.Flags().StringVarP(&name, "name", "n", "", "`name` of the span (default the file's name)")
	cmd.Flags().BoolVar(&replace, "replace", false, "take the name from a span that has it, when the new one is whole; both need room until then")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if name == "" {
			if args[0] == "-" {
				return usagef("put - needs --name NAME")
			}
			name = filepath.Base(args[0])
		}
		config, err := spec.config(memspan.SpanConfig{})
		if err != nil {
			return err
		}
		in, err := openInput(args[0], cmd.InOrStdin())
		if err != nil {
			return err
		}
		defer in.Close()
		config.Name, config.Size = name, in.size
		return opts.withClient(func(cmd *cobra.Command, client *memspan.Client, _ []string) error {
			return put(cmd, opts, client, in, config, replace)
		})(cmd, nil)
	}
	return cmd
}

func put(cmd *cobra.Command, opts *options, client *memspan.Client, in *input, config memspan.SpanConfig, replace bool) error {
	ctx := cmd.Context()
	if !replace {
		// Before the bytes travel; publishing looks again.
		if err := vacant(ctx, client, config.Name); err != nil {
			return err
		}
	}
	start := time.Now()
	config.Unpublished = true
	span, err := client.Alloc(ctx, config)
	if err != nil {
		return err
	}
	defer span.Close()
	bar := newProgress(cmd.ErrOrStderr(), "put "+config.Name, in.size)
	defer bar.stop()
	if err := upload(ctx, span, in, bar); err != nil {
		return err
	}
	bar.stop()
	publish := span.Publish
	if replace {
		publish = span.Replace
	}
	if err := publish(ctx); err != nil {
		return err
	}
	stat, err := span.Stat(ctx)
	if err != nil {
		return err
	}
	return opts.report(cmd, transferred(stat, in.size, time.Since(start)))
}

// vacant returns ErrExists if a span has the name.
func vacant(ctx context.Context, client *memspan.Client, name string) error {
	span, err := client.Open(ctx, name)
	switch {
	case errors.Is(err, memspan.ErrNotFound):
		return nil
	case err != nil:
		return err
	}
	return errors.Join(&memspan.Error{Code: memspan.ErrExists, Op: "put", Span: name}, span.Close())
}

// upload copies all of in to the span.
func upload(ctx context.Context, span *memspan.Span, in *input, bar *progress) error {
	buf := make([]byte, min(pieceSize, in.size))
	for off := int64(0); off < in.size; {
		piece := buf[:min(int64(len(buf)), in.size-off)]
		if _, err := io.ReadFull(in, piece); err != nil {
			return fmt.Errorf("%s: ends before the %d bytes that it has by its size: %w", in.name, in.size, err)
		}
		n, err := span.WriteAt(ctx, piece, off)
		bar.add(n)
		if err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}

// config returns base with what the flags set.
func (f *spanFlags) config(base memspan.SpanConfig) (memspan.SpanConfig, error) {
	if f.tier != "" {
		t, err := parseTier("--tier", f.tier)
		if err != nil {
			return base, err
		}
		base.Tier, base.Home = memspan.On(t), memspan.On(t)
	}
	if f.home != "" {
		t, err := parseTier("--home", f.home)
		if err != nil {
			return base, err
		}
		base.Home = memspan.On(t)
	}
	if f.policy != "" {
		if err := base.Policy.UnmarshalText([]byte(f.policy)); err != nil {
			return base, usagef("--policy %s: want write-back, write-through or write-all", f.policy)
		}
	}
	switch p := memspan.Placement(f.placement); p {
	case "":
	case memspan.HostVisible, memspan.DeviceLocal:
		base.Placement = p
	default:
		return base, usagef("--placement %s: want host-visible or device-local", f.placement)
	}
	return base, nil
}

// parseTier reads a tier that this command can make spans on.
func parseTier(flag, name string) (memspan.Tier, error) {
	switch name {
	case "host":
		return memspan.Host, nil
	case "vram":
		return memspan.VRAM, nil
	case "disk":
		return memspan.Disk, nil
	}
	return 0, usagef("%s %s: want host, vram or disk", flag, name)
}

// An input is a file or a stream whose length is known.
type input struct {
	*os.File
	name string
	size int64 // from the current offset on
}

// openInput opens a file, or stdin for "-".
func openInput(path string, stdin io.Reader) (in *input, err error) {
	if path == "-" {
		if f, ok := stdin.(*os.File); ok {
			return sized(f, "standard input")
		}
		return spool(stdin, "standard input")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	in, err = sized(f, path)
	if err != nil {
		f.Close()
	}
	return in, err
}

// sized returns f if its length is known, else a temporary copy of it.
func sized(f *os.File, name string) (*input, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return nil, fmt.Errorf("%s is a directory; put one file", name)
	}
	if info.Mode().IsRegular() {
		at, err := f.Seek(0, io.SeekCurrent) // a shell may have read some of it
		if err != nil {
			return nil, err
		}
		if rest := info.Size() - at; rest > 0 {
			return &input{f, name, rest}, nil
		}
	}
	// A stream, an empty file, or one of the kernel's that do not tell.
	defer f.Close()
	return spool(f, name)
}

// spool copies a stream to a temporary file that has no name any more, so that
// nothing is left of it however this process ends.
func spool(r io.Reader, name string) (in *input, err error) {
	f, err := os.CreateTemp("", "memspan-put-*")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	if err := os.Remove(f.Name()); err != nil {
		return nil, err
	}
	n, err := io.Copy(f, r)
	if err != nil {
		return nil, fmt.Errorf("keep %s in a temporary file: %w", name, err)
	}
	if n == 0 {
		return nil, fmt.Errorf("%s is empty; a span holds at least one byte", name)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	return &input{f, name, n}, nil
}
