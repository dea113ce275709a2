// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"strings"

	"github.com/memspan/memspan/internal/vk"
	"github.com/memspan/memspan/vulkan/registry"
	"github.com/memspan/memspan/vulkan/stream"
)

// A commandBuffer is the state of a VkCommandBuffer.
type commandBuffer struct {
	poison string // why it cannot be submitted, or ""
	facts  *facts // of what was recorded since it began, or nil; not changed once submitted
}

// Facts are what is known of the memory that recorded commands write.
type facts struct {
	written   []target         // what copies, fills and the like write
	condensed int              // how many of them were left of too many
	events    map[*object]bool // that are set or reset
	awaited   map[*object]bool // events that are waited for, and not set before
	shaders   bool             // there are draws, dispatches or render passes, which write what they please
}

// batchSize is how many recorded commands are given to the driver at a time.
const batchSize = 64

// A batch is recorded commands on their way to the driver.
type batch struct {
	calls    [batchSize]vk.RawCall
	commands [batchSize]registry.Index
	n        int
}

// effect is what a recorded command does to memory.
type effect struct {
	command bool           // it may be recorded
	writes  registry.Index // handle type of what it writes, the last named of that type, or None
	shaders bool
	events  bool // it sets or resets those that it names
	waits   bool // it waits for them
	execute bool
	begin   bool
}

// newEffects returns the effects by command.
func newEffects() []effect {
	list := make([]effect, len(registry.Commands))
	for i := range registry.Commands {
		c := &registry.Commands[i]
		e := effect{command: c.First == registry.VkCommandBuffer && c.Creates < 0, writes: registry.None}
		name := strings.TrimPrefix(c.Name, "vk")
		for _, prefix := range []string{"CmdCopyBuffer", "CmdFillBuffer", "CmdUpdateBuffer", "CmdCopyQueryPoolResults", "CmdCopyImageToBuffer"} {
			if strings.HasPrefix(name, prefix) {
				e.writes = registry.VkBuffer
			}
		}
		for _, prefix := range []string{"CmdCopyImage", "CmdBlitImage", "CmdResolveImage", "CmdClearColorImage", "CmdClearDepthStencilImage", "CmdCopyBufferToImage"} {
			if strings.HasPrefix(name, prefix) && !strings.HasPrefix(name, "CmdCopyImageToBuffer") {
				e.writes = registry.VkImage
			}
		}
		for _, prefix := range []string{"CmdDraw", "CmdDispatch", "CmdBeginRender", "CmdBeginTransformFeedback", "CmdTraceRays", "CmdBuildAcceleration"} {
			e.shaders = e.shaders || strings.HasPrefix(name, prefix)
		}
		e.events = strings.HasPrefix(name, "CmdSetEvent") || strings.HasPrefix(name, "CmdResetEvent")
		e.waits = strings.HasPrefix(name, "CmdWaitEvents")
		e.execute = name == "CmdExecuteCommands"
		e.begin = name == "BeginCommandBuffer"
		list[i] = e
	}
	return list
}

// record replays recorded commands of one command buffer: {u64 command buffer,
// commands}. One that names what does not exist poisons it: its submission
// fails.
func (r *renderer) record(body []byte) error {
	if len(body) < 8 {
		return fmt.Errorf("%w: record of %d bytes", errMalformed, len(body))
	}
	r.arena.Reset()
	r.named = r.named[:0]
	o := r.table.get(registry.VkCommandBuffer, binary.LittleEndian.Uint64(body))
	if o == nil {
		r.lose(vk.ErrDeviceLost, noCommand, fmt.Errorf("record commands: %w", errHandle))
		return nil
	}
	b := o.state.(*commandBuffer)
	r.batch.n = 0
	for body = body[8:]; len(body) > 0; {
		command, params, rest, err := stream.NextRecord(body)
		if err != nil {
			return err
		}
		body = rest
		if int(command) >= len(r.effects) || !r.effects[command].command {
			return fmt.Errorf("%w: command %d is none of a command buffer", errMalformed, command)
		}
		if err := r.recordOne(o, b, registry.Index(command), params); err != nil {
			return err
		}
	}
	r.play(b)
	return nil
}

