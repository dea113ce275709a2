// SPDX-License-Identifier: Apache-2.0

package pull

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/memspan/memspan/internal/memlimit"
	"github.com/memspan/memspan/surface"
	"github.com/memspan/memspan/wire"
	"github.com/memspan/memspan/wire/control"
)

const (
	// digestBatch is how many digests are asked for at a time.
	digestBatch = 8192
	// maxChunk is more than any chunk's number.
	maxChunk = surface.MaxSize / surface.MinChunk
)

// follow learns what the source has, until it has all.
func (c *source) follow(ctx context.Context, state control.SurfaceState) {
	sequence := state.Sequence
	var from int64 // what state tells is of chunks from this one on
	for {
		complete, err := c.learn(ctx, state, from)
		if err != nil {
			c.drop(err)
			return
		}
		if complete {
			return
		}
		c.s.mu.Lock()
		wait := control.SurfaceWait{Handle: c.handle, Sequence: sequence, From: c.have.missing()}
		c.s.mu.Unlock()
		if state.More { // answered at once
			last := state.Have[len(state.Have)-1]
			wait.Sequence, wait.From = state.Sequence-1, last.First+last.Count
		}
		more := state.More
		from = wait.From
		state = control.SurfaceState{}
		if err := c.control(ctx, control.OpSurfaceWait, wait, &state); err != nil {
			c.drop(err)
			return
		}
		if !more { // what changed since the first part of a long answer is told by another
			sequence = state.Sequence
		}
	}
}

