// SPDX-License-Identifier: Apache-2.0

package confine

import (
	"fmt"
	"strings"
)

// mark is the environment variable that tells a process that it has been
// confined, and how.
const mark = "MEMSPAN_CONFINED"

// State says which confinements a process runs under.
type State struct {
	Landlock int  // version of the kernel's Landlock interface; 0: not confined by it
	Seccomp  bool // a system call filter is in place
}

// Full reports whether nothing is missing.
func (s State) Full() bool { return s.Landlock > 0 && s.Seccomp }

// String returns a form like "landlock 7, seccomp".
func (s State) String() string {
	var parts []string
	if s.Landlock > 0 {
		parts = append(parts, fmt.Sprintf("landlock %d", s.Landlock))
	}
	if s.Seccomp {
		parts = append(parts, "seccomp")
	}
	return strings.Join(append(parts, "no_new_privs"), ", ")
}

func (s State) marshal() string { return fmt.Sprintf("%d %t", s.Landlock, s.Seccomp) }

func parseState(text string) (s State, err error) {
	_, err = fmt.Sscanf(text, "%d %t", &s.Landlock, &s.Seccomp)
	return s, err
}
