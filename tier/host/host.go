// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"github.com/memspan/memspan/coherency"
	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/tier"
)

// idleShare is the part of the budget that may stay with memory of closed
// spaces, waiting for the next one: taking pages from the system costs more
// than filling them.
const idleShare = 8

// A Tier is the RAM of this machine, up to a budget. It implements tier.Tier.
type Tier struct {
	budget     int64
	page       int64
	maxRegions int
	forget     func(*memfd.Region)

	mu       sync.Mutex
	used     int64 // bytes of reserved blocks and of idle regions
	regions  int   // each takes a descriptor and a mapping, of which a process has so many
	idle     []*memfd.Region
	idleSize int64
}

var _ tier.Tier = (*Tier)(nil)

// New returns a tier that takes at most budget bytes from the system; budget 0
// leaves the limit to the machine. Forget, if not nil, is called before a
// region is unmapped: other tiers may have been given its memory.
func New(budget int64, forget func(*memfd.Region)) *Tier {
	return &Tier{budget: budget, page: int64(os.Getpagesize()), maxRegions: memfd.MaxRegions(), forget: forget}
}

func (t *Tier) unmap(r *memfd.Region) error {
	if t.forget != nil {
		t.forget(r)
	}
	t.mu.Lock()
	t.regions--
	t.mu.Unlock()
	return r.Close()
}

// create makes a region, giving up idle ones before it refuses.
func (t *Tier) create(name string, size int64) (*memfd.Region, error) {
	return t.make(func() (*memfd.Region, error) { return memfd.Create(name, size) })
}

// make is create for regions that are made by f.
func (t *Tier) make(f func() (*memfd.Region, error)) (*memfd.Region, error) {
	if !t.countRegion() {
		t.dropIdle()
		if !t.countRegion() {
			return nil, fmt.Errorf("this process can have %d spans in RAM at a time, raise its limit of open files: %w", t.maxRegions, tier.ErrBudget)
		}
	}
	r, err := f()
	if err != nil {
		t.mu.Lock()
		t.regions--
		t.mu.Unlock()
	}
	return r, err
}

func (t *Tier) countRegion() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.regions >= t.maxRegions {
		return false
	}
	t.regions++
	return true
}

// Kind returns coherency.Host.
func (t *Tier) Kind() coherency.Tier { return coherency.Host }

// Open makes storage for a span of size bytes. It takes memory when a block is
// first reserved, so a span that never has a copy here costs nothing.
func (t *Tier) Open(_ context.Context, name string, size int64, _ tier.Placement) (tier.Space, error) {
	return t.OpenSpace(name, size)
}

// OpenSpace is Open for callers that need the space's region.
func (t *Tier) OpenSpace(name string, size int64) (*Space, error) {
	if size <= 0 {
		return nil, fmt.Errorf("tier/host: open %q: size %d is not positive", name, size)
	}
	return &Space{tier: t, name: name, size: size, reserved: make([]bool, (size+tier.BlockSize-1)/tier.BlockSize)}, nil
}

// Usage returns the bytes taken from the system, idle ones included.
func (t *Tier) Usage() tier.Usage {
	t.mu.Lock()
	defer t.mu.Unlock()
	return tier.Usage{Used: t.used, Held: t.used - t.idleSize, Budget: t.budget}
}

// Close gives idle memory back to the system.
func (t *Tier) Close() error {
	t.dropIdle()
	return nil
}

// charge counts n more bytes, giving up idle regions before it refuses.
func (t *Tier) charge(n int64) error {
	if t.tryCharge(n) {
		return nil
	}
	t.dropIdle()
	if t.tryCharge(n) {
		return nil
	}
	u := t.Usage()
	return fmt.Errorf("tier/host: %d bytes more than the %d in use exceed the budget of %d: %w",
		n, u.Used, u.Budget, tier.ErrBudget)
}

func (t *Tier) tryCharge(n int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.budget > 0 && t.used > t.budget-n {
		return false
	}
	t.used += n
	return true
}

func (t *Tier) refund(n int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.used -= n
}

// dropIdle closes the idle regions.
func (t *Tier) dropIdle() {
	t.mu.Lock()
	idle := t.idle
	t.used -= t.idleSize
	t.idle, t.idleSize = nil, 0
	t.mu.Unlock()
	for _, r := range idle {
		t.unmap(r)
	}
}

// takeIdle returns an idle region of exactly size bytes, or nil. Its pages are
// all present and stay counted: the space that takes it has every block
// reserved.
func (t *Tier) takeIdle(size int64) *memfd.Region {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, r := range t.idle {
		if r.Size() == size {
			t.idle = append(t.idle[:i], t.idle[i+1:]...)
			t.idleSize -= size
			return r
		}
	}
	return nil
}

// keepIdle keeps a region whose pages are all present and counted. It reports
// false, and keeps nothing, if the share for idle memory is full.
func (t *Tier) keepIdle(r *memfd.Region) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.budget == 0 || t.idleSize+r.Size() > t.budget/idleShare {
		return false
	}
	t.idle = append(t.idle, r)
	t.idleSize += r.Size()
	return true
}

