// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/memspan/memspan/tier/vram"
)

// A checkState says how a check went.
type checkState string

const (
	stateOK        checkState = "ok"
	stateLimited   checkState = "limited"   // works, but slower or smaller
	stateAbsent    checkState = "absent"    // an optional part is missing
	stateEssential checkState = "essential" // memspan does not work without
)

// A check is one thing that memspan can use, and whether it is here.
type check struct {
	Name    string     `json:"name"`
	State   checkState `json:"state"`
	Found   string     `json:"found"`            // what there is, in a word or two
	Meaning string     `json:"meaning"`          // what that means for memspan
	Reason  string     `json:"reason,omitempty"` // why it is not ok, where the machine says so
	Fix     string     `json:"fix,omitempty"`    // the command that changes it
}

// A diagnosis is what doctor prints.
type diagnosis struct {
	OK      bool              `json:"ok"` // nothing essential is missing
	Version versionInfo       `json:"version"`
	Checks  []check           `json:"checks"`
	Devices []vram.DeviceInfo `json:"devices"`
}

func newDoctor(opts *options) *cobra.Command {
	data, shared := "", ""
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what this machine offers, what is missing and how to get it",
		Long: `Doctor looks at what memspan can use on this machine: Vulkan devices and their
memory, the kernel's means of sharing and tracking memory, limits, and the
daemon. What is missing comes with the command that fixes it. With --data it also
looks at where spans would be kept: the file system, its room, and whether what
is written there can be made durable. With --shared-dir it looks at a directory
of shared buffers: how the two sides see each other's stores there.

It exits 1 only if something is missing without which memspan does not work.`,
		Example: `  memspan doctor
  memspan doctor --data /var/lib/memspan
  memspan doctor --json | jq '.devices[].name'`,
		Args: args(cobra.NoArgs, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			d := diagnose(cmd.Context(), opts, data, shared)
			var err error
			if opts.json {
				err = printJSON(cmd.OutOrStdout(), d)
			} else {
				err = d.print(cmd.OutOrStdout())
			}
			if err == nil && !d.OK {
				err = errReported
			}
			return err
		},
	}
	cmd.Flags().StringVar(&data, "data", "", "look at this data `directory` too")
	cmd.Flags().StringVar(&shared, "shared-dir", "", "look at this `directory` of shared buffers too")
	return cmd
}

func (d *diagnosis) print(w io.Writer) error {
	t := newTable(w, "CHECK", "STATE", "FOUND", "WHAT IT MEANS")
	for _, c := range d.Checks {
		t.row(c.Name, string(c.State), c.Found, c.Meaning)
	}
	if err := t.flush(); err != nil {
		return err
	}
	d.printFixes(w)
	for _, device := range d.Devices {
		if err := printDevice(w, device); err != nil {
			return err
		}
	}
	verdict := "Everything essential is here."
	if !d.OK {
		verdict = "Something essential is missing: memspan does not work on this machine as it is."
	}
	_, err := fmt.Fprintf(w, "\n%s\n", verdict)
	return err
}

// printFixes says why checks failed, and what to do about it.
func (d *diagnosis) printFixes(w io.Writer) {
	for _, c := range d.Checks {
		if c.Reason == "" && c.Fix == "" {
			continue
		}
		fmt.Fprintf(w, "\n%s\n", c.Name)
		if c.Reason != "" {
			fmt.Fprintf(w, "  why: %s\n", c.Reason)
		}
		if c.Fix != "" {
			fmt.Fprintf(w, "  fix: %s\n", c.Fix)
		}
	}
}

func printDevice(w io.Writer, d vram.DeviceInfo) error {
	fmt.Fprintf(w, "\nVulkan device %d: %s (%s, Vulkan %s)\n", d.Index, d.Name, d.Type, d.API)
	if d.Driver != "" {
		fmt.Fprintf(w, "  driver %s\n", d.Driver)
	}
	t := newTable(w, "  HEAP", "SIZE", "WHERE", "MEMORY TYPES")
	for i, heap := range d.Heaps {
		where := "system"
		if heap.DeviceLocal {
			where = "device"
		}
		first := true
		for n, kind := range d.Types {
			if kind.Heap != i {
				continue
			}
			types := fmt.Sprintf("%d: %s", n, kind.Flags)
			if first {
				t.row("  "+strconv.Itoa(i), humanSize(heap.Size), where, types)
			} else {
				t.row("", "", "", types)
			}
			first = false
		}
		if first {
			t.row("  "+strconv.Itoa(i), humanSize(heap.Size), where, "none")
		}
	}
	return t.flush()
}
