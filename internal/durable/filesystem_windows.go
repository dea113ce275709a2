// SPDX-License-Identifier: Apache-2.0

package durable

import (
	"math"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/windows"
)

// FileSystemOf describes the file system of an existing directory. Its name is
// what Windows calls it, in lower case, as in "ntfs"; with "remote " before it if
// another machine keeps it.
func FileSystemOf(path string) (FileSystem, error) {
	failed := func(call string, err error) (FileSystem, error) {
		return FileSystem{}, &os.PathError{Op: call, Path: path, Err: err}
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return FileSystem{}, err
	}
	dir, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return failed("file system of", err)
	}
	var free uint64
	if err := windows.GetDiskFreeSpaceEx(dir, &free, nil, nil); err != nil {
		return failed("GetDiskFreeSpaceEx", err)
	}
	volume := make([]uint16, len(path)+2) // the volume's path is a part of it, and a separator
	if err := windows.GetVolumePathName(dir, &volume[0], uint32(len(volume))); err != nil {
		return failed("GetVolumePathName", err)
	}
	var name [windows.MAX_PATH + 1]uint16
	var flags uint32
	if err := windows.GetVolumeInformation(&volume[0], nil, 0, nil, nil, &flags, &name[0], uint32(len(name))); err != nil {
		return failed("GetVolumeInformation", err)
	}
	kind := windows.GetDriveType(&volume[0])
	fs := FileSystem{
		Name:     strings.ToLower(windows.UTF16ToString(name[:])),
		Free:     int64(min(free, math.MaxInt64)),
		Volatile: kind == windows.DRIVE_RAMDISK,
		Remote:   kind == windows.DRIVE_REMOTE,
		ReadOnly: flags&windows.FILE_READ_ONLY_VOLUME != 0,
	}
	if fs.Remote {
		fs.Name = "remote " + fs.Name
	}
	return fs, nil
}
