// SPDX-License-Identifier: Apache-2.0

package mapping

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/internal/userfault"
)

// Tracking says how a shadow finds what its user wrote.
type Tracking uint8

// The ways of tracking.
const (
	// Auto is Pages where the kernel can, otherwise Compare.
	Auto Tracking = iota
	// Pages asks the kernel which pages were written and compares those with
	// the image. It needs Linux 6.7.
	Pages
	// Compare compares every page with the image.
	Compare
	// Named finds nothing out and keeps no image: whoever writes names the
	// ranges (CollectNamed).
	Named
	// Adaptive is Auto, save that memory which is rewritten whole each time is
	// compared with the image and spared the kernel's notice of every page. Who
	// rewrites all and then writes little has all compared a few times.
	Adaptive
)

// String returns "auto", "pages", "compare", "named" or "adaptive".
func (t Tracking) String() string {
	if names := [...]string{"auto", "pages", "compare", "named", "adaptive"}; int(t) < len(names) {
		return names[t]
	}
	return fmt.Sprintf("Tracking(%d)", uint8(t))
}

// A half is one of the two parts of a region.
type half int

const (
	bytesHalf half = iota
	imageHalf
)

// An extent is bytes [start, end) of a region.
type extent struct{ start, end int64 }

// A Shadow is a local copy of bytes [off, off+n) of a span. Its methods may be
// called concurrently with each other and with loads and stores of Bytes by
// any thread, save that Merge must not come between a Collect and the settling
// of its changes, if its bytes may be older than those changes.
type Shadow struct {
	pool      *Pool
	off, n    int64 // the range, in the span
	blockSize int64
	tracking  Tracking // Pages, Compare or Named
	image     bool     // writable, and not Named

	// region's byte 0 is the span's byte base, so that pages begin at
	// multiples of the page size in both. The range is region[start:start+n].
	region      *region
	base, start int64

	collecting sync.Mutex     // held by Collect and CollectNamed
	fills      sync.WaitGroup // calls of Fill, for Close; Add under mu

	mu          sync.Mutex
	armed       bool
	closed      bool
	filled      []extent             // until armed
	sums        *sums                // of the image; Compare only
	pending     bitmap               // pages that may differ from the image; with Pages, as far as the kernel no longer reports them
	hot         bitmap               // granules that are compared each time instead of being protected; nil: none ever are
	heat        []uint8              // of hot granules: after how many more collections without change they are not
	written     []userfault.Range    // room for the kernel's answer
	words       []byte               // room for a page of Merge's
	outstanding map[*Change]struct{} // handed out and not settled
	scratch     *scratch             // where the next change goes; or nil
	found       scratch              // the part of it that the block being looked at has
}

// NewShadow returns a shadow for bytes [off, off+n) of a span whose blocks are
// blockSize bytes long, a multiple of the page size below 4 GiB. Its memory
// comes from p. If writable is false, there is neither an image nor tracking:
// stores stay local, and are lost when Merge brings other bytes.
func NewShadow(p *Pool, off, n, blockSize int64, writable bool, tracking Tracking) (*Shadow, error) {
	if off < 0 || n <= 0 || off > math.MaxInt64-n {
		return nil, fmt.Errorf("mapping: shadow of [%d, +%d): not a range", off, n)
	}
	if blockSize <= 0 || blockSize > math.MaxUint32 || blockSize%pageSize != 0 {
		return nil, fmt.Errorf("mapping: block size %d is not a multiple of the page size %d below 4 GiB", blockSize, pageSize)
	}
	if !writable {
		tracking = Named
	}
	adaptive := tracking == Adaptive
	if adaptive {
		tracking = Auto
	}
	tracking, err := p.mode(tracking)
	if err != nil {
		return nil, err
	}
	start := off % pageSize
	region, err := p.get(start+n, tracking == Pages)
	if err != nil {
		return nil, fmt.Errorf("mapping: shadow of %d bytes: %w", n, err)
	}
	if writable && tracking != Pages && region.tracked() { // its last user's stores were
		pages := (start + n + pageSize - 1) / pageSize
		if err := region.tracker.Disarm(region.user[:pages*pageSize]); err != nil {
			return nil, errors.Join(fmt.Errorf("mapping: shadow of %d bytes: %w", n, err), p.discard(region))
		}
	}
	s := &Shadow{
		pool: p, off: off, n: n, blockSize: blockSize,
		tracking: tracking, image: tracking != Named,
		region: region, base: off - start, start: start,
		outstanding: make(map[*Change]struct{}),
	}
	region.use(bytesHalf, s.pages()*pageSize)
	if s.image {
		region.use(imageHalf, s.pages()*pageSize)
		s.pending = newBitmap(s.pages())
	}
	switch {
	case tracking == Compare:
		s.sums = newSums(s)
	case tracking == Pages && adaptive:
		s.hot, s.heat = newBitmap(s.pages()/granule), make([]uint8, s.pages()/granule)
	}
	return s, nil
}

