// SPDX-License-Identifier: Apache-2.0

package sharedbuf

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"os"
	"sync"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/internal/private"
	"github.com/memspan/memspan/internal/sharedfile"
)

// A Buffer is memory that guest and host share, or of which the host keeps a copy
// that is brought up to date with each request. Its methods may be called
// concurrently; the bytes are the caller's to synchronise.
type Buffer struct {
	client *Client
	id     uint32
	size   int64

	options AllocOptions
	terms   json.RawMessage // the permissions, as hosts read them; empty: none

	name   string // in the client's directory; empty if it has none
	path   string
	file   *os.File
	mem    []byte            // what the caller sees
	shared []byte            // the mapping of file; mem unless that is private
	vault  *vault            // of an encrypted one; else nil
	region *memfd.Region     // of a buffer without a name; else nil
	lent   *os.File          // of a read-only one: what the host gets instead of file
	lease  *sharedfile.Lease // of one with a name; else nil
	remote *remote           // of one whose bytes are sent; else nil

	ctx    context.Context // ends when the buffer is freed
	cancel context.CancelCauseFunc

	mu         sync.Mutex
	generation uint64 // odd: the host has it
	handed     int    // hand-offs under way
	freed      bool
	home       *Pool         // where it was got from; nil: nowhere
	pooled     bool          // home keeps it
	idle       chan struct{} // of a Free that waits for hand-offs to end; else nil
	freeOnce   sync.Once
	freeErr    error
}

// Bytes returns the buffer's memory. It is valid until Free; touching it later
// ends the program. So does touching what is gone of a file that somebody who may
// open it has cut short: see [runtime/debug.SetPanicOnFault]. Buffers without a name
// cannot be cut short, and of encrypted ones and of those whose bytes are sent this
// memory is nobody else's.
func (b *Buffer) Bytes() []byte { return b.mem }

// Size returns the buffer's length in bytes.
func (b *Buffer) Size() int64 { return b.size }

// Path returns the file's path, as the guest names it; for a buffer without a
// name memfd: and the id, for one whose bytes are sent channel: and the id.
func (b *Buffer) Path() string { return b.path }

// ID returns the buffer's number, unique among those of this process.
func (b *Buffer) ID() uint32 { return b.id }

// File returns the file, for passing it on. It stays the buffer's. A buffer whose
// bytes are sent has none: nil.
func (b *Buffer) File() *os.File { return b.file }

// Generation counts the hand-offs: odd while the host has the buffer, even while
// the guest has it, and larger after each. A file's is in its lease too, for
// others who map it. Equal even generations before and after reading say that
// no host wrote meanwhile.
func (b *Buffer) Generation() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.generation
}

// Operation returns the step of a host's own operation. The arguments are
// encoded as JSON; nil for none. Process fails with ErrInvalid if they cannot be.
func Operation(name string, arguments any) Step {
	if arguments == nil {
		return Step{Operation: name}
	}
	raw, err := marshal(arguments)
	if err != nil {
		raw = json.RawMessage("!") // which no request can be made of
	}
	return Step{Operation: name, Arguments: raw}
}

// Process returns the step that reads every byte and changes nothing.
func Process() Step { return Step{Operation: "process"} }

// Checksum returns the step that finds the CRC-32C of the bytes: a number in
// the result's Value.
func Checksum() Step { return Step{Operation: "checksum"} }

// Verify returns the step that fails with ErrMismatch unless the buffer holds
// pattern, as little-endian words, again and again.
func Verify(pattern uint32) Step { return Operation("verify", patternArgument{U32(pattern)}) }

// Fill returns the step that writes pattern, as little-endian words, again and
// again.
func Fill(pattern uint32) Step { return Operation("fill", patternArgument{U32(pattern)}) }

type patternArgument struct {
	Pattern U32 `json:"pattern"`
}

// Process has the host carry out a chain of operations on the buffer, one after
// the other, and waits for it. The first that fails ends the chain; what those
// before it wrote stays. Whatever happens the buffer stays mapped and the
// caller's. Requests of one client are carried out concurrently. If ctx ends, or
// the buffer is freed, the host is asked to stop, and the bytes are
// not to be relied on until it has. The error is an *Error.
func (b *Buffer) Process(ctx context.Context, chain ...Step) (*Result, error) {
	result, _, err := b.ask(ctx, "process", chain, false)
	if err != nil {
		return nil, err
	}
	if err := b.takeBack(); err != nil {
		return nil, placed(err, chain[0].Operation, b.path)
	}
	return result, nil
}

// ask hands the buffer to the host with a chain of operations. It returns the
// host's answer and the connection that it came by.
func (b *Buffer) ask(ctx context.Context, call string, chain []Step, background bool) (*Result, *link, error) {
	ctx, stop := b.joined(ctx)
	defer stop()
	request, err := b.request(chain)
	if err != nil {
		return nil, nil, placed(err, call, b.path)
	}
	request.Background = background
	op := chain[0].Operation
	l, err := b.client.connected(ctx)
	if err != nil {
		return nil, nil, placed(err, op, b.path)
	}
	result, err := b.handOff(ctx, l, request)
	if err != nil {
		return nil, nil, placed(err, op, b.path)
	}
	return result, l, nil
}

