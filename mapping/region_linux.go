// SPDX-License-Identifier: Apache-2.0

package mapping

import (
	"errors"
	"time"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/internal/userfault"
)

// A region is a shadow's memory: one memfd, whose first half holds the bytes
// and whose second half the image. Pages cost memory once they are touched, so
// a shadow without an image has none.
type region struct {
	mem     *memfd.Region
	user    []byte // the first half as the user sees it
	alias   []byte // the first half as this package sees it
	image   []byte
	tracker *userfault.Tracker // of user; nil if not tracked

	// While idle in a pool:
	resident  int64
	idleSince time.Time
}

func newRegion(capacity int64, tracked bool) (_ *region, err error) {
	r := &region{}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	if r.mem, err = memfd.Create("memspan-shadow", 2*capacity); err != nil {
		return nil, err
	}
	r.alias, r.image = r.mem.Bytes()[:capacity:capacity], r.mem.Bytes()[capacity:]
	if r.user, err = r.mem.Alias(capacity); err != nil {
		return nil, err
	}
	if tracked {
		if r.tracker, err = userfault.Track(r.user); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func (r *region) capacity() int64 { return int64(len(r.alias)) }

func (r *region) tracked() bool { return r.tracker != nil }

// size returns what the region costs the system.
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

func (r *region) close() error {
	var err error
	if r.tracker != nil {
		err = r.tracker.Close()
	}
	if r.mem != nil {
		err = errors.Join(err, r.mem.Close())
	}
	return err
}
