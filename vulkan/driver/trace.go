// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"cmp"
	"fmt"
	"slices"
	"sync/atomic"
	"text/tabwriter"

	"github.com/memspan/memspan/vulkan/registry"
)

// A trace counts calls and round trips by command. A nil one counts nothing.
type trace struct {
	calls []atomic.Uint64
	trips []atomic.Uint64
}

func newTrace() *trace {
	n := len(registry.Commands)
	return &trace{make([]atomic.Uint64, n), make([]atomic.Uint64, n)}
}

// call counts a call.
func (t *trace) call(cmd registry.Index) {
	if t != nil {
		t.calls[cmd].Add(1)
	}
}

// trip counts a round trip.
func (t *trace) trip(cmd registry.Index) {
	if t != nil {
		t.trips[cmd].Add(1)
	}
}

// writeTrace writes what was counted since the last time, those with the most
// round trips first.
func (d *Driver) writeTrace() error {
	if d.trace == nil {
		return nil
	}
	type row struct {
		name         string
		calls, trips uint64
	}
	var rows []row
	total := row{name: "total"}
	for i := range d.trace.trips {
		r := row{registry.Commands[i].Name, d.trace.calls[i].Swap(0), d.trace.trips[i].Swap(0)}
		if r.calls+r.trips > 0 {
			rows = append(rows, r)
			total.calls += r.calls
			total.trips += r.trips
		}
	}
	if len(rows) == 0 {
		return nil
	}
	slices.SortStableFunc(rows, func(a, b row) int {
		return cmp.Or(cmp.Compare(b.trips, a.trips), cmp.Compare(b.calls, a.calls))
	})
	w := tabwriter.NewWriter(d.cfg.Trace, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(w, "calls\tround trips\t\n")
	for _, r := range append(rows, total) {
		fmt.Fprintf(w, "%d\t%d\t  %s\n", r.calls, r.trips, r.name)
	}
	return w.Flush()
}
