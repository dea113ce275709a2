// SPDX-License-Identifier: Apache-2.0

package mapping

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"slices"
	"sync"
	"time"
)

// idleTimeout is how long memory waits in a pool for its next use.
const idleTimeout = 10 * time.Second

const (
	minCapacity = 64 << 10
	maxCapacity = 1 << 46 // what processors can address, with room for the other mappings
)

// ErrClosed is returned for a closed pool or mapping.
var ErrClosed = errors.New("mapping: closed")

// A Pool keeps the memory of closed shadows for the next ones: touching new
// pages costs more than receiving their contents. What it keeps is bounded in
// bytes and goes back to the system when idle for ten seconds. On Linux a pool
// takes three descriptors, however many shadows there are. Its methods may be
// called concurrently.
type Pool struct {
	limit   int64
	scratch sync.Pool // *scratch

	mu        sync.Mutex
	source    source
	trackErr  error     // why pages are not tracked; nil also if that has not been tried
	regions   int       // made and not closed
	idle      []*region // longest idle first
	idleBytes int64
	closed    bool
	timer     *time.Timer // will run expire; nil when nothing was idle
	expiring  sync.WaitGroup
}

// NewPool returns a pool that keeps at most limit bytes of the system's
// memory idle.
func NewPool(limit int64) *Pool {
	return &Pool{limit: limit, source: newSource()}
}

// Idle returns how many bytes of the system's memory the pool holds for reuse, at
// most.
func (p *Pool) Idle() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.idleBytes
}

// Close gives all idle memory back and waits for the pool's own work to end.
// Shadows that are still open stay usable; their memory goes when they close, and
// the pool's descriptors with the last. Close is idempotent.
func (p *Pool) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	p.regions++ // as if there were one more, until the idle ones are closed
	if p.timer != nil && p.timer.Stop() {
		p.expiring.Done()
	}
	idle := p.idle
	p.idle, p.idleBytes = nil, 0
	p.mu.Unlock()
	err := p.discard(idle...)
	p.expiring.Wait()
	return errors.Join(err, p.forget(1))
}

// startTimer sees to it that the region longest idle expires. The caller holds
// mu.
func (p *Pool) startTimer() {
	if p.timer != nil || len(p.idle) == 0 {
		return
	}
	p.expiring.Add(1)
	p.timer = time.AfterFunc(time.Until(p.idle[0].idleSince.Add(idleTimeout)), p.expire)
}

// expire gives back what has been idle for long enough.
func (p *Pool) expire() {
	defer p.expiring.Done()
	p.mu.Lock()
	now := time.Now()
	n := 0
	for n < len(p.idle) && now.Sub(p.idle[n].idleSince) >= idleTimeout {
		p.idleBytes -= p.idle[n].resident
		n++
	}
	old := slices.Clone(p.idle[:n])
	p.idle = slices.Delete(p.idle, 0, n)
	p.timer = nil
	p.startTimer()
	p.mu.Unlock()
	// Nobody to tell: what a failing munmap holds is lost to this process.
	_ = p.discard(old...)
}

// mode chooses how changes are found.
func (p *Pool) mode(t Tracking) (Tracking, error) {
	switch t {
	case Compare, Named:
		return t, nil
	case Auto, Pages:
		err := p.track()
		if err == nil {
			return Pages, nil
		}
		if t == Auto {
			return Compare, nil
		}
		return t, fmt.Errorf("mapping: pages not tracked: %w", err)
	default:
		return t, fmt.Errorf("mapping: unknown tracking %d", t)
	}
}

// track prepares for regions that are tracked. What fails for good is not tried
// again.
func (p *Pool) track() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return ErrClosed
	}
	if !errors.Is(p.trackErr, errors.ErrUnsupported) {
		p.trackErr = p.source.track()
	}
	return p.trackErr
}

// get returns a region of at least size bytes. What it holds is whatever its
// last user left there.
func (p *Pool) get(size int64, tracked bool) (*region, error) {
	if size > maxCapacity {
		return nil, fmt.Errorf("mapping: %d bytes are more than a mapping can have (%d)", size, int64(maxCapacity))
	}
	capacity := max(minCapacity, int64(1)<<bits.Len64(uint64(size-1)))
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, ErrClosed
	}
	// The one used last: its pages are the likeliest to be in a cache.
	for i := len(p.idle) - 1; i >= 0; i-- {
		// One that can be tracked need not be.
		if r := p.idle[i]; r.capacity() == capacity && (r.tracked() || !tracked) {
			p.idle = slices.Delete(p.idle, i, i+1)
			p.idleBytes -= r.resident
			p.mu.Unlock()
			return r, nil
		}
	}
	p.regions++
	p.mu.Unlock()
	r, err := p.source.region(capacity, tracked)
	if err != nil {
		return nil, errors.Join(err, p.forget(1))
	}
	return r, nil
}

// put takes back a region that nobody uses any more.
func (p *Pool) put(r *region) error {
	// Counting its pages takes longer than all the rest. It is for those that
	// there may be no room for, and may have few.
	size := r.most()
	if size > p.limit-p.Idle() {
		var err error
		if size, err = r.size(); err != nil || size > p.limit {
			return errors.Join(err, p.discard(r))
		}
	}
	r.resident = size
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return p.discard(r)
	}
	r.idleSince = time.Now()
	p.idle = append(p.idle, r)
	p.idleBytes += size
	n := 0
	for p.idleBytes > p.limit {
		p.idleBytes -= p.idle[n].resident
		n++
	}
	out := slices.Clone(p.idle[:n])
	p.idle = slices.Delete(p.idle, 0, n)
	p.startTimer()
	p.mu.Unlock()
	return p.discard(out...)
}

// A stay is what a pool notes of a region.
type stay struct {
	used [2]int64 // how many bytes of each half may ever have been touched

	// While it is idle:
	resident  int64 // bytes of the system's memory, at most
	idleSince time.Time
}

// use takes note that the first n bytes of a half are used from now on.
func (s *stay) use(of half, n int64) { s.used[of] = max(s.used[of], n) }

// discard gives regions back to the system.
func (p *Pool) discard(regions ...*region) error {
	if len(regions) == 0 {
		return nil
	}
	var errs []error
	for _, r := range regions {
		errs = append(errs, r.close())
	}
	return errors.Join(append(errs, p.forget(len(regions)))...)
}

// forget takes note that n regions are no more. What regions are made of goes
// with the last of a closed pool.
func (p *Pool) forget(n int) error {
	p.mu.Lock()
	p.regions -= n
	last := p.closed && p.regions == 0
	p.mu.Unlock()
	if !last {
		return nil
	}
	return p.source.close()
}

// pageSize is the unit of tracking.
var pageSize = int64(os.Getpagesize())
