// SPDX-License-Identifier: Apache-2.0

package durable

// A FileSystem is what is known of the one that a file or directory is on.
type FileSystem struct {
	Name     string // as in "ext4"; "unknown" with a number if it is none of the common ones
	Free     int64  // bytes that this user may still take; math.MaxInt64: it is not told how many
	Volatile bool   // it is in RAM: nothing on it outlives the machine's power
	Remote   bool   // another machine keeps it
	ReadOnly bool
}
