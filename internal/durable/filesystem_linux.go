// SPDX-License-Identifier: Apache-2.0

package durable

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"os"

	"golang.org/x/sys/unix"
)

// fileSystems are those that have a name here, by the number in statfs(2).
var fileSystems = map[int64]FileSystem{
	unix.EXT4_SUPER_MAGIC:      {Name: "ext4"},
	unix.XFS_SUPER_MAGIC:       {Name: "xfs"},
	unix.BTRFS_SUPER_MAGIC:     {Name: "btrfs"},
	unix.F2FS_SUPER_MAGIC:      {Name: "f2fs"},
	0x2fc12fc1:                 {Name: "zfs"},
	0xca451a4e:                 {Name: "bcachefs"},
	unix.MSDOS_SUPER_MAGIC:     {Name: "vfat"},
	unix.OVERLAYFS_SUPER_MAGIC: {Name: "overlay"},
	unix.FUSE_SUPER_MAGIC:      {Name: "fuse"},
	unix.TMPFS_MAGIC:           {Name: "tmpfs", Volatile: true},
	unix.RAMFS_MAGIC:           {Name: "ramfs", Volatile: true},
	unix.NFS_SUPER_MAGIC:       {Name: "nfs", Remote: true},
	unix.CIFS_SUPER_MAGIC:      {Name: "cifs", Remote: true},
	unix.SMB2_SUPER_MAGIC:      {Name: "smb2", Remote: true},
	unix.CEPH_SUPER_MAGIC:      {Name: "ceph", Remote: true},
	unix.V9FS_MAGIC:            {Name: "9p", Remote: true},
}

// FileSystemOf describes the file system of an existing file or directory.
func FileSystemOf(path string) (FileSystem, error) {
	var st unix.Statfs_t
	for {
		err := unix.Statfs(path, &st)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EINTR) {
			return FileSystem{}, &os.PathError{Op: "statfs", Path: path, Err: err}
		}
	}
	number := int64(st.Type) // 32 bits of it, and signed, on some machines
	fs, ok := fileSystems[number&math.MaxUint32]
	if !ok {
		fs.Name = fmt.Sprintf("unknown (%#x)", uint32(number))
	}
	fs.ReadOnly = st.Flags&unix.ST_RDONLY != 0
	fs.Free = room(&st)
	return fs, nil
}

// room returns how many bytes may still be taken. A file system without a block has
// no bound, as ramfs, or does not tell, as many that programs make.
func room(st *unix.Statfs_t) int64 {
	high, free := bits.Mul64(st.Bavail, uint64(st.Bsize))
	if st.Blocks == 0 || high != 0 || free > math.MaxInt64 {
		return math.MaxInt64
	}
	return int64(free)
}