// A Space is one span's memory. It implements tier.Space.
type Space struct {
	tier *Tier
	name string
	size int64

	mu       sync.Mutex // guards what follows; not the memory itself
	region   *memfd.Region
	reserved []bool
	count    int // of reserved
	shared   bool
	storable bool // somebody outside may store to it, though nobody ought to
	adopted  bool // somebody outside made it
	closed   bool
}

var _ tier.Space = (*Space)(nil)

func (s *Space) regionLocked() (*memfd.Region, error) {
	if s.closed {
		return nil, fmt.Errorf("tier/host: space %q: %w", s.name, os.ErrClosed)
	}
	if s.region != nil {
		return s.region, nil
	}
	size := s.pages()
	r, err := s.tier.create("span:"+s.name, size)
	if err != nil {
		return nil, fmt.Errorf("tier/host: space %q: %w", s.name, err)
	}
	s.region = r
	return r, nil
}

// pages returns the bytes of the span in whole pages.
func (s *Space) pages() int64 { return (s.size + s.tier.page - 1) / s.tier.page * s.tier.page }

// ReserveAll is Reserve for all blocks. Memory that a space of the same size
// has left behind is taken first: its pages are there already. They are never
// given to a space whose blocks are reserved one by one, and would all count.
func (s *Space) ReserveAll(ctx context.Context) error {
	if s.adoptIdle() {
		return nil
	}
	for b := range s.reserved {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := s.Reserve(ctx, b); err != nil {
			return err
		}
	}
	return nil
}

// adoptIdle takes an idle region if there is one that fits and no other is in
// use.
func (s *Space) adoptIdle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.region != nil {
		return false
	}
	r := s.tier.takeIdle(s.pages())
	if r == nil {
		return false
	}
	// Another process may be handed all of it: no byte of an earlier span may be
	// left, beyond the end of this one either.
	clear(r.Bytes())
	s.region = r
	for b := range s.reserved {
		s.reserved[b] = true
	}
	s.count = len(s.reserved)
	return true
}

