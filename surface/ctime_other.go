// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package surface

import (
	"os"
	"time"
)

// changeTime is the time of modification where there is none of change.
func changeTime(info os.FileInfo) time.Time { return info.ModTime() }
