// SPDX-License-Identifier: Apache-2.0

package codec

import (
	"errors"
	"fmt"

	"github.com/memspan/memspan/vulkan/registry"
)

// Errors of this package; errors.Is finds them.
var (
	// ErrMalformed: bytes that no codec wrote.
	ErrMalformed = errors.New("malformed")
	// ErrTooLarge: the arguments exceed ArenaLimit.
	ErrTooLarge = errors.New("arguments too large")
	// ErrMissing: a pointer, or a parameter that is a handle, is null although
	// Vulkan does not allow it. A worker finds it, so that neither it nor the
	// driver follows it.
	ErrMissing = errors.New("null")
	// ErrUnsupported: the command or a structure cannot be carried.
	ErrUnsupported = errors.New("not supported")
	// ErrHandle: an id that names no object of its type. See HandleError.
	ErrHandle = errors.New("unknown handle")
)

// A HandleError says which handle a worker does not know. It is an ErrHandle.
type HandleError struct {
	Type string // as VkBuffer
	ID   uint64
}

func (e *HandleError) Error() string { return fmt.Sprintf("unknown %s %#x", e.Type, e.ID) }

// Is reports whether target is ErrHandle.
func (e *HandleError) Is(target error) bool { return target == ErrHandle }

// Env is what a codec asks its surroundings. A function that one side does not
// use may be nil there. They may be called with anything a peer sends, and must
// be as safe for concurrent use as the Codec's methods are used.
type Env struct {
	// Real translates a client's id, on the worker. It checks the type; ok is
	// false if there is no such object. It is not asked about VK_NULL_HANDLE.
	Real func(t registry.Index, id uint64) (real uint64, ok bool)
	// ID translates a handle in an output back to an id, on the worker; 0 if it
	// knows none.
	ID func(t registry.Index, real uint64) uint64
	// Object translates an id in an output to what the application holds, on
	// the client; 0 if it knows none.
	Object func(t registry.Index, id uint64) uint64
	// Template describes a descriptor update template, on both sides, by the
	// client's id; nil if there is none.
	Template func(id uint64) *Template
	// Secondary reports whether a command buffer is a secondary one, on the
	// client: others' pInheritanceInfo may be garbage. If nil, it is never read.
	Secondary func(commandBuffer uint64) bool
	// Attachments reports, on the client, whether a subpass has color and depth
	// or stencil attachments: a pipeline's pointers for what it has not may be
	// garbage. If nil, all have both.
	Attachments func(renderPass uint64, subpass uint32) (color, depthStencil bool)
}

// A Codec encodes and decodes calls. It is immutable: any number of goroutines
// may use one.
type Codec struct {
	commands []registry.Command
	handles  []registry.HandleType
	programs []program
	structs  []structure
	bySType  map[uint32]*structure

	// Handle types that templates name, or None.
	sampler, imageView, buffer, bufferView, accelerationStructure registry.Index
}

// New returns a Codec for the tables of package registry, which it compiles.
func New() *Codec { return newCodec(registry.Commands, registry.Structs, registry.Handles) }

// newCodec compiles tables.
func newCodec(commands []registry.Command, structs []registry.Struct, handles []registry.HandleType) *Codec {
	x := &Codec{
		commands: commands,
		handles:  handles,
		programs: make([]program, len(commands)),
		structs:  make([]structure, len(structs)),
		bySType:  make(map[uint32]*structure, len(structs)),
	}
	x.sampler = x.handleType("VkSampler")
	x.imageView = x.handleType("VkImageView")
	x.buffer = x.handleType("VkBuffer")
	x.bufferView = x.handleType("VkBufferView")
	x.accelerationStructure = x.handleType("VkAccelerationStructureKHR")
	x.compile(structs)
	return x
}

func (x *Codec) handleType(name string) registry.Index {
	for i := range x.handles {
		if x.handles[i].Name == name {
			return registry.Index(i)
		}
	}
	return registry.None
}