// learn takes in what the source has said of the chunks from one on, and asks for the
// digests that go with it and were not told. It reports whether there is nothing more to be learnt.
func (c *source) learn(ctx context.Context, state control.SurfaceState, from int64) (complete bool, err error) {
	s := c.s
	if err := c.checkState(&state, from); err != nil {
		return false, err
	}
	s.mu.Lock()
	for _, run := range state.Have {
		// What is there since the rest was told is told again: nothing else bounds runs.
		run.Count = min(run.Count, state.Count-run.First)
		c.have.add(run)
	}
	usable := s.usableLocked()
	s.mu.Unlock()
	if usable > 0 {
		c.poke()
	}
	if c.vouches || s.ticket.Root != nil {
		if err := c.learnDigests(ctx, &state, from); err != nil {
			return false, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	complete = state.Sealed && !state.More && (state.Count == 0 || c.have.holds(0, state.Count))
	if complete && (c.vouches || s.ticket.Root != nil) {
		complete = s.rooted
	}
	return complete, nil
}

// checkState refuses what cannot be, of a state that tells of the chunks from one on.
func (c *source) checkState(state *control.SurfaceState, from int64) error {
	h := c.header // follow's own from here on
	h.Size = state.Size
	if state.Size < 0 || state.Size > surface.MaxSize || h.Count() != state.Count {
		return broken("a surface of %d bytes in %d chunks", state.Size, state.Count)
	}
	if state.Size < c.header.Size || state.Sealed && len(state.Root) != surface.DigestSize {
		return broken("a surface of %d bytes that had %d, sealed %v", state.Size, c.header.Size, state.Sealed)
	}
	if state.More && len(state.Have) == 0 {
		return broken("more runs follow none")
	}
	var next int64
	for _, run := range state.Have {
		if run.First < next || run.Count <= 0 || run.First > maxChunk || run.Count > maxChunk {
			return broken("run of %d chunks from %d", run.Count, run.First)
		}
		next = run.First + run.Count
	}
	if state.More && next <= from {
		return broken("runs that more follow end at chunk %d, and were to begin at %d", next, from)
	}
	c.header.Size = state.Size
	if err := c.s.bounded(state.Size); err != nil {
		return err
	}
	return roomFor(state.Count)
}

// fewDigests is how many bytes of digests any puller has room for: those of 2 TiB in
// chunks of 1 MiB.
const fewDigests = 64 << 20

// fallbackMemory is taken for the machine's memory where that is not known.
const fallbackMemory = 4 << 30

// roomFor refuses a manifest that would take much of this machine's memory: a source
// can go on telling digests for ever, and only with the last of them it shows what they are.
func roomFor(count int64) error {
	need := count * surface.DigestSize // count is at most 2^50
	if need <= fewDigests {
		return nil
	}
	if room := max(cmp.Or(memlimit.System().Usable(), fallbackMemory)/4, fewDigests); need > room {
		return &wire.Error{Code: wire.Limit, Message: fmt.Sprintf("its %d chunks have %d bytes of digests, and a quarter of this machine's memory is %d: expose it in larger chunks", count, need, room)}
	}
	return nil
}

// learnDigests learns the digests that are to be had and not known yet: those that came
// with the state, and others by asking.
func (c *source) learnDigests(ctx context.Context, state *control.SurfaceState, from int64) error {
	s := c.s
	want := state.Count
	if !state.Sealed { // the last chunk may grow
		c.s.mu.Lock()
		want = min(state.Size/c.header.Chunk, c.have.missing())
		c.s.mu.Unlock()
	}
	// Digests that nothing vouches for yet are nobody else's.
	provisional := s.ticket.Root != nil
	for {
		s.mu.Lock()
		known, rooted := s.header.Digests, s.rooted
		s.mu.Unlock()
		if provisional {
			known = c.header.Digests
		}
		first := int64(len(known))
		if rooted || first >= want {
			break
		}
		add, err := c.digests(ctx, state, from, first, want)
		if err != nil {
			return err
		}
		if provisional {
			c.header.Digests = append(c.header.Digests, add...)
			continue
		}
		s.mu.Lock()
		if int64(len(s.header.Digests)) == first { // else another source was faster
			s.header.Digests = append(s.header.Digests, add...)
			s.header.Size = max(s.header.Size, state.Size)
			s.notifyLocked()
			s.pokeLocked()
		}
		s.mu.Unlock()
	}
	if state.Sealed {
		return c.learnRoot(surface.Digest(state.Root))
	}
	return nil
}

// digests returns those of some chunks, at least one, from first on.
func (c *source) digests(ctx context.Context, state *control.SurfaceState, from, first, want int64) ([]surface.Digest, error) {
	n := min(want-first, digestBatch)
	told := state.Digests
	if first != from || len(told) == 0 {
		var answer control.Digests
		if err := c.control(ctx, control.OpSurfaceDigests, control.SurfaceDigests{Handle: c.handle, First: first, Count: n}, &answer); err != nil {
			return nil, err
		}
		if int64(len(answer.Digests)) != n*surface.DigestSize {
			return nil, broken("%d bytes of digests for %d chunks", len(answer.Digests), n)
		}
		told = answer.Digests
	} else if len(told)%surface.DigestSize != 0 {
		return nil, broken("%d bytes of digests", len(told))
	}
	list := make([]surface.Digest, min(n, int64(len(told)/surface.DigestSize)))
	for i := range list {
		copy(list[i][:], told[i*surface.DigestSize:])
	}
	return list, nil
}

// learnRoot verifies a manifest that is complete.
func (c *source) learnRoot(told surface.Digest) error {
	s := c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rooted {
		if s.ticket.Root == nil && s.header.Size != c.header.Size {
			return lying("surface %v has %d bytes, and not %d", s.header.ID, s.header.Size, c.header.Size)
		}
		return nil
	}
	m := s.header
	if s.ticket.Root != nil {
		m = c.header
	}
	m.Size = c.header.Size
	if int64(len(m.Digests)) != m.Count() {
		return lying("surface %v has %d digests for %d chunks", m.ID, len(m.Digests), m.Count())
	}
	root := m.Root()
	switch {
	case s.ticket.Root != nil && root != *s.ticket.Root:
		return lying("the manifest of surface %v is not the one that the ticket was made for", m.ID)
	case root != told:
		return lying("the manifest of surface %v has another root than its source says", m.ID)
	}
	s.header, s.sealed, s.rooted = m, true, true
	for _, g := range append([]*gathering(nil), s.gatherings...) {
		g.endsLocked()
	}
	s.notifyLocked()
	s.pokeLocked()
	return nil
}

// Ended waits until a server at one of the ticket's addresses says that the surface has ended
// there, and returns what it said, as wire.Revoked: for who serves on what he has gathered.
// It fails when ctx ends, and when no source is left. Of a surface that is mapped it is not
// to be had.
func (s *Surface) Ended(ctx context.Context) error {
	return s.failed("follow", window{open: true}, s.ended(ctx))
}

func (s *Surface) ended(ctx context.Context) error {
	if s.direct != nil {
		return errors.ErrUnsupported
	}
	for {
		var c *source
		err := s.until(ctx, func() (bool, error) {
			for _, c = range s.sources {
				if c.vouches && c.err == nil {
					return true, nil
				}
			}
			return false, s.err
		})
		if err != nil {
			return err
		}
		wait := control.SurfaceWait{Handle: c.handle, From: maxChunk} // and no news of chunks
		for err == nil {
			var state control.SurfaceState
			err = c.control(ctx, control.OpSurfaceWait, wait, &state)
			wait.Sequence = state.Sequence
		}
		s.mu.Lock()
		lost := c.err != nil
		s.mu.Unlock()
		if !lost || ctx.Err() != nil {
			return err
		}
	}
}
