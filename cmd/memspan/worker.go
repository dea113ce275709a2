// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/memspan/memspan/tier/vram"
)

// newWorker is the process that the daemon starts to run a GPU driver.
func newWorker() *cobra.Command {
	return &cobra.Command{
		Use:    "worker",
		Short:  "Run a GPU driver for the daemon, which starts this itself",
		Hidden: true,
		Args:   args(cobra.NoArgs, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			// A signal sent to the whole process group is the daemon's to
			// answer: what it still has to write back needs the worker.
			return vram.Worker(context.WithoutCancel(cmd.Context()))
		},
	}
}
