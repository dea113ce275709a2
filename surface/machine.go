// SPDX-License-Identifier: Apache-2.0

package surface

import (
	"encoding/hex"
	"fmt"
	"os"
	"strings"
)

// A Machine names a run of an operating system, by what Linux calls its boot id.
type Machine [16]byte

// ThisMachine returns the machine that this process runs on. It fails where
// there is no /proc.
func ThisMachine() (Machine, error) {
	const path = "/proc/sys/kernel/random/boot_id"
	text, err := os.ReadFile(path)
	if err != nil {
		return Machine{}, fmt.Errorf("which machine this is: %w", err)
	}
	digits := strings.ReplaceAll(strings.TrimSpace(string(text)), "-", "")
	var m Machine
	if b, err := hex.DecodeString(digits); err == nil && len(b) == len(m) {
		return Machine(b), nil
	}
	return Machine{}, fmt.Errorf("which machine this is: %s has no id", path)
}
