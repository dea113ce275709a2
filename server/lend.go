// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"

	"github.com/memspan/memspan/span"
	"github.com/memspan/memspan/tier"
	"github.com/memspan/memspan/wire"
)

// lend answers a read straight from the span's memory, under the block's lock
// for as long as nobody waits for it: what the client has not taken by then is
// copied to spare. It reports whether it has answered; if not, the read is to
// be carried out in the ordinary way, which finds the reason.
func (s *session) lend(ctx context.Context, j *dataJob, sp *span.Span, spare tier.Memory) (answered bool, err error) {
	off, n, err := signed(j.command)
	if err != nil {
		return false, nil
	}
	var loan wire.Loan
	h := wire.Header{Kind: j.header.Kind, Flags: wire.FlagReply, ID: j.header.ID}
	_, err = sp.Lend(ctx, off, n, loan.Recall, func(p []byte) {
		answered = s.conn.Lend(&loan, h, wire.AppendResult(nil, vkSuccess), p, spare.Bytes()[:n])
	})
	if err != nil || !answered {
		return false, nil
	}
	s.bytesRead.Add(n)
	sp.CountLent(n)
	return true, loan.Settle() // the lock is free: this may wait for the client
}
