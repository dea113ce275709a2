// SPDX-License-Identifier: Apache-2.0

package surface

import (
	"errors"
	"fmt"
	"sync"
	"syscall"

	"github.com/memspan/memspan/internal/memlimit"
)

// A RoomError says which limit keeps a surface from being made or from growing. It
// is ErrRoom for errors.Is.
type RoomError struct {
	Limit string // in words
	Need  int64  // bytes
	Have  int64  // bytes that the limit leaves
}

func (e *RoomError) Error() string {
	return fmt.Sprintf("no room: %s leaves %d bytes, and %d are needed", e.Limit, max(e.Have, 0), e.Need)
}

// Unwrap returns ErrRoom.
func (e *RoomError) Unwrap() error { return ErrRoom }

// The limits, as a RoomError names them.
const (
	limitBudget  = "the budget for surfaces"
	limitMachine = "the machine's memory"
	limitGroup   = "the control group's memory"
	limitOne     = "the address space for one surface"
	limitFile    = "RLIMIT_FSIZE (ulimit -f)"
	limitSpace   = "the process's address space (RLIMIT_AS, ulimit -v)"
	limitStream  = "what there was when the stream began" // its address space is for that
	limitSystem  = "the system"                           // when it comes to it
)

// recheck is how many bytes may be taken before the system is asked again.
const recheck = 64 << 20

// room accounts for the memory of all surfaces of a store.
type room struct {
	budget int64 // 0: none
	memory func() memlimit.Memory

	mu      sync.Mutex
	used    int64 // taken, and not given back
	pending int64 // of them: not yet backed by pages, so that the system does not know
	asked   int64 // taken since the system was asked
	space   int64 // address space that is mapped
}

// maxSpace is the most address space that all surfaces of a store map, in bytes: a
// quarter of what a process has. maxMapped is the most that one stores, which is mapped
// twice while it is written, and maxStream if it is not announced how much that will be.
const (
	maxSpace  = 1 << 45
	maxMapped = maxSpace / 2
	maxStream = 64 << 30
)

// reserve takes n bytes of address space, or gives back -n.
func (r *room) reserve(n int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if left := maxSpace - r.space; n > left {
		return &RoomError{limitSpace, n, left}
	}
	r.space += n
	return nil
}

// take takes n bytes, or says which limit forbids it.
func (r *room) take(n int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.budget > 0 && n > r.budget-r.used {
		return &RoomError{limitBudget, n, r.budget - r.used}
	}
	if r.asked += n; r.asked > recheck {
		m := r.memory()
		if left := m.Available - r.pending; m.Available > 0 && n > left {
			return &RoomError{limitMachine, n, left}
		}
		if left := m.Group - r.used; m.Group > 0 && n > left {
			return &RoomError{limitGroup, n, left}
		}
		r.asked = 0
	}
	r.used += n
	r.pending += n
	return nil
}

// backed says that n bytes that were taken have their pages now.
func (r *room) backed(n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pending -= n
}

// give gives n bytes back, of which pending never got their pages.
func (r *room) give(n, pending int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.used -= n
	r.pending -= pending
}

// left returns how much could be taken at most.
func (r *room) left() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	left := int64(1 << 46) // more than any machine has
	if r.budget > 0 {
		left = min(left, r.budget-r.used)
	}
	m := r.memory()
	if m.Available > 0 {
		left = min(left, m.Available-r.pending)
	}
	if m.Group > 0 {
		left = min(left, m.Group-r.used)
	}
	return max(left, 0)
}

func outOfMemory(err error) bool {
	return errors.Is(err, syscall.ENOMEM) || errors.Is(err, syscall.ENOSPC)
}

func outOfFiles(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}