// joined returns a context that ends with ctx or with the buffer.
func (b *Buffer) joined(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(b.ctx, func() { cancel(context.Cause(b.ctx)) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

func (b *Buffer) request(chain []Step) (*Request, error) {
	if len(chain) == 0 {
		return nil, invalidf("no operation is named")
	}
	name, err := marshal(chain[0].Operation)
	if err != nil {
		return nil, invalidf("the operation's name: %v", err)
	}
	r := &Request{
		API: APIShared, Operation: name, Arguments: chain[0].Arguments, Then: chain[1:],
		Path: b.path, Size: b.size, BufferID: U32(b.id),
	}
	if b.lease == nil { // where else it would stand
		r.Permissions = b.terms
	}
	return r, nil
}

// handOff gives the buffer to the host and sends the request. Unless it fails
// the buffer is the host's until takeBack.
func (b *Buffer) handOff(ctx context.Context, l *link, request *Request) (*Result, error) {
	b.mu.Lock()
	if b.freed {
		b.mu.Unlock()
		return nil, &Error{Code: ErrFreed, Message: "the buffer was freed"}
	}
	if b.pooled {
		b.mu.Unlock()
		return nil, invalidf("the buffer was put into a pool: get one from there")
	}
	if b.options.Encrypted && b.handed > 0 {
		b.mu.Unlock()
		return nil, &Error{Code: ErrBusy, Message: "the host has the buffer already, which is encrypted: wait for what is under way"}
	}
	b.handed++
	var err error
	if b.handed == 1 {
		err = b.step()
	}
	request.Generation = b.generation
	b.mu.Unlock()
	if err == nil && b.options.Encrypted && !l.secure() {
		err = &Error{Code: ErrDenied, Message: "an encrypted buffer, and a connection that others may read: use a unix socket or TLS"}
	}
	if err == nil && b.vault != nil {
		request.Key = b.vault.key
		err = b.vault.seal(ctx, request.Generation)
	}
	if err == nil && b.client.apart && b.region == nil {
		err = sharedfile.Publish(b.file, b.shared)
	}
	result := new(Result)
	var raw json.RawMessage
	switch {
	case err != nil:
	case b.remote != nil:
		raw, result.epoch, err = b.callRemote(ctx, l, request)
	default:
		with := new(attachment)
		if b.region != nil {
			with.file = cmp.Or(b.lent, b.file)
		}
		raw, err = b.callShared(ctx, l, request, with)
	}
	if err == nil {
		if jerr := json.Unmarshal(raw, result); jerr != nil || len(raw) == 0 || string(raw) == "null" {
			err = &Error{Code: ErrPeerLost, Message: "the host broke the protocol: its answer has no result", Err: jerr}
		} else if result.BufferID != b.id {
			err = &Error{Code: ErrPeerLost, Message: "the host broke the protocol: its answer is about another buffer"}
		}
	}
	if err != nil {
		if ctx.Err() != nil && errors.Is(context.Cause(ctx), ErrFreed) {
			err = &Error{Code: ErrFreed, Message: "the buffer was freed meanwhile"}
		}
		return nil, errors.Join(err, b.takeBack())
	}
	return result, nil
}

// callShared sends a request about a buffer in memory or a file that both sides
// map, or about a job on it.
func (b *Buffer) callShared(ctx context.Context, l *link, request *Request, with *attachment) (json.RawMessage, error) {
	raw, err := l.call(ctx, *request, with)
	if b.vault != nil && with.reply != nil {
		b.vault.answered(with.reply)
	}
	return raw, err
}

// takeBack ends a hand-off.
func (b *Buffer) takeBack() (err error) {
	if b.client.apart && b.region == nil {
		err = sharedfile.Refresh(b.file, b.shared)
	}
	if b.vault != nil {
		err = errors.Join(err, b.vault.takeBack())
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.handed--
	if b.handed > 0 {
		return err
	}
	if b.idle != nil {
		close(b.idle)
		b.idle = nil
	}
	return errors.Join(err, b.step())
}

// step counts the generation; b.mu is held.
func (b *Buffer) step() error {
	b.generation++
	if b.lease == nil {
		return nil
	}
	return b.lease.SetGeneration(b.generation)
}

// Free ends what is under way on the buffer, unmaps its memory and removes its
// file. Bytes must not be touched afterwards. It is idempotent.
func (b *Buffer) Free() error {
	b.freeOnce.Do(func() {
		b.cancel(&Error{Code: ErrFreed, Message: "the buffer was freed"})
		b.mu.Lock()
		b.freed = true
		var idle chan struct{}
		if b.handed > 0 {
			idle = make(chan struct{})
			b.idle = idle
		}
		b.mu.Unlock()
		if idle != nil {
			<-idle // their contexts have ended
		}
		b.client.mu.Lock()
		delete(b.client.buffers, b)
		b.client.mu.Unlock()
		if err := b.remove(); err != nil {
			b.freeErr = &Error{Code: fileCode(err), Op: "free", Path: b.path, Err: err}
		}
	})
	return b.freeErr
}

// remove gives back all that the buffer has. The lease goes last: while it is
// there nobody else takes the name.
func (b *Buffer) remove() error {
	if b.remote != nil {
		b.releaseRemote()
		return private.Free(b.mem)
	}
	var failed []error
	if b.shared != nil {
		failed = append(failed, sharedfile.Unmap(b.shared))
	}
	if b.vault != nil {
		failed = append(failed, private.Free(b.vault.mem))
	}
	if b.region != nil {
		if b.lent != nil {
			failed = append(failed, b.lent.Close())
		}
		return errors.Join(append(failed, b.region.Close())...)
	}
	same, err := b.client.dir.Same(b.name, b.file)
	if err == nil && same { // else somebody has removed it already
		err = b.client.dir.Remove(b.name)
	}
	return errors.Join(append(failed, err, b.file.Close(), b.lease.Close())...)
}
