// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sync/semaphore"

	"github.com/memspan/memspan/internal/blocks"
	"github.com/memspan/memspan/internal/private"
	"github.com/memspan/memspan/sharedbuf"
)

// A memory is a bounded amount of private memory, for copies of buffers.
type memory struct {
	what string // that it is a bound of
	most int64  // bytes
	more *memory

	mu   sync.Mutex
	used int64
}

// take takes size bytes from it and from all that are behind it.
func (m *memory) take(size int64) error {
	if m == nil {
		return nil
	}
	m.mu.Lock()
	fits := size <= m.most-m.used
	if fits {
		m.used += size
	}
	m.mu.Unlock()
	if !fits {
		return &sharedbuf.Error{Code: sharedbuf.ErrLimit, Message: fmt.Sprintf("a copy of %d bytes is needed, and all copies of %s may have %d: free buffers, or share a directory", size, m.what, m.most)}
	}
	if err := m.more.take(size); err != nil {
		m.mu.Lock()
		m.used -= size
		m.mu.Unlock()
		return err
	}
	return nil
}

func (m *memory) give(size int64) {
	for ; m != nil; m = m.more {
		m.mu.Lock()
		m.used -= size
		m.mu.Unlock()
	}
}

// charged is what a copy of size bytes is counted as: whole blocks, so that many
// small ones, which each take a page and what describes them, are bounded too.
func charged(size int64) int64 { return int64(blocks.Count(size)) * blocks.Size }

// alloc takes memory that free gives back.
func (m *memory) alloc(size int64) ([]byte, error) {
	if err := m.take(charged(size)); err != nil {
		return nil, err
	}
	mem, err := private.Alloc(size)
	if err != nil {
		m.give(charged(size))
		return nil, &sharedbuf.Error{Code: sharedbuf.ErrNoSpace, Message: "no memory for a copy could be had", Err: err}
	}
	return mem, nil
}

func (m *memory) free(mem []byte) error {
	m.give(charged(int64(len(mem))))
	return private.Free(mem)
}

// A replica is the host's copy of a buffer whose bytes are sent. It belongs to
// one connection.
type replica struct {
	budget *memory
	mem    []byte

	// Operations that read take one, what writes takes all: only then stores do
	// not fault.
	using *semaphore.Weighted
	// Held while what changed is looked for and sent: who is told that his
	// operation is done has been sent all that it changed, by him or by another.
	sending sync.Mutex
	sums    *blocks.Sums // of what the guest has; by who has all of using, or one and sending

	mu   sync.Mutex
	uses int
	lost bool // blocks that came for it were not taken
}

const allUses = math.MaxInt64

func newReplica(budget *memory, size int64) (*replica, error) {
	mem, err := budget.alloc(size)
	if err != nil {
		return nil, err
	}
	r := &replica{budget: budget, mem: mem, using: semaphore.NewWeighted(allUses), sums: blocks.NewSums(size), uses: 1}
	if err := private.Protect(mem, false); err != nil {
		r.release()
		return nil, err
	}
	return r, nil
}

// retain has the memory stay until one more release.
func (r *replica) retain() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.uses++
}

func (r *replica) release() {
	r.mu.Lock()
	r.uses--
	last := r.uses == 0
	r.mu.Unlock()
	if last {
		_ = r.budget.free(r.mem) // it is what alloc returned
	}
}

func (r *replica) lose() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lost = true
}

func (r *replica) isLost() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lost
}

// errLost says that a replica is no good any more.
func errLost() error {
	return &sharedbuf.Error{Code: sharedbuf.ErrStale, Message: "this connection has no copy of that buffer that is up to date: open one and send all of it"}
}

// use waits until an operation may use the memory. It fails with ErrStale if that
// is no good any more.
func (r *replica) use(ctx context.Context, write bool) (done func(), err error) {
	n := int64(1)
	if write {
		n = allUses
	}
	if ctx.Err() != nil || r.using.Acquire(ctx, n) != nil {
		return nil, context.Cause(ctx)
	}
	if r.isLost() {
		r.using.Release(n)
		return nil, errLost()
	}
	if !write {
		return func() { r.using.Release(n) }, nil
	}
	if err := private.Protect(r.mem, true); err != nil {
		r.using.Release(n)
		return nil, err
	}
	return r.used, nil
}

// used ends the use of whoever writes.
func (r *replica) used() {
	if private.Protect(r.mem, false) != nil {
		r.lose() // nothing harms it, but who reads could write
	}
	r.using.Release(allUses)
}

