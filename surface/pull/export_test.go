// SPDX-License-Identifier: Apache-2.0

package pull

import "os"

// Reboot makes the state at path one that was written before the machine
// started.
func Reboot(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	p, err := parseState(text)
	if err != nil {
		return err
	}
	p.boot[3] ^= 1
	return p.save(path)
}
