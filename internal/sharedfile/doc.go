// SPDX-License-Identifier: Apache-2.0

// Package sharedfile is the door to files that two sides map: made with their
// room reserved, opened beneath a directory and nowhere else, mapped shared,
// locked for as long as their maker lives.
//
// A file that another side may cut short raises a fault where it is read:
// touch such a mapping within [memfd.Guard] only. Windows refuses to cut short a
// file that is mapped there, but a file server may do it, or fail.
//
// On systems other than Linux and Windows everything here fails with
// [errors.ErrUnsupported].
//
// [memfd.Guard]: https://pkg.go.dev/github.com/memspan/memspan/internal/memfd#Guard
package sharedfile

import "errors"

// Errors beside those of package fs.
var (
	// ErrEscape: a path leads out of its directory, or over a link.
	ErrEscape = errors.New("sharedfile: the path leaves its directory or follows a link")
	// ErrNotRegular: there is something else than a plain file with one name.
	ErrNotRegular = errors.New("sharedfile: not a plain file with one name")
	// ErrNoSpace: the file system has no room left for that many bytes.
	ErrNoSpace = errors.New("sharedfile: no space left")
)