// Adopt makes memory that another process made, and may keep mapped, the span's,
// before any block is reserved: a block has its bytes then, where Reserve says that
// it reads as zeros. Memory is a memfd of ordinary pages, sealed against shrinking
// and growing, that may be written and has the span's size in whole pages; else the
// error matches errors.ErrUnsupported. It stays the caller's to close.
func (s *Space) Adopt(memory *os.File) error {
	fail := func(err error) error { return fmt.Errorf("tier/host: space %q: adopt memory: %w", s.name, err) }
	info, err := memory.Stat()
	if err != nil {
		return fail(err)
	}
	if info.Size() != s.pages() {
		return fail(fmt.Errorf("%w: it has %d bytes, not %d", errors.ErrUnsupported, info.Size(), s.pages()))
	}
	if err := memfd.CheckFixed(memory); err != nil {
		return fail(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.region != nil {
		return fail(errors.New("the space has memory already"))
	}
	r, err := s.tier.make(func() (*memfd.Region, error) {
		own, err := memfd.Duplicate(memory)
		if err != nil {
			return nil, err
		}
		r, err := memfd.Open(own, s.pages())
		if errors.Is(err, fs.ErrPermission) { // it can be read alone
			err = fmt.Errorf("%w: %w", errors.ErrUnsupported, err)
		}
		if err != nil {
			return nil, errors.Join(err, own.Close())
		}
		return r, nil
	})
	if err != nil {
		return fail(err)
	}
	s.region, s.shared, s.storable, s.adopted = r, true, true, true
	clear(r.Bytes()[s.size:]) // which others may map
	return nil
}

// Share returns a descriptor of the memory of the whole span, byte i of which
// is byte i of the span, for passing to another process, and its size. The
// caller closes it. The process may keep the pages mapped for as long as it
// lives: they are never given to another space.
func (s *Space) Share(writable bool) (*os.File, int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.regionLocked()
	if err != nil {
		return nil, 0, err
	}
	f, err := r.Reopen(writable)
	if err != nil {
		return nil, 0, fmt.Errorf("tier/host: space %q: %w", s.name, err)
	}
	s.shared = true
	s.storable = s.storable || writable
	return f, r.Size(), nil
}

// Storable reports whether another process was ever given the memory to write:
// it may change at any time, whatever that process was asked to do since.
func (s *Space) Storable() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.storable
}

// Memory returns bytes [off, off+n) of block b, which must be reserved.
func (s *Space) Memory(b int, off, n int64) (tier.Memory, error) {
	length := s.blockLen(b)
	if off < 0 || n < 0 || off > length || n > length-off {
		return tier.Memory{}, fmt.Errorf("tier/host: space %q: [%d, +%d) is outside block %d of %d bytes", s.name, off, n, b, length)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || !s.reserved[b] {
		return tier.Memory{}, fmt.Errorf("tier/host: space %q: block %d is not reserved", s.name, b)
	}
	return tier.Memory{Region: s.region, Off: int64(b)*tier.BlockSize + off, Len: n}, nil
}

// blockLen returns the length of block b, 0 if there is no such block.
func (s *Space) blockLen(b int) int64 {
	if b < 0 || b >= len(s.reserved) {
		return 0
	}
	return min(tier.BlockSize, s.size-int64(b)*tier.BlockSize)
}

// blockPages returns the bytes that block b takes from the system.
func (s *Space) blockPages(b int) int64 {
	return (s.blockLen(b) + s.tier.page - 1) / s.tier.page * s.tier.page
}

// Reserve takes the pages of block b from the system. They read as zeros.
func (s *Space) Reserve(_ context.Context, b int) error {
	if s.blockLen(b) == 0 {
		return fmt.Errorf("tier/host: space %q has no block %d", s.name, b)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	region, err := s.regionLocked()
	if err != nil {
		return err
	}
	if s.reserved[b] {
		return nil
	}
	n := s.blockPages(b)
	if err := s.tier.charge(n); err != nil {
		return err
	}
	// Taken now, a page cannot be missing later, when a store to it would
	// raise SIGBUS.
	if err := region.Allocate(int64(b)*tier.BlockSize, n); err != nil {
		s.tier.refund(n)
		return fmt.Errorf("tier/host: block %d of %q: %w: %w", b, s.name, tier.ErrBudget, err)
	}
	s.reserved[b] = true
	s.count++
	return nil
}

// Read copies bytes of block b to dst.
func (s *Space) Read(ctx context.Context, b int, off int64, dst tier.Memory) error {
	src, err := s.Memory(b, off, dst.Len)
	if err != nil {
		return err
	}
	return guard(ctx, func() { memfd.Copy(dst.Bytes(), src.Bytes()) })
}

// Write copies src to bytes of block b. It is made for sources that were just
// received and are in the processor's cache: a whole block is copied by one
// call of copy, whose stores then go past the cache, at nearly twice the rate.
func (s *Space) Write(ctx context.Context, b int, off int64, src tier.Memory) error {
	dst, err := s.Memory(b, off, src.Len)
	if err != nil {
		return err
	}
	return guard(ctx, func() { copy(dst.Bytes(), src.Bytes()) })
}

// guard calls f, which touches memory that a client may have mapped, unless
// ctx has ended.
func guard(ctx context.Context, f func()) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := memfd.Guard(f); err != nil {
		return fmt.Errorf("%w: %w", tier.ErrLost, err)
	}
	return nil
}

// Fill stores a pattern to bytes of block b.
func (s *Space) Fill(ctx context.Context, b int, off, n int64, pattern uint32) error {
	dst, err := s.Memory(b, off, n)
	if err != nil {
		return err
	}
	return guard(ctx, func() { fill(dst.Bytes(), pattern) })
}

func fill(p []byte, pattern uint32) {
	if pattern == 0 {
		clear(p)
		return
	}
	var word [4]byte
	binary.LittleEndian.PutUint32(word[:], pattern)
	// Doubling what is there copies from cache until the copies are large.
	done := copy(p, word[:])
	for done < len(p) {
		done += copy(p[done:], p[:min(done, 64<<10)])
	}
}

// Copy copies bytes of a block of src, a space of this tier, to block b.
func (s *Space) Copy(ctx context.Context, b int, off int64, src tier.Space, sb int, soff, n int64) error {
	from, ok := src.(*Space)
	if !ok || from.tier != s.tier {
		return fmt.Errorf("tier/host: copy to %q: source is not a space of this tier", s.name)
	}
	dst, err := s.Memory(b, off, n)
	if err != nil {
		return err
	}
	source, err := from.Memory(sb, soff, n)
	if err != nil {
		return err
	}
	return guard(ctx, func() { memfd.Copy(dst.Bytes(), source.Bytes()) })
}

// Drop gives block b's pages back to the system.
func (s *Space) Drop(b int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.blockLen(b) == 0 || !s.reserved[b] {
		return
	}
	s.reserved[b] = false
	s.count--
	// Failing to punch costs memory, not correctness: the pages go with the
	// region.
	_ = s.region.Punch(int64(b)*tier.BlockSize, s.blockPages(b))
	s.tier.refund(s.blockPages(b))
	if s.count == 0 && !s.shared { // nobody has a block of it, so nobody its memory
		s.tier.unmap(s.region)
		s.region = nil
	}
}

// Close drops all blocks. Another process that has the region mapped keeps the
// mapping, but not the memory: it reads zeros from then on. One that made the
// memory keeps that too.
func (s *Space) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	if s.region == nil {
		return nil
	}
	if s.count == len(s.reserved) && !s.shared && s.tier.keepIdle(s.region) {
		return nil
	}
	for b, held := range s.reserved {
		if held {
			s.tier.refund(s.blockPages(b))
		}
	}
	if s.shared && !s.adopted {
		// The budget must not forget pages that somebody still maps.
		_ = s.region.Punch(0, s.region.Size())
	}
	return s.tier.unmap(s.region)
}
