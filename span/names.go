// SPDX-License-Identifier: Apache-2.0

package span

import (
	"context"
	"encoding/hex"
	"fmt"
	"maps"
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
	if s == nil || s.Retain() != nil {
		return nil, &Error{Op: "open", Span: name, Err: ErrNotFound}
	}
	return s, nil
}

// Publish makes a span found by its name, in one step: whoever opens the name
// gets the span that had it, or this one, and never neither. Without replace
// Publish fails with ErrExists if another span has the name; with it that span
// goes with its last user. To publish a span that is published does nothing.
func (st *Store) Publish(s *Span, replace bool) error {
	if s.Name == "" {
		return s.fail("publish", 0, 0, fmt.Errorf("%w: the span was made without a name", ErrInvalid))
	}
	st.naming.Lock()
	defer st.naming.Unlock()
	if err := st.publishOnDisk(s, replace); err != nil {
		return s.fail("publish", 0, 0, err)
	}
	old, err := st.giveName(s, replace)
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

// publishOnDisk makes a durable span found by its name by the next daemon, and
// the span that has the name not any more, in one step. The caller holds
// naming.
func (st *Store) publishOnDisk(s *Span, replace bool) error {
	st.mu.RLock()
	old, taken := st.byName[s.Name]
	st.mu.RUnlock()
	if old == s || taken && (!replace || old == nil) {
		return nil // giveName knows what to say
	}
	if s.disk == nil && (old == nil || !old.durable()) {
		return nil
	}
	tx := st.files.Begin()
	marks := make(map[int]uint64)
	if s.disk != nil {
		s.mu.Lock()
		s.announced = true // commits from here on are marked
		due := slices.Sorted(maps.Keys(s.marksDue()))
		s.mu.Unlock()
		unlock, err := s.lockBlocks(context.Background(), due) // else one could be saved before its mark
		if err != nil {
			return err
		}
		defer unlock()
		s.mu.Lock()
		marks = s.marksDue()
		tx.Set(s.diskRecord(true))
		s.mu.Unlock()
		for b, version := range marks {
			tx.Mark(s.disk, b, version)
		}
	}
	if old != nil && old.durable() {
		old.mu.Lock()
		tx.Set(old.diskRecord(false))
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
	s.published = !freed
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
