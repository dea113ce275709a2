// SPDX-License-Identifier: Apache-2.0

package memfd

import (
	"os"

	"golang.org/x/sys/unix"
)

// Blank returns an empty memfd, to be written by its descriptor and then to be
// given to Freeze.
func Blank(name string) (*os.File, error) {
	name = name[:min(len(name), maxName)]
	fd, err := create(name)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "memfd:"+name), nil
}

// Freeze seals a memfd for ever: nobody can change its bytes or its size any
// more. It fails while somebody has it mapped for writing.
func Freeze(file *os.File) error {
	_, err := unix.FcntlInt(file.Fd(), unix.F_ADD_SEALS, seals|unix.F_SEAL_WRITE)
	return os.NewSyscallError("fcntl(F_ADD_SEALS)", err)
}

// Frozen reports whether f is a memfd that nobody can write, shrink or grow any
// more.
func Frozen(f *os.File) bool {
	const want = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW
	got, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	return err == nil && got&want == want
}