// put takes the blocks that follow a request. While an operation goes on that
// the guest has given up, its memory cannot be written: then they are passed
// over, and the replica is lost.
func (r *replica) put(next func() (int, []byte, error)) error {
	writing := false
	defer func() {
		if writing {
			r.used()
		}
	}()
	for {
		i, block, err := next()
		if err != nil {
			return err
		}
		if !writing {
			if writing = !r.isLost() && r.using.TryAcquire(allUses); !writing {
				r.lose()
				continue
			}
			if err := private.Protect(r.mem, true); err != nil {
				return err
			}
		}
		copy(blocks.Of(r.mem, i), block)
		r.sums.Update(i, block)
	}
}

// sendChanged writes what changed since the guest had it. The caller uses the
// replica and holds sending.
func (r *replica) sendChanged(w *blocks.Writer) error {
	for i := range blocks.Count(int64(len(r.mem))) {
		if block := blocks.Of(r.mem, i); r.sums.Update(i, block) {
			w.Add(i, block)
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	return nil
}

// copyOf answers a request for a copy, or for its end.
func (c *conn) copyOf(r *sharedbuf.Request) error {
	what, err := r.OperationName()
	if err != nil {
		return err
	}
	failed := func(code sharedbuf.Code, format string, args ...any) error {
		return &sharedbuf.Error{Code: code, Op: what, Path: fmt.Sprintf("%s%d", sharedbuf.ChannelPrefix, r.BufferID), Message: fmt.Sprintf(format, args...)}
	}
	id := uint32(r.BufferID)
	switch {
	case what == "close":
		c.drop(id)
		return nil
	case what != "open":
		return failed(sharedbuf.ErrOperation, "want open or close")
	case r.Size == 0:
		return failed(sharedbuf.ErrInvalid, "the request says no buffer_size")
	case r.Size > c.h.config.MaxBuffer:
		return failed(sharedbuf.ErrLimit, "a buffer of %d bytes; at most %d are allowed", r.Size, c.h.config.MaxBuffer)
	}
	c.drop(id)
	fresh, err := newReplica(&c.memory, r.Size)
	if err != nil {
		return place(err, what, fmt.Sprintf("%s%d", sharedbuf.ChannelPrefix, id))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.replicas[id] = fresh
	return nil
}

// drop ends the copy of a buffer, if there is one, for requests to come.
func (c *conn) drop(id uint32) {
	c.mu.Lock()
	old := c.replicas[id]
	delete(c.replicas, id)
	c.mu.Unlock()
	if old != nil {
		old.release()
	}
}

// dropAll ends all copies.
func (c *conn) dropAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.replicas {
		r.release()
	}
	clear(c.replicas)
}

// replica returns the copy that a request is about, nil if there is none.
func (c *conn) replica(r *sharedbuf.Request) *replica {
	id, ok := strings.CutPrefix(r.Path, sharedbuf.ChannelPrefix)
	if r.API != sharedbuf.APIShared || !ok || id != strconv.FormatUint(uint64(r.BufferID), 10) {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if found := c.replicas[uint32(r.BufferID)]; found != nil && int64(len(found.mem)) == r.Size {
		return found
	}
	return nil
}

// prepare finds what a request asks for, and on what. The work owns file.
func (c *conn) prepare(r *sharedbuf.Request, file *os.File) (*work, error) {
	w, err := c.h.prepare(r, file, c.guest)
	if err != nil {
		if file != nil {
			file.Close()
		}
		return nil, err
	}
	w.memory = &c.memory
	if w.key, err = c.keyOf(r); err != nil {
		w.close()
		return nil, err
	}
	if !strings.HasPrefix(r.Path, sharedbuf.ChannelPrefix) {
		return w, nil
	}
	found := c.replica(r)
	if found == nil || found.isLost() {
		w.close()
		return nil, errLost()
	}
	found.retain()
	w.replica = found
	return w, nil
}

// takeBlocks reads the blocks that follow a request. It reports whether the guest
// took the request back. Its error ends the connection.
func (c *conn) takeBlocks(r *sharedbuf.Request) (tookBack bool, err error) {
	defer c.within()()
	to, size := c.replica(r), int64(-1)
	if to != nil {
		size = r.Size
	}
	records := blocks.NewReader(c.r, size)
	if to != nil {
		err = to.put(records.Next)
	}
	for to == nil && err == nil {
		_, _, err = records.Next()
	}
	switch {
	case err == io.EOF:
		return false, nil
	case errors.Is(err, blocks.ErrGivenUp):
		return true, nil
	}
	code := sharedbuf.ErrInvalid
	if errors.Is(err, blocks.ErrCorrupt) {
		code = sharedbuf.ErrCorrupt
	}
	return false, &sharedbuf.Error{Code: code, Op: r.API, Path: r.Path, Message: "the blocks that follow the request cannot be read", Err: err}
}
