// SPDX-License-Identifier: Apache-2.0

package surface

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"sync"

	"github.com/memspan/memspan/internal/sharedfile"
)

// A Machine names a run of an operating system, by what Linux calls its boot id, or
// by the beginning of a digest of what is like it elsewhere.
type Machine [16]byte

// ThisMachine returns the machine that this process runs on. It fails where
// there is no such id. It asks the system once: a process does not outlive it.
func ThisMachine() (Machine, error) { return thisMachine() }

var thisMachine = sync.OnceValues(func() (Machine, error) {
	id, err := sharedfile.BootID()
	if err != nil {
		return Machine{}, fmt.Errorf("which machine this is: %w", err)
	}
	var m Machine
	if b, err := hex.DecodeString(strings.ReplaceAll(id, "-", "")); err == nil && len(b) == len(m) {
		return Machine(b), nil
	}
	digest := sha256.Sum256([]byte(id))
	copy(m[:], digest[:])
	return m, nil
})
