// SPDX-License-Identifier: Apache-2.0

package mapping

import (
	"errors"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/internal/userfault"
)

// A source is what the regions of a pool are made of. It takes the same few
// descriptors however many regions there are.
type source struct {
	arena   *memfd.Arena
	tracker *userfault.Tracker // nil: pages are not tracked, as far as is known
}

func newSource() source { return source{arena: memfd.NewArena("memspan-shadow")} }

// track prepares for regions that are tracked. The error matches
// errors.ErrUnsupported if there will never be any.
func (s *source) track() (err error) {
	if s.tracker == nil {
		s.tracker, err = userfault.New()
	}
	return err
}

// close gives the descriptors back. It comes after all regions are closed.
func (s *source) close() error {
	err := s.arena.Close()
	if s.tracker != nil {
		err = errors.Join(err, s.tracker.Close())
	}
	return err
}

// A region is a shadow's memory: one piece, whose first half holds the bytes
// and whose second half the image. Pages cost memory once they are touched, so
// a shadow without an image has none.
type region struct {
	mem     *memfd.Piece
	user    []byte // the first half as the user sees it
	alias   []byte // the first half as this package sees it
	image   []byte
	tracker *userfault.Tracker // the source's, of user; nil if it is not tracked
	stay
}

// region makes a region. If it is to be tracked, track has succeeded.
func (s *source) region(capacity int64, tracked bool) (_ *region, err error) {
	r := &region{}
	if r.mem, err = s.arena.Take(2 * capacity); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	r.alias, r.image = r.mem.Bytes()[:capacity:capacity], r.mem.Bytes()[capacity:]
	if r.user, err = r.mem.Alias(capacity); err != nil {
		return nil, err
	}
	if tracked {
		if err = s.tracker.Track(r.user); err != nil {
			return nil, err
		}
		r.tracker = s.tracker
	}
	return r, nil
}

func (r *region) capacity() int64 { return int64(len(r.alias)) }

func (r *region) tracked() bool { return r.tracker != nil }

// most returns what the region costs the system at most, in bytes.
func (r *region) most() int64 { return r.used[bytesHalf] + r.used[imageHalf] }

// size returns what it costs, which takes a while for many pages.
func (r *region) size() (int64, error) { return r.mem.Resident() }

// step is the most that touched returns. Asking for the end of the data would
// make the kernel look at all of it, up to the region's end, each time.
const step = 128 << 10

// touched returns the first piece of [off, end) that may hold anything but
// zeros, in the half that is asked for. What follows it has to be asked for
// again.
func (r *region) touched(of half, off, end int64) (lo, hi int64) {
	base := int64(of) * r.capacity()
	lo, err := r.mem.NextData(base+off, base+end)
	if err != nil {
		lo = base + off
	}
	lo -= base
	return lo, min(end, lo/step*step+step)
}

// close gives the memory back, whose tracking ends with the user's mapping.
func (r *region) close() error { return r.mem.Close() }
