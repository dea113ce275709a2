// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/memspan/memspan/internal/blocks"
	"github.com/memspan/memspan/internal/durable"
	"github.com/memspan/memspan/internal/memlimit"
	"github.com/memspan/memspan/internal/sharedfile"
	"github.com/memspan/memspan/sharedbuf"
)

// Limits of a host that a Config does not set.
const (
	DefaultMaxBuffer      = 64 << 30 // bytes
	DefaultMaxConnections = 256
	DefaultMaxInFlight    = 64               // requests and jobs of a connection, each
	DefaultIOTimeout      = 30 * time.Second // without a byte moving, within a message
	DefaultSweep          = 5 * time.Second
	DefaultMaxAllCopies   = 4 << 30 // bytes, where it is not known how much RAM there is
)

// A Config says what a host serves, and whom. The zero value serves buffers
// without a name, to this user.
type Config struct {
	// Dir is the directory that buffers are in, by the host's name for it.
	// Nothing outside of it is opened. Empty: buffers without a name only.
	Dir string
	// Translate turns the guests' paths into the host's; empty: they are the same.
	Translate sharedbuf.Translation
	// Operations are what guests may ask for beside the built-in ones: process,
	// checksum, verify and fill.
	Operations []Operation

	// Trust are networks from which anybody may connect over TCP, unencrypted and
	// without proving who he is: the virtual network of a guest. Beside these and
	// this user's own processes, and root's, nobody is let in but over TLS.
	Trust []netip.Prefix
	// Token is what guests present on a TLSListener that have no certificate;
	// empty: none is let in there without one.
	Token string

	MaxBuffer      int64         // bytes of the largest buffer; 0: DefaultMaxBuffer
	MaxConnections int           // at a time; 0: DefaultMaxConnections
	MaxInFlight    int           // requests of one connection, and jobs; 0: DefaultMaxInFlight
	MaxCopies      int64         // bytes of the copies of one connection's buffers, where their bytes are sent or encrypted; 0: half of MaxAllCopies
	MaxAllCopies   int64         // bytes of all copies; 0: half of the RAM that is there to be used
	IOTimeout      time.Duration // ends a connection that stalls within a message; 0: DefaultIOTimeout
	Sweep          time.Duration // how often files of dead guests are looked for; 0: DefaultSweep

	Logger *slog.Logger // nil: none
}

// A Host serves guests. Its methods may be called concurrently.
type Host struct {
	config     Config
	dir        *sharedfile.Dir // nil: none
	inRAM      bool            // what is in dir is
	boot       string
	operations map[string]Operation
	names      []string // of the operations, sorted

	measuring chan struct{} // has a token while something is measured
	memory    memory        // for copies of buffers
	helpers   *blocks.Helpers

	conns    *semaphore.Weighted // has MaxConnections
	refusals *semaphore.Weighted // has maxRefusals
}

