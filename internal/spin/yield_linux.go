// SPDX-License-Identifier: Apache-2.0

package spin

import "golang.org/x/sys/unix"

// yield has the system run another thread, if one waits for this processor. Go's
// scheduler need not know: that would cost more, and it stays away not longer
// than if the thread's time was up.
func yield() { unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) }
