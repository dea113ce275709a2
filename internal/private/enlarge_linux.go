// SPDX-License-Identifier: Apache-2.0

package private

import "golang.org/x/sys/unix"

// enlarge asks for large pages, which are touched first in a tenth of the time.
func enlarge(mem []byte) {
	_ = unix.Madvise(mem, unix.MADV_HUGEPAGE) // without, there are small ones
}
