// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"text/tabwriter"

	"github.com/memspan/memspan/vulkan/registry"
)

// A trace counts calls and round trips by command. A nil one counts nothing.
type trace struct {
	calls []atomic.Uint64
	trips []atomic.Uint64

	mu             sync.Mutex     // held while the table is written
	told           map[*link]flow // what was written of links that stand
	sent, received uint64         // bytes of links that have ended, not written yet
}

// A flow is bytes that went through a link's connection.
type flow struct{ sent, received uint64 }

func (l *link) flow() flow {
	s := l.sc.Wire().Stats()
	return flow{s.Sent.Bytes, s.Received.Bytes}
}

func newTrace() *trace {
	n := len(registry.Commands)
	return &trace{calls: make([]atomic.Uint64, n), trips: make([]atomic.Uint64, n), told: make(map[*link]flow)}
}

// ended counts what went through a link that ends.
func (t *trace) ended(l *link) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.count(l)
	delete(t.told, l)
}

// count counts what went through a link since the last time. The caller holds
// mu.
func (t *trace) count(l *link) {
	now, before := l.flow(), t.told[l]
	t.sent += now.sent - before.sent
	t.received += now.received - before.received
	t.told[l] = now
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

// WriteTrace writes to Config.Trace what was counted since the last time: the
// commands, those with the most round trips first, and the bytes on the
// connection. It writes nothing if there is nothing to write. It may be called
// at any time; the driver calls it when it is closed or the last instance is
// destroyed.
func (d *Driver) WriteTrace() error {
	if d.trace == nil {
		return nil
	}
	d.trace.mu.Lock()
	defer d.trace.mu.Unlock()
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
	if l := d.current.Load(); l != nil {
		d.trace.count(l)
	}
	sent, received := d.trace.sent, d.trace.received
	d.trace.sent, d.trace.received = 0, 0
	w := tabwriter.NewWriter(d.cfg.Trace, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(w, "calls\tround trips\t\n")
	for _, r := range append(rows, total) {
		fmt.Fprintf(w, "%d\t%d\t  %s\n", r.calls, r.trips, r.name)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(d.cfg.Trace, "%d bytes sent, %d received\n", sent, received)
	return err
}
