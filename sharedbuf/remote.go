// SPDX-License-Identifier: Apache-2.0

package sharedbuf

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"github.com/memspan/memspan/internal/blocks"
	"github.com/memspan/memspan/internal/private"
)

// A remote is what the host has of a buffer whose bytes are sent: a copy, which
// belongs to one connection and ends with it.
type remote struct {
	size     int64
	readOnly bool
	opening  chan struct{} // holds a token while nobody opens a copy

	// Held for a block at a time, never while something is waited for: it is
	// wanted by whoever sends and by the link's reader.
	mu    sync.Mutex
	mem   []byte       // the buffer; nil: it was freed
	sums  *blocks.Sums // of what the copy has
	link  *link        // that the copy belongs to; nil: there is none
	epoch uint64       // counts the copies
}

func newRemote(mem []byte, readOnly bool) *remote {
	size := int64(len(mem))
	r := &remote{size: size, readOnly: readOnly, opening: make(chan struct{}, 1), mem: mem, sums: blocks.NewSums(size)}
	r.opening <- struct{}{}
	return r
}

// createChannel makes a buffer whose bytes are sent.
func (b *Buffer) createChannel() error {
	b.id = b.client.ids.Add(1)
	b.path = fmt.Sprintf("%s%d", ChannelPrefix, b.id)
	if err := inRAM(b.size); err != nil {
		return err
	}
	mem, err := private.Alloc(b.size)
	if err != nil {
		return &Error{Code: ErrNoSpace, Message: "no memory could be had", Err: err}
	}
	b.mem, b.remote = mem, newRemote(mem, b.options.ReadOnly)
	return nil
}

// copyRequest asks for a copy, or for its end.
func (b *Buffer) copyRequest(operation string) Request {
	return Request{API: APICopy, Operation: []byte(`"` + operation + `"`), Size: b.size, BufferID: U32(b.id)}
}

// open sees to it that the host at the other end of l has a copy, and returns
// which one it is.
func (b *Buffer) open(ctx context.Context, l *link) (epoch uint64, err error) {
	r := b.remote
	select {
	case <-r.opening:
		defer func() { r.opening <- struct{}{} }()
	case <-ctx.Done():
		return 0, &Error{Code: ErrCanceled, Err: context.Cause(ctx)}
	}
	r.mu.Lock()
	there, epoch := r.link == l, r.epoch
	r.mu.Unlock()
	if there {
		return epoch, nil
	}
	if _, err := l.call(ctx, b.copyRequest("open"), nil); err != nil {
		return 0, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.link = l
	r.epoch++
	r.sums.Zero() // which a new copy consists of
	return r.epoch, nil
}

// callRemote sends a request, before it what changed, and applies what the host
// changed. If the host's copy is no good any more all is sent, once.
func (b *Buffer) callRemote(ctx context.Context, l *link, request *Request) (raw json.RawMessage, epoch uint64, err error) {
	for again := false; ; again = true {
		if epoch, err = b.open(ctx, l); err != nil {
			return nil, 0, err
		}
		raw, err = b.remote.call(ctx, l, request, epoch, true)
		if again || !errors.Is(err, ErrStale) || errors.Is(err, errDropped) {
			return raw, epoch, err
		}
		b.remote.forget(epoch)
	}
}

// errDropped says of a request that was carried out that it shall not be again.
var errDropped = errors.New("the buffer was sent anew meanwhile")

// call sends a request about copy number epoch, with the blocks that changed or
// without, and takes those that come with the answer.
func (r *remote) call(ctx context.Context, l *link, request *Request, epoch uint64, send bool) (json.RawMessage, error) {
	dropped := false
	a := &attachment{
		size: r.size,
		put: func(i int, block []byte) error {
			r.mu.Lock()
			defer r.mu.Unlock()
			switch {
			case r.readOnly:
				return fmt.Errorf("the host changed block %d of a buffer that is read-only", i)
			case r.mem == nil || r.epoch != epoch:
				dropped = true
			default:
				copy(blocks.Of(r.mem, i), block)
				r.sums.Update(i, block)
			}
			return nil
		},
	}
	a.late = !send
	if send {
		request.Blocks = true
		a.send = func(ctx context.Context, w *blocks.Writer) error { return r.send(ctx, w, epoch) }
	}
	raw, err := l.call(ctx, *request, a)
	if send && ctx.Err() != nil {
		r.forget(epoch) // what was given up changes nothing here
	}
	if err == nil && dropped {
		err = &Error{Code: ErrStale, Message: "what the host changed is lost", Err: errDropped}
	}
	return raw, err
}

// send sends the blocks that changed since the copy was the same.
func (r *remote) send(ctx context.Context, w *blocks.Writer, epoch uint64) error {
	for i := range blocks.Count(r.size) {
		if ctx.Err() != nil {
			return &Error{Code: ErrCanceled, Err: context.Cause(ctx)}
		}
		r.mu.Lock()
		if r.mem == nil || r.epoch != epoch {
			r.mu.Unlock()
			return &Error{Code: ErrStale, Message: "the buffer was sent anew meanwhile"}
		}
		if block := blocks.Of(r.mem, i); r.sums.Update(i, block) {
			w.Add(i, block)
		}
		r.mu.Unlock()
		if err := w.Flush(); err != nil {
			return err
		}
	}
	return nil
}

// forget has the copy of number epoch never be used again.
func (r *remote) forget(epoch uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.epoch == epoch {
		r.link = nil
		r.epoch++
	}
}

// releaseRemote ends the use of the buffer's memory, and tells the host that the
// copy is not needed, unless the connection is about to end.
func (b *Buffer) releaseRemote() {
	r := b.remote
	r.mu.Lock()
	l := r.link
	r.mem, r.link = nil, nil
	r.mu.Unlock()
	b.client.mu.Lock()
	closed := b.client.closed
	b.client.mu.Unlock()
	if closed || l == nil || l.failed() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), giveUpTime)
	defer cancel()
	// If it cannot be told the link has failed, which ends the copy.
	_, _ = l.call(ctx, b.copyRequest("close"), nil)
}
