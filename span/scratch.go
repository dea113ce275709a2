// SPDX-License-Identifier: Apache-2.0

package span

import (
	"context"
	"sync"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/tier"
)

// scratchWarm free slots keep their pages: taking pages from the system costs
// more than receiving into them.
const scratchWarm = 16

// A scratch is a bounded pool of staging blocks in one region. The slot given
// back last is handed out first: its bytes are still in the processor's cache.
type scratch struct {
	region *memfd.Region
	forget func(*memfd.Region)
	slots  chan struct{} // one token per slot that is free

	mu    sync.Mutex
	warm  []int64 // offsets of free slots that have pages
	empty []int64
}

func newScratch(slots int, forget func(*memfd.Region)) (*scratch, error) {
	region, err := memfd.Create("staging", int64(slots)*tier.BlockSize)
	if err != nil {
		return nil, err
	}
	s := &scratch{region: region, forget: forget, slots: make(chan struct{}, slots)}
	for i := range slots {
		s.empty = append(s.empty, int64(slots-1-i)*tier.BlockSize)
		s.slots <- struct{}{}
	}
	return s, nil
}

func (s *scratch) get(ctx context.Context) (tier.Memory, error) {
	select {
	case <-s.slots:
	case <-ctx.Done():
		return tier.Memory{}, context.Cause(ctx)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	from := &s.warm
	if len(*from) == 0 {
		from = &s.empty
	}
	last := len(*from) - 1
	off := (*from)[last]
	*from = (*from)[:last]
	return tier.Memory{Region: s.region, Off: off, Len: tier.BlockSize}, nil
}

func (s *scratch) put(m tier.Memory) {
	s.mu.Lock()
	if len(s.warm) < scratchWarm || s.region.Punch(m.Off, tier.BlockSize) != nil {
		s.warm = append(s.warm, m.Off)
	} else {
		s.empty = append(s.empty, m.Off)
	}
	s.mu.Unlock()
	s.slots <- struct{}{}
}

func (s *scratch) close() error {
	if s.forget != nil {
		s.forget(s.region)
	}
	return s.region.Close()
}
