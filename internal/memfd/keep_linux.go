// SPDX-License-Identifier: Apache-2.0

package memfd

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Populate maps all pages of mem, a mapping, now, for reading: no access waits for
// one later. (Linux 5.14)
func Populate(mem []byte) error {
	if len(mem) == 0 {
		return nil
	}
	return os.NewSyscallError("madvise(MADV_POPULATE_READ)", unix.Madvise(mem, unix.MADV_POPULATE_READ))
}

// Lock keeps all pages of mem, a mapping, in RAM until it is unmapped. The error
// names the limit if one is in the way.
func Lock(mem []byte) error {
	if len(mem) == 0 {
		return nil
	}
	err := unix.Mlock(mem)
	if errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.EPERM) {
		var limit unix.Rlimit
		if unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit) == nil && limit.Cur < uint64(len(mem)) {
			return fmt.Errorf("lock %d bytes in RAM: RLIMIT_MEMLOCK allows %d (ulimit -l): %w", len(mem), limit.Cur, err)
		}
	}
	return os.NewSyscallError("mlock", err)
}
