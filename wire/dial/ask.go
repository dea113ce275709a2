// SPDX-License-Identifier: Apache-2.0

package dial

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/memspan/memspan/wire"
	"github.com/memspan/memspan/wire/control"
)

// Ask sends one control request and waits for its reply, which it stores in
// reply. Nothing else may be under way on the connection, and nothing beyond the
// reply's frame is taken from it that would not be found by Wire. After an
// error, which is a *wire.Error, or when ctx ends first, the connection is
// closed.
func (c *Conn) Ask(ctx context.Context, op control.Op, args, reply any) error {
	return c.wait(ctx, op, func() error {
		// The server may still be putting away the last request, which it has
		// answered.
		payload, err := control.Encode(op, args)
		if err == nil {
			err = c.send(payload)
		}
		if err != nil {
			return err
		}
		return c.receive(op, reply)
	})
}

// Await waits for the reply to the request op that was sent early, as Ask does.
func (c *Conn) Await(ctx context.Context, op control.Op, reply any) error {
	return c.wait(ctx, op, func() error { return c.receive(op, reply) })
}

// wait calls exchange, whose connection is closed if ctx ends, and places its
// error.
func (c *Conn) wait(ctx context.Context, op control.Op, exchange func() error) error {
	stop := context.AfterFunc(ctx, func() { c.Wire.Close() })
	err := exchange()
	if !stop() && err == nil { // ctx ended at the last moment
		err = context.Cause(ctx)
	}
	if err == nil {
		return nil
	}
	c.Wire.Close()
	var refusal *wire.Error
	var reason wire.Code
	switch {
	case ctx.Err() != nil:
		return &wire.Error{Code: wire.Canceled, Op: string(op), Err: context.Cause(ctx)}
	case errors.As(err, &refusal):
		placed := *refusal
		placed.Op = string(op)
		return &placed
	case errors.As(err, &reason):
		return &wire.Error{Code: reason, Op: string(op), Err: err}
	}
	return &wire.Error{Code: wire.PeerLost, Op: string(op), Err: err}
}

func (c *Conn) send(payload []byte) error {
	c.asked++
	return c.Wire.WriteFrame(wire.Header{Kind: wire.KindControl, ID: c.asked}, nil, payload)
}

// receive receives the reply to the last request.
func (c *Conn) receive(op control.Op, reply any) error {
	for {
		h, err := c.Wire.ReadHeader()
		if err != nil {
			return err
		}
		data := make([]byte, h.Raw)
		if err := c.Wire.ReadData(data); err != nil {
			return err
		}
		switch {
		case h.Kind == wire.KindEvent:
			var e control.Event
			if json.Unmarshal(data, &e) == nil && e.Event == control.EventClosing {
				return &wire.Error{Code: wire.Closed, Message: e.Message}
			}
		case h.Kind != wire.KindControl || h.ID != c.asked || !h.Has(wire.FlagReply):
			return broken("a %v frame instead of a reply", h.Kind)
		case h.Has(wire.FlagError):
			refusal, err := wire.ParseError(data)
			if err != nil {
				return broken("refusal: %w", err)
			}
			return refusal
		default:
			if err := json.Unmarshal(data, reply); err != nil {
				return fmt.Errorf("reply to %s: %w", op, broken("%w", err))
			}
			return nil
		}
	}
}
