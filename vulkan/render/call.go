// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/memspan/memspan/internal/vk"
	"github.com/memspan/memspan/vulkan/codec"
	"github.com/memspan/memspan/vulkan/registry"
	"github.com/memspan/memspan/vulkan/stream"
)

// A call is a command with its arguments, ready for the driver.
type call struct {
	*registry.Command
	index  int // in registry.Commands
	args   registry.Args
	arena  *codec.Arena
	reply  bool
	serial uint64
	first  *object // whom it is dispatched on, or nil
	raw    vk.RawCall
}

// instance is the state of a VkInstance.
type instance struct {
	procs []uintptr // by command; 0: not asked for yet, absent: it has none
}

const absent = ^uintptr(0)

// proc returns the address of a command's function for the object that it is
// dispatched on, 0 if the driver has none.
func (r *renderer) proc(index int, first *object) uintptr {
	name := registry.Commands[index].Name
	procs := r.global
	find := func() uintptr { return r.loader.InstanceProc(0, name) }
	switch {
	case first == nil:
	case first.device != nil:
		procs = first.device.procs
		find = func() uintptr { return first.device.proc(name) }
	default:
		for first.parent != nil {
			first = first.parent
		}
		procs = first.state.(*instance).procs
		find = func() uintptr { return r.loader.InstanceProc(uintptr(first.real), name) }
	}
	p := procs[index]
	if p == 0 {
		p = find()
		// A driver of an older version may have it by another name only.
		for i := 0; p == 0 && i < len(registry.Commands); i++ {
			if int(registry.Commands[i].Alias) == index {
				name = registry.Commands[i].Name
				p = find()
			}
		}
		if p == 0 {
			p = absent
		}
		procs[index] = p
	}
	if p == absent {
		return 0
	}
	return p
}

// set fills the raw call from the arguments.
func (c *call) set(proc uintptr) { setRaw(&c.raw, c.Command, proc, &c.args) }

func setRaw(raw *vk.RawCall, c *registry.Command, proc uintptr, args *registry.Args) {
	raw.Proc = proc
	raw.Float = c.FloatArgs != 0
	if !raw.Float {
		copy(raw.Args[:], args[:])
		return
	}
	n, f := 0, 0
	for i := range c.Params {
		if c.FloatArgs&(1<<i) == 0 {
			raw.Args[n] = args[i]
			n++
		} else {
			raw.Floats[f] = args[i]
			f++
		}
	}
}

// refusable reports whether an error of decoding a call is one that an
// application's mistakes cause. It concerns that call only.
func refusable(err error) bool {
	return errors.Is(err, codec.ErrHandle) || errors.Is(err, codec.ErrUnsupported) || errors.Is(err, codec.ErrMissing)
}

// command executes one call of the stream. An error ends the worker: only those
// that no driver of ours causes are returned.
func (r *renderer) command(m stream.Message) error {
	if int(m.Op) >= len(registry.Commands) {
		return fmt.Errorf("%w: no such command", errMalformed)
	}
	c := &r.call
	c.index = int(m.Op)
	c.Command = &registry.Commands[c.index]
	c.reply, c.serial = m.Has(stream.FlagReply), m.Serial
	c.arena, c.first = r.arena, nil
	r.arena.Reset()
	r.named, r.cursor = r.named[:0], 0
	rest, err := r.codec.ReadCall(m.Body, c.Command, &c.args, c.arena, &r.env)
	if refusable(err) {
		return r.refuse(c, err)
	} else if err != nil {
		return err
	}
	if len(rest) != 0 {
		return fmt.Errorf("%w: %d bytes too many", errMalformed, len(rest))
	}
	if c.First != registry.None {
		if len(r.named) == 0 || r.named[0].kind != c.First {
			return r.refuse(c, errHandle)
		}
		c.first = r.named[0]
	}
	if c.Creates >= 0 {
		if err := r.checkCreated(c); errors.Is(err, errObjects) {
			return r.refuse(c, err)
		} else if err != nil {
			return err
		}
	}
	if f := r.handlers[c.index]; f != nil {
		return f(r, c)
	}
	return r.execute(c)
}

