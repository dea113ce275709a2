// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/memspan/memspan"
)

func newGet(opts *options) *cobra.Command {
	var (
		output         string
		offset, length size
	)
	cmd := &cobra.Command{
		Use:   "get SPAN",
		Short: "Write a span's bytes to standard output or a file",
		Example: `  memspan get weights >model.bin
  memspan get weights | cmp - model.bin
  memspan get weights --offset 4KiB --length 64 | xxd
  memspan get weights -o model.bin --json`,
		Args:              args(cobra.ExactArgs(1), "one span's name or id"),
		ValidArgsFunction: opts.spanNames(1),
	}
	flags := cmd.Flags()
	flags.StringVarP(&output, "output", "o", "", "`file` to write instead of standard output")
	flags.Var(&offset, "offset", "first byte to get")
	flags.Var(&length, "length", "how many bytes to get (default all from --offset on)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if opts.json && output == "" {
			return usagef("get --json needs -o FILE: the bytes themselves go to standard output")
		}
		whole := !cmd.Flags().Changed("length")
		return opts.withClient(func(cmd *cobra.Command, client *memspan.Client, args []string) error {
			span, err := client.Open(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			n := int64(length)
			if whole {
				n = max(span.Size()-int64(offset), 0)
			}
			if int64(offset) > span.Size() || n > span.Size()-int64(offset) {
				return usagef("bytes [%d, +%d) are not within %s, which has %d", int64(offset), n, args[0], span.Size())
			}
			return get(cmd, opts, span, int64(offset), n, output)
		})(cmd, args)
	}
	return cmd
}

func get(cmd *cobra.Command, opts *options, span *memspan.Span, off, n int64, output string) (err error) {
	ctx := cmd.Context()
	start := time.Now()
	if output == "" {
		return download(ctx, cmd.OutOrStdout(), span, off, n, nil)
	}
	f, err := os.Create(output)
	if err != nil {
		return err
	}
	bar := newProgress(cmd.ErrOrStderr(), "get "+span.Name(), n)
	defer bar.stop()
	err = download(ctx, f, span, off, n, bar)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("%s is incomplete: %w", output, err)
	}
	bar.stop()
	if !opts.json {
		return nil
	}
	stat, err := span.Stat(ctx)
	if err != nil {
		return err
	}
	return opts.report(cmd, transferred(stat, n, time.Since(start)))
}

// download writes bytes [off, off+n) of the span to w.
func download(ctx context.Context, w io.Writer, span *memspan.Span, off, n int64, bar *progress) error {
	buf := make([]byte, min(pieceSize, n))
	for end := off + n; off < end; {
		piece := buf[:min(int64(len(buf)), end-off)]
		if _, err := span.ReadAt(ctx, piece, off); err != nil {
			return err
		}
		if _, err := w.Write(piece); err != nil {
			return err
		}
		bar.add(len(piece))
		off += int64(len(piece))
	}
	return nil
}
