// SPDX-License-Identifier: Apache-2.0

package surface

import (
	"os"
	"syscall"
	"time"
)

// changeTime returns when a file's contents or attributes were last changed, which a
// program cannot set as it can the time of modification.
func changeTime(info os.FileInfo) time.Time {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return time.Unix(st.Ctim.Unix())
	}
	return info.ModTime()
}
