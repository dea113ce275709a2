// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"os"
	"strings"

	"github.com/memspan/memspan/coherency"
	"github.com/memspan/memspan/span"
	"github.com/memspan/memspan/surface"
	"github.com/memspan/memspan/tier"
	"github.com/memspan/memspan/tier/disk"
	"github.com/memspan/memspan/wire"
)

// codes tells which code an error crosses the wire as. The first match counts.
var codes = [...]struct {
	err  error
	code wire.Code
}{
	{span.ErrDebt, wire.Debt},
	{span.ErrNotFound, wire.NotFound},
	{span.ErrExists, wire.Exists},
	{span.ErrRange, wire.OutOfRange},
	{span.ErrInvalid, wire.Invalid},
	{span.ErrFreed, wire.Freed},
	{span.ErrLimit, wire.Limit},
	{span.ErrNotHeld, wire.NotHeld},
	{span.ErrNotMapped, wire.NotMapped},
	{coherency.ErrDataLoss, wire.DataLoss},
	{coherency.ErrConflict, wire.Conflict},
	{coherency.ErrPinned, wire.Pinned},
	{coherency.ErrLastCopy, wire.LastCopy},
	{coherency.ErrBusy, wire.Busy},
	{coherency.ErrState, wire.WrongState},
	{tier.ErrAbsent, wire.TierAbsent},
	{tier.ErrBudget, wire.Budget},
	{tier.ErrCorrupt, wire.Corrupt},
	{disk.ErrFailed, wire.TierFailed},
	{tier.ErrLost, wire.DataLoss},
	{surface.ErrTicket, wire.Unauthenticated},
	{surface.ErrBusy, wire.Busy},
	{surface.ErrExpired, wire.Expired},
	{surface.ErrRevoked, wire.Revoked},
	{surface.ErrTaken, wire.Taken},
	{surface.ErrLeft, wire.NotFound},
	{surface.ErrGiven, wire.Taken},
	{surface.ErrFailed, wire.PeerLost},
	{surface.ErrClosed, wire.Closed},
	{surface.ErrMissing, wire.WrongState},
	{surface.ErrState, wire.WrongState},
	{surface.ErrRange, wire.OutOfRange},
	{surface.ErrChanged, wire.Conflict},
	{surface.ErrCorrupt, wire.Corrupt},
	{surface.ErrFormat, wire.Invalid},
	{surface.ErrNotFound, wire.NotFound},
	{surface.ErrExists, wire.Exists},
	{surface.ErrLimit, wire.Limit},
	{surface.ErrRoom, wire.Budget},
	{errors.ErrUnsupported, wire.Unsupported},
	{errGone, wire.Closed},
	{os.ErrClosed, wire.Closed},
	{context.Canceled, wire.Canceled},
}

// wireError turns an error into what the client is told.
func wireError(err error) *wire.Error {
	var we *wire.Error
	if errors.As(err, &we) {
		return we
	}
	we = &wire.Error{Code: wire.Internal, Message: err.Error()}
	var placed *span.Error
	if errors.As(err, &placed) {
		we.Op, we.Span, we.Offset, we.Length = placed.Op, placed.Span, placed.Offset, placed.Length
		we.Message = placed.Err.Error()
	}
	for _, c := range codes {
		if errors.Is(err, c.err) {
			we.Code = c.code
			we.Message = without(we.Message, c.err.Error())
			break
		}
	}
	var loss *coherency.DataLossError
	if errors.As(err, &loss) {
		we.Version, we.Survivor = loss.Lost, loss.Survivor
	}
	return we
}

// without returns what message says beyond sentinel, the text of the error that
// its code stands for: the code says that already.
func without(message, sentinel string) string {
	if message == sentinel {
		return ""
	}
	message = strings.Replace(message, sentinel+": ", "", 1)
	return strings.TrimSuffix(message, ": "+sentinel)
}

// replyError answers a request with an error. It returns one of its own if the
// connection must end.
func (s *session) replyError(h wire.Header, err error) error {
	we := wireError(err)
	if we.Code == wire.Internal {
		s.log.Error("request failed", "kind", h.Kind, "error", err)
	}
	var prefix []byte
	if h.Kind == wire.KindTransfer || h.Kind == wire.KindRead || h.Kind == wire.KindFlush {
		prefix = wire.AppendResult(nil, we.Code.VkResult())
	}
	return s.conn.WriteFrame(wire.Header{Kind: h.Kind, Flags: wire.FlagReply | wire.FlagError, ID: h.ID}, prefix, we.Append(nil))
}
