// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/internal/vk"
	"github.com/memspan/memspan/vulkan/codec"
	"github.com/memspan/memspan/vulkan/registry"
	"github.com/memspan/memspan/vulkan/stream"
	"github.com/memspan/memspan/wire"
)

const (
	// patience is how long the stream's goroutine waits for what should be
	// there, such as the end of a submission whose fence is destroyed.
	patience = 5 * time.Second
	// maxAside is how many calls run aside at most, which is how many of an
	// application's threads may be in one at a time: while one more waits for
	// its turn the stream stands still, and the application takes us for dead.
	maxAside = 512
)

// ErrStuck is returned when the device did not become idle: calls may still be
// in the driver.
var ErrStuck = errors.New("render: the device is stuck")

// errExtension is an extension that is not offered.
var errExtension = fmt.Errorf("render: %w", vk.Result(-7))

// A renderer serves one application.
type renderer struct {
	cfg      Config
	conn     *stream.Conn
	codec    *codec.Codec
	loader   *vk.Loader
	env      codec.Env
	effects  []effect                                // by command
	handlers []handler                               // by command; nil: execute
	made     []func(r *renderer, c *call, o *object) // by handle type, called for a new object

	// The stream's goroutine's:
	table      table
	local      bool         // the application is on this machine, and sends files
	importing  []byte       // during a call that allocates memory: what to make it of
	external   externalInfo // chained into the call being executed
	keep       []any        // what was added to the call being executed
	images     *memfd.Arena // of what the client has of memories
	deviceName string       // of the GPU in use
	reported   Usage
	reportedAt time.Time
	held       int64             // bytes of device memory
	physical   map[uint64]uint64 // the ids bound first to physical devices, by real handle
	global     []uintptr         // addresses of functions that need no instance, as instance.procs
	arena      *codec.Arena      // of the call being executed
	call       call              // it
	named      []*object         // whom it names, in order, without its output handles
	cursor     int               // where the last search in named ended
	caller     caller
	batch      batch

	arenas      sync.Pool // of *codec.Arena
	comparisons sync.Pool // of *comparison
	slots       chan struct{}
	aside       sync.WaitGroup

	lostMu sync.Mutex
	lost   bool // the client has been told
}

// Serve executes the Vulkan calls of one application until its connection ends,
// which is no error, or ctx does. It owns the connection and closes it. What
// the application left is destroyed; an error that matches ErrStuck means that
// this was not possible, and the process should end.
func Serve(ctx context.Context, wc *wire.Conn, cfg Config) error {
	defer wc.Close()
	r, err := newRenderer(wc, cfg)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { wc.Close() })
	defer stop()
	err = r.serve()
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return errors.Join(err, r.close())
}

func newRenderer(wc *wire.Conn, cfg Config) (*renderer, error) {
	loader, err := vk.OpenLoader()
	if err != nil {
		return nil, err
	}
	r := &renderer{
		cfg: cfg.withDefaults(), conn: stream.New(wc), codec: codec.New(), loader: loader,
		effects: newEffects(), handlers: newHandlers(), made: newMade(),
		physical: make(map[uint64]uint64), global: make([]uintptr, len(registry.Commands)),
		images: memfd.NewArena("memspan-vulkan"),
		arena:  codec.NewArena(), slots: make(chan struct{}, maxAside),
	}
	r.arenas.New = func() any { return codec.NewArena() }
	r.comparisons.New = func() any { return new(comparison) }
	r.table.limit = r.cfg.Objects
	r.env = codec.Env{Real: r.realOf, ID: r.idOf, Template: r.templateOf}
	return r, nil
}

// serve reads messages until the connection ends.
func (r *renderer) serve() error {
	if err := r.greet(); err != nil {
		return err
	}
	for {
		if !r.conn.Buffered() {
			r.report()
			if err := r.conn.Flush(); err != nil {
				return err
			}
		}
		m, err := r.conn.Read()
		if errors.Is(err, io.EOF) || errors.Is(err, wire.PeerLost) {
			return nil // the application ended
		} else if err != nil {
			return err
		}
		if m.Op.Special() {
			err = r.special(m)
		} else {
			err = r.command(m)
		}
		if err != nil {
			return fmt.Errorf("render: %v: %w", opName(m.Op), err)
		}
	}
}

func opName(op stream.Op) string {
	if !op.Special() && int(op) < len(registry.Commands) {
		return registry.Commands[op].Name
	}
	return fmt.Sprintf("message %#x", uint16(op))
}

