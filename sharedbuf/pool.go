// SPDX-License-Identifier: Apache-2.0

package sharedbuf

import (
	"context"
	"errors"
	"sync"
)

// Limits of a pool that its options do not set.
const (
	DefaultPoolBytes   = 256 << 20
	DefaultPoolBuffers = 64
)

// PoolOptions say what buffers a pool makes, and bound what it keeps while nobody
// uses it. What is in use is the callers' affair.
type PoolOptions struct {
	AllocOptions
	MaxBytes   int64 // of all buffers that are kept; 0: DefaultPoolBytes
	MaxBuffers int   // how many are kept; 0: DefaultPoolBuffers
}

// A Pool keeps buffers for reuse: to make one takes its memory from the system,
// page by page, and to free it gives all that back, which costs more than most
// of what is done with it. Its methods may be called concurrently.
type Pool struct {
	client  *Client
	options PoolOptions

	mu     sync.Mutex
	idle   []*Buffer // the longest unused first
	bytes  int64     // of idle
	closed bool
}

// Pool returns a new, empty pool of the client's buffers. It need not be closed:
// closing the client frees what it keeps.
func (c *Client) Pool(o PoolOptions) *Pool {
	if o.MaxBytes == 0 {
		o.MaxBytes = DefaultPoolBytes
	}
	if o.MaxBuffers == 0 {
		o.MaxBuffers = DefaultPoolBuffers
	}
	return &Pool{client: c, options: o}
}

// Get returns a buffer of exactly size bytes: a host works on all of a buffer, so
// a larger one would not do. Its bytes are what they were when it was put back:
// whoever fills it anyway should not pay for zeros first, and others say
// clear(b.Bytes()). They were this client's, so nobody learns what he could not
// know. If there is none, one is made, as by Alloc. Its owner puts it back, or
// frees it.
func (p *Pool) Get(ctx context.Context, size int64) (*Buffer, error) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, &Error{Code: ErrClosed, Op: "get", Path: "pool", Message: "the pool was closed"}
	}
	for i := len(p.idle) - 1; i >= 0; i-- { // the last one may still be in a cache
		b := p.idle[i]
		if b.size != size {
			continue
		}
		p.remove(i)
		if !b.reclaim() {
			continue
		}
		p.mu.Unlock()
		return b, nil
	}
	p.mu.Unlock()
	b, err := p.client.AllocWith(ctx, size, p.options.AllocOptions)
	if err == nil {
		b.home = p // nobody else has it yet
	}
	return b, err
}

// Put gives a buffer back, of which Bytes must not be touched any more. Where the
// pool is full the buffers that were unused longest are freed; so is one that is
// too large for the pool, or that a host still has. It fails with ErrInvalid for
// a buffer that was not got here or was put back already, and with ErrFreed for
// one that was freed.
func (p *Pool) Put(b *Buffer) error {
	if b.home != p {
		return &Error{Code: ErrInvalid, Op: "put", Path: b.path, Message: "the buffer was not got from this pool"}
	}
	busy, err := b.claim()
	if err != nil {
		return err
	}
	if busy || b.size > p.options.MaxBytes || p.options.MaxBuffers < 1 {
		return b.Free()
	}
	var free []*Buffer
	p.mu.Lock()
	if p.closed {
		free = append(free, b)
	} else {
		p.idle = append(p.idle, b)
		p.bytes += b.size
		for p.bytes > p.options.MaxBytes || len(p.idle) > p.options.MaxBuffers {
			free = append(free, p.idle[0])
			p.remove(0)
		}
	}
	p.mu.Unlock()
	return freeAll(free)
}

// remove takes a buffer out; p.mu is held.
func (p *Pool) remove(i int) {
	p.bytes -= p.idle[i].size
	p.idle = append(p.idle[:i], p.idle[i+1:]...)
}

// Close frees the buffers that the pool keeps. Those in use are freed when they
// are put back. It is idempotent.
func (p *Pool) Close() error {
	p.mu.Lock()
	idle := p.idle
	p.idle, p.bytes, p.closed = nil, 0, true
	p.mu.Unlock()
	return freeAll(idle)
}

func freeAll(buffers []*Buffer) error {
	var failed []error
	for _, b := range buffers {
		failed = append(failed, b.Free())
	}
	return errors.Join(failed...)
}

// claim marks the buffer as one that is in a pool. It reports whether the host
// has it.
func (b *Buffer) claim() (busy bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.freed:
		return false, &Error{Code: ErrFreed, Op: "put", Path: b.path, Message: "the buffer was freed"}
	case b.pooled:
		return false, &Error{Code: ErrInvalid, Op: "put", Path: b.path, Message: "the buffer is in a pool already"}
	}
	b.pooled = true
	return b.handed > 0, nil
}

// reclaim takes the buffer out of its pool. It reports whether it is still there:
// somebody may have freed it, or the client was closed.
func (b *Buffer) reclaim() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pooled = false
	return !b.freed
}
