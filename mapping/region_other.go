// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package mapping

import (
	"fmt"

	"github.com/memspan/memspan/internal/userfault"
)

// A source is what the regions of a pool are made of: nothing but Go's memory.
type source struct{}

func newSource() source { return source{} }

// track fails: pages are not tracked on this system.
func (s *source) track() error { return userfault.Probe() }

func (s *source) close() error { return nil }

// A region is a shadow's memory: its bytes and the image.
type region struct {
	user    []byte // the bytes as the user sees them
	alias   []byte // the same
	image   []byte
	tracker *userfault.Tracker // always nil here
	stay
}

func (s *source) region(capacity int64, _ bool) (*region, error) {
	if int64(int(2*capacity)) != 2*capacity {
		return nil, fmt.Errorf("mapping: %d bytes are more than this machine can address", capacity)
	}
	mem := alignedBytes(int(2 * capacity))
	return &region{user: mem[:capacity:capacity], alias: mem[:capacity:capacity], image: mem[capacity:]}, nil
}

func (r *region) capacity() int64 { return int64(len(r.alias)) }

func (r *region) tracked() bool { return false }

// most returns what the region costs the system, in bytes.
func (r *region) most() int64 { return 2 * r.capacity() }

func (r *region) size() (int64, error) { return r.most(), nil }

// touched returns the first piece of [off, end) that may hold anything but
// zeros: all of it.
func (r *region) touched(_ half, off, end int64) (lo, hi int64) { return off, end }

func (r *region) close() error { return nil }