// greet answers the client's first message.
func (r *renderer) greet() error {
	m, err := r.conn.Read()
	if errors.Is(err, io.EOF) || errors.Is(err, wire.PeerLost) {
		return nil
	} else if err != nil {
		return err
	}
	if m.Op != stream.OpHello {
		return fmt.Errorf("%w: the first message is %v", errMalformed, opName(m.Op))
	}
	h, err := stream.ParseHello(m.Body)
	if err != nil {
		return err
	}
	local := h.Flags & stream.SameMachine
	if !r.conn.TakesFiles() {
		local = 0
	}
	r.local = local != 0
	w := stream.Welcome{Fingerprint: registry.Fingerprint, PID: uint32(os.Getpid()), Flags: local, Objects: uint32(r.cfg.Objects), Depth: uint32(r.cfg.QueueDepth), Text: "memspan"}
	refused := h.Fingerprint != registry.Fingerprint
	if refused {
		w.Text = "the driver is another version's: install the same memspan on both sides"
	}
	if err := r.conn.End(w.Append(r.conn.Begin(stream.OpHello, stream.FlagReply, m.Serial))); err != nil {
		return err
	}
	if err := r.conn.Flush(); err != nil {
		return err
	}
	if refused {
		return fmt.Errorf("%w: the client is another version's", errMalformed)
	}
	return nil
}

// reportEvery is how long to wait between two reports.
const reportEvery = 250 * time.Millisecond

// report reports what is in use, if that has changed and the last report was a
// while ago. It is called when there is nothing to do at the moment.
func (r *renderer) report() {
	now := Usage{Device: r.deviceName, Memory: r.held, Objects: r.table.count}
	if r.cfg.Report == nil || now == r.reported || time.Since(r.reportedAt) < reportEvery {
		return
	}
	r.reported, r.reportedAt = now, time.Now()
	r.cfg.Report(now)
}

// special carries out a message that is no command.
func (r *renderer) special(m stream.Message) error {
	switch m.Op {
	case stream.OpPing:
		if m.Has(stream.FlagReply) {
			return nil
		}
		return r.conn.End(r.conn.Begin(stream.OpPing, stream.FlagReply, m.Serial))
	case stream.OpUnderWay:
		return r.underWay(m)
	case stream.OpRecord:
		return r.record(m.Body)
	case stream.OpMemoryWrite, stream.OpMemoryRuns, stream.OpMemoryMap, stream.OpMemoryImport:
		return r.memory(m)
	}
	return fmt.Errorf("%w: unexpected", errMalformed)
}

// realOf implements codec.Env.
func (r *renderer) realOf(kind registry.Index, id uint64) (uint64, bool) {
	o := r.table.get(kind, id)
	if o == nil {
		return 0, false
	}
	r.named = append(r.named, o)
	return o.real, true
}

// idOf implements codec.Env: physical devices are the only handles that the
// driver returns in structures.
func (r *renderer) idOf(_ registry.Index, real uint64) uint64 { return r.physical[real] }

// find returns the object of a type among those that the call names by its real
// handle, or nil.
func (r *renderer) find(kind registry.Index, real uint64) *object {
	for range r.named {
		if r.cursor >= len(r.named) {
			r.cursor = 0
		}
		o := r.named[r.cursor]
		r.cursor++
		if o.real == real && o.kind == kind {
			return o
		}
	}
	return nil
}

// lose tells the client, once, that nothing works any more, and why. It may be
// called by any goroutine.
func (r *renderer) lose(result vk.Result, command int, why error) {
	r.lostMu.Lock()
	first := !r.lost
	r.lost = true
	r.lostMu.Unlock()
	if !first {
		return
	}
	r.cfg.Log.Warn("vulkan: device lost", "why", why, "result", result)
	l := stream.Lost{Result: int32(result), Command: uint16(command), Text: why.Error()}
	if r.conn.End(l.Append(r.conn.Begin(stream.OpLost, 0, 0))) == nil {
		r.conn.Flush() // a broken connection ends serve
	}
}

// resultOf returns the VkResult that an error stands for.
func resultOf(err error) vk.Result {
	var result vk.Result
	switch {
	case errors.As(err, &result):
		return result
	case errors.Is(err, errObjects):
		return vk.ErrOutOfHostMemory
	case errors.Is(err, errDepth):
		return vk.ErrOutOfHostMemory
	}
	return vk.ErrDeviceLost
}
