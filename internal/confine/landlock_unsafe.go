// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package confine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Accesses of Landlock's first version: the bits up to MAKE_SYM. Later versions
// added one each.
const (
	accessFirst = unix.LANDLOCK_ACCESS_FS_MAKE_SYM<<1 - 1

	accessRead  = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR
	accessFiles = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE |
		unix.LANDLOCK_ACCESS_FS_TRUNCATE | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV // those that make sense for what is no directory
)

// restrictFiles confines the calling thread to the paths a driver needs, to
// itself for signals and abstract sockets, and to no TCP port. The shader cache
// is a further directory it may write, if not empty. It returns the version of
// the kernel's Landlock, 0 if it has none.
func restrictFiles(shaderCache string) (version int, err error) {
	v, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno == unix.ENOSYS || errno == unix.EOPNOTSUPP {
		return 0, nil // not built in, or not enabled at boot
	} else if errno != 0 {
		return 0, os.NewSyscallError("landlock_create_ruleset", errno)
	}
	version = int(v)

	// struct landlock_ruleset_attr { u64 handled_access_fs, handled_access_net,
	// scoped; }: an older kernel takes the part that it knows.
	var ruleset [3]uint64
	size := uintptr(8)
	ruleset[0] = accessFirst
	if version >= 2 {
		ruleset[0] |= unix.LANDLOCK_ACCESS_FS_REFER
	}
	if version >= 3 {
		ruleset[0] |= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	if version >= 4 {
		ruleset[1] = unix.LANDLOCK_ACCESS_NET_BIND_TCP | unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
		size = 16
	}
	if version >= 5 {
		ruleset[0] |= unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	}
	if version >= 6 {
		ruleset[2] = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL
		size = 24
	}
	// The kernel reads the array during the call only.
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&ruleset)), size, 0)
	if errno != 0 {
		return 0, os.NewSyscallError("landlock_create_ruleset", errno)
	}
	defer unix.Close(int(fd))

	for _, path := range paths(readable, pathVariables...) {
		if err := allow(int(fd), path, ruleset[0]&accessRead); err != nil {
			return 0, err
		}
	}
	write := paths(writable)
	if shaderCache != "" {
		write = append(write, shaderCache)
	}
	for _, path := range write {
		if err := allow(int(fd), path, ruleset[0]&^unix.LANDLOCK_ACCESS_FS_EXECUTE); err != nil {
			return 0, err
		}
	}
	// By its descriptor, not its name: it may have been replaced or removed.
	if err := allow(int(fd), "/proc/self/exe", accessRead); err != nil {
		return 0, err
	}
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); errno != 0 {
		return 0, os.NewSyscallError("landlock_restrict_self", errno)
	}
	return version, nil
}

// allow grants access beneath path. A path that is not there, or that this user
// cannot reach anyway, needs no rule.
func allow(ruleset int, path string, access uint64) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENOTDIR) {
		return nil
	} else if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFDIR {
		access &= accessFiles
	}
	// struct landlock_path_beneath_attr { u64 allowed_access; s32 parent_fd; }, packed.
	var rule [12]byte
	binary.NativeEndian.PutUint64(rule[:], access)
	binary.NativeEndian.PutUint32(rule[8:], uint32(fd))
	const pathBeneath = 1
	// The kernel reads the rule during the call only.
	_, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(ruleset), pathBeneath, uintptr(unsafe.Pointer(&rule)), 0, 0, 0)
	if errno != 0 {
		return fmt.Errorf("confine: allow %s: %w", path, os.NewSyscallError("landlock_add_rule", errno))
	}
	return nil
}
