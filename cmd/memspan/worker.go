// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/memspan/memspan/tier/vram"
	"github.com/memspan/memspan/vulkan/render"
)

// newWorker is the process that the daemon starts to run a GPU driver: for its
// own spans, or as "worker vulkan" for an application.
func newWorker() *cobra.Command {
	// A signal sent to the whole process group is the daemon's to answer: what
	// it still has to write back, and applications that go on, need the worker.
	cmd := &cobra.Command{
		Use:    "worker",
		Short:  "Run a GPU driver for the daemon, which starts this itself",
		Hidden: true,
		Args:   args(cobra.NoArgs, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return vram.Worker(context.WithoutCancel(cmd.Context()))
		},
	}
	cmd.AddCommand(&cobra.Command{
		Use:   "vulkan",
		Short: "Run a GPU driver for an application, to whom the daemon lends a GPU",
		Args:  args(cobra.NoArgs, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return render.Worker(context.WithoutCancel(cmd.Context()))
		},
	})
	return cmd
}
