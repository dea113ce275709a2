// SPDX-License-Identifier: Apache-2.0

package memspan

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/internal/memlimit"
	"github.com/memspan/memspan/wire/control"
)

// A Draft is memory that becomes a surface as it is: on the server's machine it is
// handed over, and no byte is copied. It is for one goroutine at a time. (Linux)
type Draft struct{ memory *memfd.Draft }

// NewDraft returns size bytes, at least one, that read as zeros. All are taken from
// the system now, where there may be too few: ErrBudget.
func NewDraft(size int64) (*Draft, error) {
	if size <= 0 {
		return nil, failed("draft", "", 0, size, &Error{Code: ErrInvalid, Message: "want one byte or more"})
	}
	if room := memlimit.System().Usable(); room > 0 && size > room {
		return nil, failed("draft", "", 0, size, &Error{Code: ErrBudget, Message: fmt.Sprintf("RAM has room for %d bytes only", room)})
	}
	m, err := memfd.NewDraft("memspan-draft", size)
	if err != nil {
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.ENOMEM) {
			err = &Error{Code: ErrBudget, Err: err}
		}
		return nil, failed("draft", "", 0, size, err)
	}
	return &Draft{m}, nil
}

// Bytes returns the memory, which is the caller's until Expose or Close.
func (d *Draft) Bytes() []byte {
	if d.memory == nil {
		return nil
	}
	return d.memory.Bytes()
}

// Expose makes a surface of the memory and gives it up, whether it succeeds or not:
// Bytes must not be touched any more.
func (d *Draft) Expose(ctx context.Context, c *Client, o ExposeOptions) (*Exposed, error) {
	if d.memory == nil {
		return nil, failed("expose", o.Name, 0, 0, &Error{Code: ErrClosed, Message: "the draft was exposed, or closed"})
	}
	defer d.Close()
	size := int64(len(d.memory.Bytes()))
	if c.link.fds == nil || o.Encrypt {
		return c.ExposeBytes(ctx, d.memory.Bytes(), o)
	}
	if err := d.memory.Freeze(); err != nil {
		return nil, failed("expose", o.Name, 0, 0, err)
	}
	e, err := c.exposeFile(ctx, d.memory.File(), control.ExposeMemory, size, o)
	return e, failed("expose", o.Name, 0, 0, err)
}

// Close gives the memory back. It is idempotent.
func (d *Draft) Close() error {
	if d.memory == nil {
		return nil
	}
	m := d.memory
	d.memory = nil
	return m.Close()
}