// program is what was compiled of c: a command of the tables or a copy of one.
func (x *Codec) program(c *registry.Command) (*program, error) {
	i := x.position(c)
	if i < 0 {
		return nil, fmt.Errorf("%s: %w: not a command of the tables", c.Name, ErrUnsupported)
	}
	if c.Alias != registry.None {
		i = int(c.Alias)
	}
	p := &x.programs[i]
	return p, p.err
}

// Supported returns nil if c can be carried, or an ErrUnsupported that says
// why not.
func (x *Codec) Supported(c *registry.Command) error {
	_, err := x.program(c)
	return err
}

// AppendCall appends the call of c with the application's arguments a. Output
// handles hold the ids that the client chose. It reads the application's
// memory, as far as the command would.
func (x *Codec) AppendCall(dst []byte, c *registry.Command, a *registry.Args, env *Env) ([]byte, error) {
	return x.appendCall(dst, c, a, env, 0)
}

// AppendParams is AppendCall without the first parameter, a handle that the
// reader knows: what recorded commands have in common.
func (x *Codec) AppendParams(dst []byte, c *registry.Command, a *registry.Args, env *Env) ([]byte, error) {
	return x.appendCall(dst, c, a, env, 1)
}

func (x *Codec) appendCall(dst []byte, c *registry.Command, a *registry.Args, env *Env, from int) ([]byte, error) {
	p, err := x.program(c)
	if err != nil {
		return dst, err
	}
	e := encoder{dst: dst, x: x, env: env, args: a}
	if err := e.call(p, from); err != nil {
		return dst, fmt.Errorf("%s: %w", c.Name, err)
	}
	return e.dst, nil
}

// ReadCall reads a call of c from the front of src and stores its arguments,
// with the worker's handles, in a and in the arena: the real driver may be
// called with them until the Arena is Reset. It returns the bytes behind the
// call. src may be hostile.
func (x *Codec) ReadCall(src []byte, c *registry.Command, a *registry.Args, arena *Arena, env *Env) (rest []byte, err error) {
	return x.readCall(src, c, a, arena, env, 0)
}

// ReadParams reads what AppendParams wrote. The first parameter, already
// translated, is first.
func (x *Codec) ReadParams(src []byte, c *registry.Command, first uint64, a *registry.Args, arena *Arena, env *Env) (rest []byte, err error) {
	a[0] = first
	return x.readCall(src, c, a, arena, env, 1)
}

func (x *Codec) readCall(src []byte, c *registry.Command, a *registry.Args, arena *Arena, env *Env, from int) ([]byte, error) {
	p, err := x.program(c)
	if err != nil {
		return nil, err
	}
	d := decoder{src: src, x: x, env: env, args: a, arena: arena}
	if err := d.call(p, from); err != nil {
		return nil, fmt.Errorf("%s: %w", c.Name, err)
	}
	return d.src, nil
}

// AppendReply appends the reply to the call whose arguments ReadCall stored in
// a and with which the driver has been called: result and outputs.
func (x *Codec) AppendReply(dst []byte, c *registry.Command, a *registry.Args, result uint64, env *Env) ([]byte, error) {
	p, err := x.program(c)
	if err != nil {
		return dst, err
	}
	e := replier{dst: dst, walker: walker{x: x, env: env, args: a}}
	e.reply(p, result)
	return e.dst, nil
}

// ReadReply reads the reply to the call whose arguments are a and stores the
// outputs in the application's memory: as many elements of arrays as the driver
// returned, null for handles that it did not create, and never a pNext, an sType
// or another pointer. The result is that of the command, a VkResult
// zero-extended. On an error, which only a broken worker causes, some outputs
// may have been stored.
func (x *Codec) ReadReply(src []byte, c *registry.Command, a *registry.Args, env *Env) (result uint64, err error) {
	p, err := x.program(c)
	if err != nil {
		return 0, err
	}
	d := receiver{src: src, walker: walker{x: x, env: env, args: a, client: true}}
	result, err = d.reply(p)
	if err == nil && len(d.src) != 0 {
		err = fmt.Errorf("%w: %d bytes too many", ErrMalformed, len(d.src))
	}
	if err != nil {
		return 0, fmt.Errorf("reply of %s: %w", c.Name, err)
	}
	return result, nil
}
