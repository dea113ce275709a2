// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/memspan/memspan/mapping"
	"github.com/memspan/memspan/vulkan/codec"
	"github.com/memspan/memspan/vulkan/registry"
	"github.com/memspan/memspan/wire"
)

// Config says what a Driver stands on. All but Trace must be set.
type Config struct {
	// Dial returns a connection to a new worker, past the handshake and the
	// hand-over. It is called when a worker is first needed, and again when an
	// instance is made after the last one's connection was lost.
	Dial func(context.Context) (Connection, error)
	// Alloc returns zeroed C memory, 0 if there is none; Free takes it back.
	// The memory of dispatchable handles must be C's: the loader writes to it.
	Alloc func(size uintptr) uintptr
	Free  func(uintptr)
	// Name is the application's, for logs and lists.
	Name string
	// Logger is told of lost devices and refused calls.
	Logger *slog.Logger
	// Trace, if it is set, is written a table of the calls and round trips of
	// each command when the driver is closed or the last instance destroyed; see
	// also WriteTrace.
	Trace io.Writer
}

// A Connection is what Dial returns.
type Connection struct {
	Wire *wire.Conn
	// Files: both ends are on one machine and files pass.
	Files bool
}

// A Driver carries out an application's calls. Its methods may be called on
// any thread, as far as Vulkan's own rules for objects allow.
type Driver struct {
	cfg     Config
	codec   *codec.Codec
	env     codec.Env
	objects objects
	pool    *mapping.Pool // of the shadows of memory
	trace   *trace        // nil: none

	linkMu  sync.Mutex // held while connecting
	current atomic.Pointer[link]

	mu        sync.Mutex
	instances int
	early     *queryCache // of what is asked before there is an instance
}

// New returns a Driver. It connects when it first needs to.
func New(cfg Config) *Driver {
	d := &Driver{cfg: cfg, codec: codec.New(), early: newQueryCache(), pool: mapping.NewPool(idleShadows)}
	d.objects.alloc, d.objects.free = cfg.Alloc, cfg.Free
	d.env = codec.Env{
		Object:      d.handleOf,
		Template:    d.template,
		Secondary:   d.secondary,
		Attachments: d.attachments,
	}
	if cfg.Trace != nil {
		d.trace = newTrace()
	}
	return d
}

// Close closes the connection, if there is one, and waits for its goroutines.
// No call may be under way, and none may follow.
func (d *Driver) Close() error {
	d.linkMu.Lock()
	defer d.linkMu.Unlock()
	if l := d.current.Swap(nil); l != nil {
		l.close()
	}
	return errors.Join(d.pool.Close(), d.WriteTrace())
}

// connect returns the connection, and makes one if there is none or the last
// was lost.
func (d *Driver) connect() (*link, error) {
	if l := d.current.Load(); l != nil && l.lost() == nil {
		return l, nil
	}
	d.linkMu.Lock()
	defer d.linkMu.Unlock()
	if l := d.current.Load(); l != nil {
		if l.lost() == nil {
			return l, nil
		}
		d.current.Store(nil)
		l.close()
	}
	l, err := dial(d)
	if err != nil {
		d.cfg.Logger.Warn("no Vulkan worker", "error", err)
		return nil, fmt.Errorf("driver: connect: %w", err)
	}
	d.current.Store(l)
	return l, nil
}

// handleOf returns what the application holds of an object of the given type.
func (d *Driver) handleOf(kind registry.Index, id uint64) uint64 {
	if o := d.objects.get(id); o != nil && o.kind == kind {
		return o.handle
	}
	return 0
}
