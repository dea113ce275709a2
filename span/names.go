// SPDX-License-Identifier: Apache-2.0

package span

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"unicode"
	"unicode/utf8"
)

// maxName is the most bytes a span's name may have.
const maxName = 255

func checkName(name string) error {
	if len(name) > maxName {
		return fmt.Errorf("%w: name of %d bytes, the limit is %d", ErrInvalid, len(name), maxName)
	}
	if !utf8.ValidString(name) || slices.ContainsFunc([]rune(name), func(r rune) bool { return !unicode.IsPrint(r) }) {
		return fmt.Errorf("%w: name %q has unprintable characters", ErrInvalid, name)
	}
	return nil
}

// reserve makes room for a span to be built, and takes its name if it is to be
// published.
func (st *Store) reserve(s *Span) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if len(st.byID)+st.building >= st.maxSpans {
		return fmt.Errorf("%w: %d spans", ErrLimit, st.maxSpans)
	}
	if s.published {
		if _, taken := st.byName[s.Name]; taken {
			return ErrExists
		}
		st.byName[s.Name] = nil
	}
	st.building++
	return nil
}

// built makes s found from now on, or gives its name free.
func (st *Store) built(s *Span, whole bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.building--
	if whole {
		st.byID[s.ID] = s
	}
	s.mu.Lock()
	published := s.published
	s.mu.Unlock()
	switch {
	case published && whole:
		st.byName[s.Name] = s
	case published:
		delete(st.byName, s.Name)
	}
}

func (st *Store) remove(s *Span) {
	st.mu.Lock()
	defer st.mu.Unlock()
	delete(st.byID, s.ID)
	if st.byName[s.Name] == s {
		delete(st.byName, s.Name)
	}
}

// Open finds a published span by its name, or any by its id in hexadecimal. The
// caller is a user of it from then on: see Forsake. A name that is given to
// another span meanwhile finds one of the two.
func (st *Store) Open(name string) (*Span, error) {
	st.mu.RLock()
	defer st.mu.RUnlock()
	s := st.byName[name]
	var id ID
	if raw, err := hex.DecodeString(name); s == nil && err == nil && len(raw) == len(id) {
		copy(id[:], raw)
		s = st.byID[id]
	}
	// Nobody can take the name from a span while mu is held: what was found has
	// not gone for want of users.
	if s == nil {
		return nil, &Error{Op: "open", Span: name, Err: ErrNotFound}
	}
	err := s.Retain()
	if errors.Is(err, ErrFreed) {
		return nil, &Error{Op: "open", Span: name, Err: ErrNotFound}
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Publish makes a span found by its name, in one step: whoever opens the name
// gets the span that had it, or this one, and never neither. Without replace
// Publish fails with ErrExists if another span has the name; with it that span
// goes with its last user. To publish a span that is published does nothing.
// Where one of them is durable the next daemon finds the name in the same way.
func (st *Store) Publish(ctx context.Context, s *Span, replace bool) error {
	if s.Name == "" {
		return s.fail("publish", 0, 0, fmt.Errorf("%w: the span was made without a name", ErrInvalid))
	}
	old, err := st.publish(ctx, s, replace)
	if err != nil {
		return s.fail("publish", 0, 0, err)
	}
	if old == nil || old == s {
		return nil
	}
	old.mu.Lock()
	if old.users > 0 || old.published || old.freed { // published: again, already
		old.mu.Unlock()
		return nil
	}
	return old.freeLocked()
}

// publish is Publish but for freeing the span that had the name, which it
// returns.
func (st *Store) publish(ctx context.Context, s *Span, replace bool) (old *Span, err error) {
	st.naming.Lock() // Allocs of durable spans hold it, too: names on disk change one at a time
	defer st.naming.Unlock()
	st.mu.RLock()
	old, taken := st.byName[s.Name]
	st.mu.RUnlock()
	kept := s.durable() || old != nil && old.durable()
	if old == s || taken && (!replace || old == nil) || !kept {
		return st.giveName(s, replace)
	}
	// While a block of each is locked Free waits: what was freed must not be
	// noted anew.
	due, unlock, err := st.lockToPublish(ctx, s, old)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := st.noteNames(s, true, old, due); err != nil {
		return nil, err
	}
	was, err := st.giveName(s, replace)
	if err != nil { // s was freed meanwhile, or a span that is not durable has the name
		return nil, errors.Join(err, st.noteNames(s, false, old, nil))
	}
	return was, nil
}

// lockToPublish locks the blocks of a span that is about to be found by its name
// that owe Disk something, and one of the span that has the name, if that is
// durable. From here on commits of s are marked. Due are the blocks of s that are
// not.
func (st *Store) lockToPublish(ctx context.Context, s, old *Span) (due []int, unlock func(), err error) {
	type locked struct {
		span   *Span
		blocks []int
	}
	s.mu.Lock()
	s.announced = true
	due = s.unmarked()
	s.mu.Unlock()
	order := []locked{{s, due}}
	if len(due) == 0 {
		order[0].blocks = []int{0}
	}
	if old != nil && old.durable() {
		if err := old.rouseForLock(); err != nil {
			return nil, nil, err
		}
		order = append(order, locked{old, []int{0}})
	}
	slices.SortFunc(order, func(a, b locked) int { return bytes.Compare(a.span.ID[:], b.span.ID[:]) })
	var held []func()
	unlock = func() {
		for _, f := range held {
			f()
		}
	}
	for _, l := range order {
		release, err := l.span.lockBlocks(ctx, l.blocks)
		if err != nil {
			unlock()
			if l.span == old && errors.Is(err, ErrFreed) {
				return st.lockToPublish(ctx, s, nil) // it is going, and its name with it
			}
			return nil, nil, err
		}
		held = append(held, release)
	}
	return due, unlock, nil
}

// rouseForLock is rouse for callers that do not hold mu.
func (s *Span) rouseForLock() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rouse()
}

// noteNames notes on Disk that a span is found by its name and the one that had
// it is not, or the other way round, and that blocks of the span, which are
// locked, are newer than on Disk.
func (st *Store) noteNames(s *Span, published bool, old *Span, due []int) error {
	tx := st.files.Begin()
	marks := make(map[int]uint64)
	if s.disk != nil {
		s.mu.Lock()
		tx.Set(s.diskRecord(published))
		for _, b := range due {
			if s.dir.Block(b).Debt { // else it was saved before it was locked
				marks[b] = s.dir.Version(b) + 1 + markAhead
				tx.Mark(s.disk, b, marks[b])
			}
		}
		s.mu.Unlock()
	}
	if old != nil && old.durable() {
		old.mu.Lock()
		tx.Set(old.diskRecord(!published))
		old.mu.Unlock()
	}
	if err := tx.Commit(context.Background()); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for b, version := range marks {
		s.noteMark(b, version)
	}
	return nil
}

// giveName is Publish but for freeing the span that had the name.
func (st *Store) giveName(s *Span, replace bool) (old *Span, err error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	old, taken := st.byName[s.Name]
	if taken && old != s && (!replace || old == nil) { // nil: one of that name is being made
		return nil, ErrExists
	}
	s.mu.Lock()
	freed := s.freed
	s.published, s.borrowed = !freed, false
	s.mu.Unlock()
	if freed {
		return nil, ErrFreed
	}
	st.byName[s.Name] = s
	if old != nil && old != s {
		old.mu.Lock()
		old.published = false
		old.mu.Unlock()
	}
	return old, nil
}