// Bytes returns the user's mapping of exactly the shadow's range. It must not
// be touched after Close: the memory will be another shadow's.
func (s *Shadow) Bytes() []byte {
	return s.region.user[s.start : s.start+s.n : s.start+s.n]
}

// Tracking returns how changes are found: Pages, Compare or Named.
func (s *Shadow) Tracking() Tracking { return s.tracking }

// pages returns how many pages of the region the range touches.
func (s *Shadow) pages() int64 { return (s.start + s.n + pageSize - 1) / pageSize }

// locate returns where the span's bytes [off, off+n) are in the region.
func (s *Shadow) locate(off, n int64) (extent, error) {
	if n < 0 || off < s.off || off-s.off > s.n || n > s.n-(off-s.off) {
		return extent{}, fmt.Errorf("mapping: range [%d, +%d) is outside the mapping of [%d, +%d)", off, n, s.off, s.n)
	}
	return extent{off - s.base, off - s.base + n}, nil
}

// usable says why the shadow's bytes cannot be worked with yet or any more. The
// caller holds mu.
func (s *Shadow) usable() error {
	switch {
	case s.closed:
		return ErrClosed
	case !s.armed:
		return errors.New("mapping: not armed yet: until then it may hold another mapping's bytes")
	default:
		return nil
	}
}

// Fill sets the initial content of the span's bytes [off, off+n): read stores
// them into dst, best by system calls that receive straight into it. Ranges
// that are not filled, or whose read fails, read as zeros. Fill comes before
// Arm; several ranges may be filled concurrently. (To bring in a range later,
// use Merge.)
func (s *Shadow) Fill(off, n int64, read func(dst []byte) error) error {
	at, err := s.locate(off, n)
	if err != nil {
		return err
	}
	s.mu.Lock()
	switch {
	case s.closed:
		err = ErrClosed
	case s.armed:
		err = errors.New("mapping: fill after arm: the user may have written there; use Merge")
	default:
		s.fills.Add(1)
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	defer s.fills.Done()
	dst := s.region.alias[at.start:at.end:at.end]
	if err := read(dst); err != nil {
		return fmt.Errorf("mapping: fill [%d, +%d): %w", off, n, err)
	}
	if s.image {
		s.imprint(at)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.filled = append(s.filled, at)
	return nil
}

// imprint makes the image of what was filled, and sums it while it is in the
// processor's cache.
func (s *Shadow) imprint(at extent) {
	for start := at.start; start < at.end; {
		end := min(at.end, start&^(imprintStep-1)+imprintStep)
		memfd.Copy(s.region.image[start:end], s.region.alias[start:end])
		if s.sums != nil {
			s.sums.take(extent{start, end})
		}
		start = end
	}
}

// imprintStep is how much imprint copies before it sums: whole pages.
const imprintStep = 256 << 10

// Arm makes what was not filled read as zeros and begins tracking. It is
// called once, when all Fills have returned and before Bytes is handed out.
func (s *Shadow) Arm() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	if s.armed {
		return errors.New("mapping: armed twice")
	}
	s.armed = true
	slices.SortFunc(s.filled, func(a, b extent) int { return int(min(max(a.start-b.start, -1), 1)) })
	at := s.start
	for _, f := range append(s.filled, extent{s.start + s.n, s.start + s.n}) {
		if at < f.start {
			s.zero(at, f.start)
		}
		at = max(at, f.end)
	}
	if s.sums != nil {
		s.sums.complete(s.filled)
	}
	s.filled = nil
	if s.tracking != Pages {
		return nil
	}
	if err := s.region.tracker.Arm(s.region.user[:s.pages()*pageSize]); err != nil {
		return fmt.Errorf("mapping: arm %d bytes: %w", s.n, err)
	}
	return nil
}

// zero clears bytes and image, without touching pages that do not exist.
func (s *Shadow) zero(start, end int64) {
	for lo, hi := s.region.touched(bytesHalf, start, end); lo < hi; lo, hi = s.region.touched(bytesHalf, hi, end) {
		clear(s.region.alias[lo:hi])
	}
	if !s.image {
		return
	}
	for lo, hi := s.region.touched(imageHalf, start, end); lo < hi; lo, hi = s.region.touched(imageHalf, hi, end) {
		clear(s.region.image[lo:hi])
	}
}

// Close returns the memory to the pool. Bytes must not be used any more, and
// what was written since the last Collect is lost. Changes that are still out
// stay readable; settling them does nothing. Close is idempotent.
func (s *Shadow) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	clear(s.outstanding)
	if s.scratch != nil && s.scratch.users == 0 {
		s.pool.scratch.Put(s.scratch)
	}
	s.scratch = nil
	s.mu.Unlock()
	s.fills.Wait()
	return s.pool.put(s.region)
}
