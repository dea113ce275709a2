// SPDX-License-Identifier: Apache-2.0

package memfd

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Blank returns an empty memfd, to be written by its descriptor and then to be
// given to Freeze.
func Blank(name string) (*os.File, error) {
	name = name[:min(len(name), maxName)]
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // MFD_NOEXEC_SEAL: Linux 6.3
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	return os.NewFile(uintptr(fd), "memfd:"+name), nil
}

// Freeze seals a memfd for ever: nobody can change its bytes or its size any
// more. It fails while somebody has it mapped for writing.
func Freeze(file *os.File) error {
	_, err := unix.FcntlInt(file.Fd(), unix.F_ADD_SEALS, seals|unix.F_SEAL_WRITE)
	return os.NewSyscallError("fcntl(F_ADD_SEALS)", err)
}
