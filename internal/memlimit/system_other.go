// SPDX-License-Identifier: Apache-2.0

//go:build !windows

package memlimit

import "os"

// System returns what this system has and allows. It never fails: what cannot be
// told is unknown, or no limit.
func System() Memory { return Read(os.DirFS("/")) }
