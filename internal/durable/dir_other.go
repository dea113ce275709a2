// SPDX-License-Identifier: Apache-2.0

//go:build !windows

package durable

import "os"

// SyncDir makes durable which files the directory at path has.
func SyncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