// execute calls the driver and does what follows from the tables.
func (r *renderer) execute(c *call) error {
	result, err := r.invoke(c)
	if err != nil {
		return r.refuse(c, err)
	}
	return r.conclude(c, result)
}

// invoke calls the driver. It fails if the driver has no such function.
func (r *renderer) invoke(c *call) (uint64, error) {
	proc := r.proc(c.index, c.first)
	if proc == 0 {
		return 0, fmt.Errorf("%w: the driver has no %s", codec.ErrUnsupported, c.Name)
	}
	c.set(proc)
	vk.Raw(&c.raw)
	runtime.KeepAlive(c.arena)
	return c.raw.Result, nil
}

// conclude enters what a call created, forgets what it destroyed, and answers
// it.
func (r *renderer) conclude(c *call, result uint64) error {
	if c.Creates >= 0 {
		ids, reals := c.arena.Created()
		for i, id := range ids {
			if i < len(reals) && reals[i] != 0 && !c.failed(result) {
				r.bind(c, id, reals[i])
			}
		}
	}
	if c.Destroys >= 0 {
		kind := c.Params[c.Destroys].Type
		for _, o := range r.named {
			if o.kind == kind && r.table.find(o.id) == o {
				r.table.drop(o)
			}
		}
	}
	return r.answer(c, result)
}

// failed reports whether a result says that nothing was created. (Pipelines
// may be created in part all the same: their reals tell.)
func (c *call) failed(result uint64) bool {
	return c.Returns == registry.Result && int32(result) < 0 && c.Params[c.Creates].Type != registry.VkPipeline
}

// answer sends a call's result, or, if nobody waits for it, tells of a failure.
func (r *renderer) answer(c *call, result uint64) error {
	if c.reply {
		buf, err := r.codec.AppendReply(r.conn.Begin(stream.Op(c.index), stream.FlagReply, c.serial), c.Command, &c.args, result, &r.env)
		if err != nil {
			r.conn.Abort()
			return err
		}
		return r.conn.End(buf)
	}
	if c.Returns == registry.Result && int32(result) < 0 {
		r.lose(vk.Result(int32(result)), c.index, &vk.Error{Call: c.Name, Result: vk.Result(int32(result))})
	}
	return nil
}

// refuse answers a call that is not executed.
func (r *renderer) refuse(c *call, why error) error {
	result := resultOf(why)
	if !c.reply {
		r.lose(result, c.index, fmt.Errorf("%s: %w", c.Name, why))
		return nil
	}
	buf := r.conn.Begin(stream.Op(c.index), stream.FlagReply|stream.FlagFailed, c.serial)
	return r.conn.End(stream.AppendFailed(buf, int32(result), why.Error()))
}

// checkCreated checks the ids of the handles that a call is to create.
func (r *renderer) checkCreated(c *call) error {
	ids, _ := c.arena.Created()
	kind := c.Params[c.Creates].Type
	if kind == registry.VkPhysicalDevice || kind == registry.VkQueue {
		// These are got, not made: again and again by the same ids.
		for _, id := range ids {
			if o := r.table.find(id); o == nil || o.kind != kind {
				if err := r.table.check([]uint64{id}); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return r.table.check(ids)
}

// bind enters an object that the driver created.
func (r *renderer) bind(c *call, id, real uint64) *object {
	kind := c.Params[c.Creates].Type
	if o := r.table.find(id); o != nil {
		return o // got again
	}
	o := &object{id: id, kind: kind, real: real, parent: r.parentOf(kind, c.first)}
	if c.first != nil {
		o.device = c.first.device
	}
	r.table.add(o)
	if made := r.made[kind]; made != nil {
		made(r, c, o)
	}
	return o
}

// parentOf finds the owner of a new object among those that the call names.
func (r *renderer) parentOf(kind registry.Index, first *object) *object {
	owner := registry.Handles[kind].Parent
	for _, o := range r.named {
		if o.kind == owner {
			return o
		}
	}
	return first
}