// recordOne adds one command to the batch.
func (r *renderer) recordOne(o *object, b *commandBuffer, index registry.Index, params []byte) error {
	c := &registry.Commands[index]
	r.named = r.named[:0]
	rest, err := r.codec.ReadParams(params, c, o.real, &r.call.args, r.arena, &r.env)
	switch {
	case refusable(err):
		b.poisoned(err)
		return nil
	case err != nil:
		return err
	case len(rest) != 0:
		return fmt.Errorf("%w: %s: %d bytes too many", errMalformed, c.Name, len(rest))
	}
	proc := r.proc(int(index), o)
	if proc == 0 {
		b.poisoned(fmt.Errorf("the driver has no %s", c.Name))
		return nil
	}
	r.collect(b, &r.effects[index], index)
	setRaw(&r.batch.calls[r.batch.n], c, proc, &r.call.args)
	r.batch.commands[r.batch.n] = index
	if r.batch.n++; r.batch.n == batchSize {
		r.play(b)
	}
	return nil
}

// play gives the batch to the driver.
func (r *renderer) play(b *commandBuffer) {
	n := r.batch.n
	vk.RawBatch(r.batch.calls[:n])
	runtime.KeepAlive(r.arena)
	for i := range n {
		c := &registry.Commands[r.batch.commands[i]]
		if result := int32(r.batch.calls[i].Result); c.Returns == registry.Result && result < 0 {
			b.poisoned(&vk.Error{Call: c.Name, Result: vk.Result(result)})
		}
	}
	r.batch.n = 0
	r.arena.Reset()
}

func (b *commandBuffer) poisoned(err error) {
	if b.poison == "" {
		b.poison = err.Error()
	}
}

// began forgets what was recorded.
func (b *commandBuffer) began() { b.poison, b.facts = "", new(facts) }

// collect adds what a command writes to the facts.
func (r *renderer) collect(b *commandBuffer, e *effect, index registry.Index) {
	if e.begin {
		b.began()
	}
	if e.writes == registry.None && !e.shaders && !e.execute && !e.events && !e.waits {
		return
	}
	if b.facts == nil {
		b.facts = new(facts)
	}
	f := b.facts
	f.shaders = f.shaders || e.shaders
	if e.execute {
		for _, o := range r.named {
			other, ok := o.state.(*commandBuffer)
			if !ok || other == b {
				continue
			}
			if other.poison != "" {
				b.poisoned(errors.New(other.poison))
			}
			if other.facts != nil {
				f.execute(other.facts)
			}
		}
	}
	if e.events || e.waits {
		for _, o := range r.named {
			if o.kind == registry.VkEvent && e.events {
				f.change(o)
			} else if o.kind == registry.VkEvent {
				f.await(o)
			}
		}
	}
	if e.writes != registry.None {
		// The source stands before the destination in all of these commands.
		for i := len(r.named) - 1; i >= 0; i-- {
			if o := r.named[i]; o.kind == e.writes {
				f.write(placeOf(o), ranges(index, &r.call.args))
				break
			}
		}
	}
}

// write adds parts of a resource.
func (f *facts) write(p *place, parts []span) {
	for _, s := range parts {
		if n := len(f.written); n > 0 && f.written[n-1].place == p {
			// Parts of one resource are often written one behind the other.
			if last := &f.written[n-1]; s.off <= last.end && s.end >= last.off {
				last.off, last.end = min(last.off, s.off), max(last.end, s.end)
				continue
			}
		}
		f.written = append(f.written, target{p, s})
	}
	if len(f.written) > max(maxTargets, 2*f.condensed) {
		f.condense()
	}
}

// change adds an event.
func (f *facts) change(o *object) {
	if f.events == nil {
		f.events = make(map[*object]bool)
	}
	f.events[o] = true
}

// await adds an event that is waited for.
func (f *facts) await(o *object) {
	if f.events[o] {
		return
	}
	if f.awaited == nil {
		f.awaited = make(map[*object]bool)
	}
	f.awaited[o] = true
}

// execute adds what a secondary command buffer writes.
func (f *facts) execute(other *facts) {
	f.shaders = f.shaders || other.shaders
	for o := range other.awaited {
		f.await(o)
	}
	for o := range other.events {
		f.change(o)
	}
	for _, t := range other.written {
		f.write(t.place, []span{t.span})
	}
}

// maxTargets is how many parts of resources are told apart, for a time.
const maxTargets = 4096

// condense joins the parts of each resource.
func (f *facts) condense() {
	first := make(map[*place]int)
	kept := f.written[:0]
	for _, t := range f.written {
		if i, ok := first[t.place]; ok {
			kept[i].off, kept[i].end = min(kept[i].off, t.off), max(kept[i].end, t.end)
			continue
		}
		first[t.place] = len(kept)
		kept = append(kept, t)
	}
	f.written, f.condensed = kept, len(kept)
}