// New returns a host, which the caller closes. It fails if the directory cannot
// be opened or the configuration cannot be meant.
func New(config Config) (*Host, error) {
	setDefault(&config.MaxBuffer, DefaultMaxBuffer)
	setDefault(&config.MaxConnections, DefaultMaxConnections)
	setDefault(&config.MaxInFlight, DefaultMaxInFlight)
	setDefault(&config.IOTimeout, DefaultIOTimeout)
	setDefault(&config.Sweep, DefaultSweep)
	setDefault(&config.MaxAllCopies, memlimit.System().Usable()/2)
	setDefault(&config.MaxAllCopies, DefaultMaxAllCopies)
	setDefault(&config.MaxCopies, config.MaxAllCopies/2)
	if config.MaxCopies < 0 || config.MaxAllCopies < 0 || config.MaxBuffer < 0 || config.MaxConnections < 0 || config.MaxInFlight < 0 || config.IOTimeout < 0 || config.Sweep < 0 {
		return nil, errors.New("host: a limit is negative")
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	h := &Host{config: config, measuring: make(chan struct{}, 1), memory: memory{what: "this host", most: config.MaxAllCopies}, helpers: blocks.NewHelpers(),
		conns: semaphore.NewWeighted(int64(config.MaxConnections)), refusals: semaphore.NewWeighted(maxRefusals)}
	var err error
	if h.operations, err = register(config.Operations); err != nil {
		return nil, err
	}
	h.names = slices.Sorted(maps.Keys(h.operations))
	if config.Dir == "" {
		return h, nil
	}
	if h.config.Dir, err = filepath.Abs(config.Dir); err != nil {
		return nil, fmt.Errorf("host: shared directory %s: %w", config.Dir, err)
	}
	if t := config.Translate; len(t) > 0 && !slices.ContainsFunc(t, h.leadsInto) {
		return nil, fmt.Errorf("host: no translation leads into the shared directory %s: %v", h.config.Dir, t)
	}
	if h.boot, err = sharedfile.BootID(); err != nil {
		return nil, fmt.Errorf("host: %w", err)
	}
	if system, err := durable.FileSystemOf(h.config.Dir); err == nil {
		h.inRAM = system.Volatile
	}
	if h.dir, err = sharedfile.OpenDir(h.config.Dir); err != nil {
		return nil, fmt.Errorf("host: shared directory: %w", err)
	}
	return h, nil
}

// leadsInto reports whether what a rule translates may be in the shared directory.
func (h *Host) leadsInto(r sharedbuf.Rule) bool {
	_, above := sharedbuf.Below(r.Host, h.config.Dir)
	_, below := sharedbuf.Below(h.config.Dir, r.Host)
	return above == nil || below == nil
}

func setDefault[T int | int64 | time.Duration](v *T, to T) {
	if *v == 0 {
		*v = to
	}
}

// Close closes the shared directory. It must come after all calls of Serve and
// Sweep have returned.
func (h *Host) Close() error {
	if h.dir == nil {
		return nil
	}
	return h.dir.Close()
}

// Serve serves the guests that connect to ln, until ctx ends or ln fails. Then
// it closes ln and all connections it accepted, gives up what they asked for, and
// returns when that has ended: nil if it was ctx that ended. Meanwhile it removes
// the files of dead guests, now and then.
func (h *Host) Serve(ctx context.Context, ln net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	defer ln.Close()
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	if h.dir != nil {
		work.Go(func() { h.sweep(ctx) })
	}
	for told := false; ; {
		nc, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if isTemporary(err) {
				if !told {
					h.config.Logger.Warn("cannot accept connections", "error", err)
				}
				told = true
				select {
				case <-ctx.Done():
				case <-time.After(acceptPause):
				}
				continue
			}
			return fmt.Errorf("host: accept: %w", err)
		}
		told = false
		work.Go(func() { h.admit(ctx, nc) })
	}
}

// maxRefusals is how many at a time are told that there are enough connections.
const maxRefusals = 64

// acceptPause is how long Serve waits for descriptors to come free.
const acceptPause = 50 * time.Millisecond

// isTemporary reports whether accepting may succeed later: the listener itself
// is not at fault.
func isTemporary(err error) bool {
	return !errors.Is(err, net.ErrClosed) && isResource(err)
}

// sweep removes the files of dead guests until ctx ends.
func (h *Host) sweep(ctx context.Context) {
	tick := time.NewTicker(h.config.Sweep)
	defer tick.Stop()
	for {
		if _, err := h.Sweep(); err != nil {
			h.config.Logger.Warn("cannot look for files of dead guests", "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// Sweep removes the buffers whose guests are dead, in the shared directory itself
// and not below it, and returns their names. A guest is dead when nobody holds
// the lock of its buffer's lease. Buffers without a lease, which guests of the
// original system make, and those of guests on other kernels are left alone.
func (h *Host) Sweep() (removed []string, err error) {
	if h.dir == nil {
		return nil, nil
	}
	removed, err = sharedfile.RemoveAbandoned(h.dir, sharedbuf.NamePrefix, h.boot)
	for _, name := range removed {
		h.config.Logger.Info("removed the file of a dead guest", "file", name)
	}
	return removed, err
}
