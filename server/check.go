// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"fmt"
	"os"

	"github.com/memspan/memspan/tier/disk"
	"github.com/memspan/memspan/wire"
	"github.com/memspan/memspan/wire/control"
)

// listedFaults is how many faults one answer describes: well within what fits
// into a message.
const listedFaults = 512

// check verifies the data directory while it is in use.
func (s *session) check(ctx context.Context, a control.Check) (control.Checked, error) {
	srv := s.srv
	fail := func(code wire.Code, message string) (control.Checked, error) {
		return control.Checked{}, &wire.Error{Code: code, Op: "check", Message: message}
	}
	if srv.disk == nil {
		return fail(wire.TierAbsent, "this daemon keeps no data directory: it was started without --data")
	}
	ours, err := os.Stat(srv.data)
	if err != nil {
		return fail(wire.Internal, err.Error())
	}
	// What other files there are is nobody's business who may be far away.
	if theirs, err := os.Stat(a.Directory); err != nil || !os.SameFile(ours, theirs) {
		return fail(wire.NotFound, fmt.Sprintf("this daemon's data directory is %s, and not %s", srv.data, a.Directory))
	}
	report, err := srv.disk.Check(ctx)
	if err != nil {
		return control.Checked{}, err
	}
	c := checked(srv.data, report)
	if more := len(c.Faults) - listedFaults; more > 0 {
		c.Faults, c.More = c.Faults[:listedFaults], more
	}
	return c, nil
}

// CheckDirectory reads and verifies all that a data directory holds that no
// server has, and if repair is set mends what can be mended. It fails with
// disk.ErrInUse if a server has it: that one can be asked, by control.OpCheck.
func CheckDirectory(ctx context.Context, dir string, repair bool) (control.Checked, error) {
	r, err := disk.Check(ctx, dir, repair)
	return checked(dir, r), err
}

// checked is a report in the words of the protocol.
func checked(dir string, r disk.Report) control.Checked {
	c := control.Checked{Directory: dir, Spans: r.Spans, Blocks: r.Blocks, Bytes: r.Bytes, Faults: []control.Fault{}}
	for _, f := range r.Faults {
		fault := control.Fault{
			What: f.What, File: f.File, Offset: f.Offset, Span: f.Span,
			Expected: f.Expected, Found: f.Found, Repair: f.Repair, Repaired: f.Repaired,
		}
		if f.Block >= 0 {
			fault.Block = &f.Block
		}
		c.Faults = append(c.Faults, fault)
	}
	return c
}
