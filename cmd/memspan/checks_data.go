// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/memspan/memspan/internal/durable"
)

// smallDisk is less room than a data directory should have, in bytes.
const smallDisk = 1 << 30

// checkData looks at where a data directory is, or would be made: what kind of
// file system that is, what room it has, and whether bytes can be made durable
// there.
func checkData(dir string) check {
	c := check{Name: "data directory", State: stateEssential, Meaning: "no span can be kept in " + dir}
	place, err := existing(dir)
	if err != nil {
		c.Found, c.Reason = "no directory", err.Error()
		c.Fix = "name another: memspan doctor --data DIR"
		return c
	}
	system, err := durable.FileSystemOf(place)
	if err != nil {
		c.Found, c.Reason = "unknown file system", err.Error()
		return c
	}
	c.Found = fmt.Sprintf("%s, %s", system.Name, roomIn(system))
	took, err := trySync(place)
	switch {
	case system.ReadOnly || errors.Is(err, fs.ErrPermission):
		c.Reason = errText(err, "the file system is read-only")
		c.Fix = "choose a directory that you may write"
		return c
	case err != nil:
		c.Reason = err.Error()
		c.Fix = "see what the kernel says of the disk: dmesg"
		return c
	}
	c.State, c.Meaning = stateOK, fmt.Sprintf("spans kept here outlive the daemon and the machine's power; a sync takes %v", took.Round(10*time.Microsecond))
	switch {
	case system.Volatile:
		c.State, c.Meaning = stateLimited, "spans kept here outlive the daemon, but not the machine's power"
		c.Reason, c.Fix = system.Name+" is in RAM", "choose a directory on a disk"
	case system.Remote:
		c.State, c.Reason = stateLimited, "another machine keeps it: what a sync means there is its word, and it can go away"
		c.Fix = "choose a directory on a disk of this machine"
	case system.Free < smallDisk:
		c.State, c.Reason, c.Fix = stateLimited, "there is little room", "free some, or choose another directory"
	}
	return c
}

func errText(err error, otherwise string) string {
	if err == nil {
		return otherwise
	}
	return err.Error()
}

// roomIn says how much room a file system has.
func roomIn(system durable.FileSystem) string {
	if system.Free == math.MaxInt64 {
		return "without a bound that it tells"
	}
	return humanSize(system.Free) + " free"
}

// existing returns dir, or if there is none the nearest directory above it,
// where it would be made.
func existing(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	for {
		info, err := os.Stat(dir)
		switch {
		case err == nil && info.IsDir():
			return dir, nil
		case err == nil:
			return "", fmt.Errorf("%s is a file", dir)
		case !errors.Is(err, fs.ErrNotExist) || filepath.Dir(dir) == dir:
			return "", err
		}
		dir = filepath.Dir(dir)
	}
}

// trySync makes a file durable and removes it. It returns how long the kernel
// took over that.
func trySync(dir string) (took time.Duration, err error) {
	f, err := os.CreateTemp(dir, ".memspan-doctor-*")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	if _, err := f.Write(make([]byte, 4096)); err != nil {
		return 0, err
	}
	start := time.Now()
	if err := f.Sync(); err != nil {
		return 0, err
	}
	return time.Since(start), durable.SyncDir(dir)
}
