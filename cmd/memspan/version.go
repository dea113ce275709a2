// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/memspan/memspan/wire"
)

// version is set by the linker: -X main.version=v1.2.3.
var version string

// versionInfo is what 'memspan version --json' prints.
type versionInfo struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"` // of the source
	Protocol int    `json:"protocol"`           // of the wire
	Go       string `json:"go"`
	System   string `json:"system"`
}

func thisVersion() versionInfo {
	v := versionInfo{
		Version:  version,
		Protocol: wire.Version,
		Go:       runtime.Version(),
		System:   runtime.GOOS + "/" + runtime.GOARCH,
	}
	if build, ok := debug.ReadBuildInfo(); ok {
		if v.Version == "" {
			v.Version = build.Main.Version
		}
		for _, s := range build.Settings {
			if s.Key == "vcs.revision" {
				v.Revision = s.Value
			}
		}
	}
	if v.Version == "" {
		v.Version = "(devel)"
	}
	return v
}

func newVersion(opts *options) *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: `  memspan version --json`,
		Args:    args(cobra.NoArgs, "no arguments"),
		RunE:    func(cmd *cobra.Command, _ []string) error { return printVersion(cmd, opts) },
	}
}

func printVersion(cmd *cobra.Command, opts *options) error {
	v := thisVersion()
	if opts.json {
		return printJSON(cmd.OutOrStdout(), v)
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "memspan %s, protocol %d, %s, %s\n", v.Version, v.Protocol, v.Go, v.System)
	return err
}
