// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/memspan/memspan"
)

func newAccept(opts *options) *cobra.Command {
	return &cobra.Command{
		Use:   "accept SPAN",
		Short: "Accept that bytes of a span were lost",
		Long: `Accept ends the data loss of a span whose newest bytes went with the device that
held them: for each block that is lost the newest bytes that survive elsewhere,
or zeros, become the current ones. The others stay as they are.`,
		Example: `  memspan accept weights
  memspan accept weights --json | jq .accepted`,
		Args:              args(cobra.ExactArgs(1), "one span's name or id"),
		ValidArgsFunction: opts.spanNames(1),
		RunE: opts.withClient(func(cmd *cobra.Command, client *memspan.Client, args []string) error {
			ctx := cmd.Context()
			span, err := client.Open(ctx, args[0])
			if err != nil {
				return err
			}
			before, err := span.Stat(ctx)
			if err != nil {
				return err
			}
			if _, err := span.Accept(ctx); err != nil {
				return err
			}
			stat, err := span.Stat(ctx)
			if err != nil {
				return err
			}
			if opts.json {
				return printJSON(cmd.OutOrStdout(), struct {
					Span     memspan.SpanStat `json:"span"`     // afterwards
					Accepted int              `json:"accepted"` // blocks that were lost
				}{stat, before.Lost})
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %s accepted, version %d, held by %s\n",
				label(stat), countOf(before.Lost, "lost block"), stat.Version, holders(stat))
			return err
		}),
	}
}
