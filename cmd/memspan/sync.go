// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/memspan/memspan"
)

func newSync(opts *options) *cobra.Command {
	return &cobra.Command{
		Use:   "sync [SPAN]",
		Short: "Wait until what was written is at home",
		Long: `Sync is a barrier: it returns when every version that was committed before it,
of one span or of all, is held by the span's home, durably where that is disk,
and no copy is stale. It prints the epoch that ended: how many barriers there
have been.`,
		Example: `  memspan sync
  memspan sync notes --json | jq .epoch`,
		Args:              args(cobra.MaximumNArgs(1), "at most one span"),
		ValidArgsFunction: opts.spanNames(1),
		RunE: opts.withClient(func(cmd *cobra.Command, client *memspan.Client, args []string) error {
			ctx := cmd.Context()
			barrier := client.Sync
			if len(args) == 1 {
				span, err := client.Open(ctx, args[0])
				if err != nil {
					return err
				}
				barrier = span.Sync
			}
			epoch, err := barrier(ctx)
			if err != nil {
				return err
			}
			if opts.json {
				return printJSON(cmd.OutOrStdout(), struct {
					Epoch uint64 `json:"epoch"`
				}{epoch})
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "epoch %d\n", epoch)
			return err
		}),
	}
}
