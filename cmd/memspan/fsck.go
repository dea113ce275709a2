// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/server"
	"github.com/memspan/memspan/tier/disk"
)

func newFsck(opts *options) *cobra.Command {
	repair := false
	cmd := &cobra.Command{
		Use:   "fsck DIRECTORY",
		Short: "Check a data directory, and repair what can be repaired",
		Long: `Fsck reads all that a data directory holds, the one of 'memspan serve --data',
and says what is not as it was written: which bytes of which file, and which
block of which span that is. If a daemon has the directory that daemon is asked
to check it, and goes on serving.

--repair mends what can be mended: a lost index is rebuilt from the blocks, and a
block whose bytes are damaged becomes a known loss, which readers are told of
until it is written anew or accepted. The daemon must have been stopped for that.

It exits 0 if all is well and 1 if anything is damaged, or was before it was
repaired: once repaired, it exits 0 the next time.`,
		Example: `  memspan fsck /var/lib/memspan
  memspan fsck /var/lib/memspan --repair
  memspan fsck /var/lib/memspan --json | jq '.faults[].span'`,
		Args: args(cobra.ExactArgs(1), "one directory"),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return nil, cobra.ShellCompDirectiveFilterDirs
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := fsck(cmd.Context(), opts, args[0], repair)
			if err != nil {
				return err
			}
			if opts.json {
				err = printJSON(cmd.OutOrStdout(), r)
			} else {
				err = r.print(cmd.OutOrStdout())
			}
			if err == nil && len(r.Faults) > 0 {
				err = errReported
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&repair, "repair", false, "mend what can be mended")
	return cmd
}

// A fsckReport is what fsck has found.
type fsckReport struct {
	memspan.CheckReport
	Online bool `json:"online"` // by the daemon that has the directory
}

// fsck checks a directory, or has the daemon check it that has it.
func fsck(ctx context.Context, opts *options, dir string, repair bool) (fsckReport, error) {
	found, err := server.CheckDirectory(ctx, dir, repair)
	if !errors.Is(err, disk.ErrInUse) {
		return fsckReport{CheckReport: found}, err
	}
	if repair {
		return fsckReport{}, fmt.Errorf("%w: a directory in use can be checked, but not repaired", err)
	}
	return fsckOnline(ctx, opts, dir, err)
}

// fsckOnline asks the daemon that the flags and the environment name, which is
// to be the one that has the directory.
func fsckOnline(ctx context.Context, opts *options, dir string, inUse error) (fsckReport, error) {
	path, err := filepath.Abs(dir)
	if err != nil {
		return fsckReport{}, err
	}
	client, err := opts.dial(ctx)
	if err != nil {
		return fsckReport{}, fmt.Errorf("%w; asking the daemon to check it: %w", inUse, err)
	}
	r, err := client.Check(ctx, path)
	if closeErr := client.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fsckReport{}, fmt.Errorf("%w; asking the daemon to check it: %w; name the one that has it with --address", inUse, err)
	}
	return fsckReport{CheckReport: r, Online: true}, nil
}

func (r fsckReport) print(w io.Writer) error {
	for _, f := range r.Faults {
		if _, err := fmt.Fprintln(w, describeFault(f)); err != nil {
			return err
		}
	}
	if r.More > 0 {
		fmt.Fprintf(w, "and %s more\n", countOf(r.More, "fault"))
	}
	verdict, repaired := "clean", 0
	if n := len(r.Faults) + r.More; n > 0 {
		for _, f := range r.Faults {
			if f.Repaired {
				repaired++
			}
		}
		verdict = fmt.Sprintf("%s, %d repaired", countOf(n, "fault"), repaired)
	}
	how := ""
	if r.Online {
		how = ", checked by the daemon that has it"
	}
	_, err := fmt.Fprintf(w, "%s: %s, %s with %s%s: %s\n", r.Directory,
		countOf(r.Spans, "durable span"), countOf(r.Blocks, "block"), humanSize(r.Bytes), how, verdict)
	return err
}

// describeFault says what is damaged and where, and what is to be done, in one
// line.
func describeFault(f memspan.Fault) string {
	s := fmt.Sprintf("%s at %d: %s", f.File, f.Offset, f.What)
	if f.Block != nil {
		s += fmt.Sprintf(", block %d of span %q", *f.Block, f.Span)
	} else if f.Span != "" {
		s += fmt.Sprintf(", span %q", f.Span)
	}
	if f.Expected != "" {
		s += ": expected " + f.Expected + ", found " + f.Found
	} else if f.Found != "" {
		s += ": " + f.Found
	}
	if f.Repair != "" {
		s += "; " + f.Repair
	}
	if f.Repaired {
		s += " (done)"
	}
	return s
}
