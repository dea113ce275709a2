// SPDX-License-Identifier: Apache-2.0

package sharedfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A Dir is a directory that stays the same one, whatever happens to its path.
// Its methods may be called concurrently; Close must come last.
type Dir struct{ f *os.File }

// OpenDir opens a directory. Links in path are followed: they are the choice of
// whoever names the directory, unlike those below it.
func OpenDir(path string) (*Dir, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	return &Dir{f}, nil
}

// Close closes the directory, not the files opened in it.
func (d *Dir) Close() error { return d.f.Close() }

// Open opens the file at rel, a relative path, for reading, and for writing too
// if writable is set. It fails with ErrEscape if that leads out of the directory
// or over a link, and with ErrNotRegular for anything but a plain file that has
// this one name. It never waits, whatever is there.
func (d *Dir) Open(rel string, writable bool) (*os.File, error) {
	flags := uint64(unix.O_RDONLY)
	if writable {
		flags = unix.O_RDWR
	}
	f, err := d.openat2(rel, flags|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := onFD(f, func(fd int) error { return unix.Fstat(fd, &st) }); err != nil {
		f.Close()
		return nil, &fs.PathError{Op: "stat", Path: rel, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink > 1 {
		f.Close()
		return nil, &fs.PathError{Op: "open", Path: rel, Err: ErrNotRegular}
	}
	return f, nil
}

// Create makes the file name in the directory, for this user only, and fails
// with an error that matches fs.ErrExist if the name is taken.
func (d *Dir) Create(name string) (*os.File, error) {
	return d.openat2(name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o600)
}

func (d *Dir) openat2(rel string, flags, mode uint64) (*os.File, error) {
	how := unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC,
		Mode:    mode,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	var fd int
	err := onFD(d.f, func(dir int) (err error) {
		// EAGAIN: something was renamed meanwhile, and the kernel is not sure.
		for range 100 {
			if fd, err = unix.Openat2(dir, rel, &how); err != unix.EAGAIN && err != unix.EINTR {
				break
			}
		}
		return err
	})
	switch err {
	case nil:
		if flags&unix.O_NONBLOCK != 0 {
			// It has been opened without waiting. A file that says so still is one that
			// os asks the poller about, which cannot watch it, and that takes longer.
			_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETFL, 0)
		}
		return os.NewFile(uintptr(fd), filepath.Join(d.f.Name(), rel)), nil
	case unix.EXDEV, unix.ELOOP:
		err = fmt.Errorf("%w (%w)", ErrEscape, err)
	case unix.ENXIO, unix.EISDIR: // a socket, or a pipe without a reader; a directory
		err = fmt.Errorf("%w (%w)", ErrNotRegular, err)
	case unix.ENOSPC, unix.EDQUOT:
		err = fmt.Errorf("%w (%w)", ErrNoSpace, err)
	}
	return nil, &fs.PathError{Op: "open", Path: rel, Err: err}
}

// Remove removes the file name of the directory.
func (d *Dir) Remove(name string) error {
	return at(d, "remove", name, func(dir int) error { return unix.Unlinkat(dir, name, 0) })
}

// Same reports whether name is, now, the file that f is.
func (d *Dir) Same(name string, f *os.File) (bool, error) {
	var there, here unix.Stat_t
	err := at(d, "stat", name, func(dir int) error {
		return unix.Fstatat(dir, name, &there, unix.AT_SYMLINK_NOFOLLOW)
	})
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err == nil {
		err = onFD(f, func(fd int) error { return unix.Fstat(fd, &here) })
	}
	return err == nil && there.Dev == here.Dev && there.Ino == here.Ino, err
}

// Names returns the names in the directory that begin with prefix.
func (d *Dir) Names(prefix string) ([]string, error) {
	// Not by d.f itself: reading moves its position, which concurrent calls share.
	var fd int
	err := at(d, "open", ".", func(dir int) (err error) {
		fd, err = unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), d.f.Name())
	defer f.Close()
	all, err := f.Readdirnames(-1)
	var names []string
	for _, name := range all {
		if strings.HasPrefix(name, prefix) {
			names = append(names, name)
		}
	}
	return names, err
}

// Reserve takes the room for n bytes of a new file from off on now, what of it is
// not there yet, so that no later store in a mapping fails for want of it. A file
// that is shorter gets that size. It fails with ErrNoSpace. Where the file system
// cannot do that at once, zeros are written.
func Reserve(f *os.File, off, n int64) error {
	err := onFD(f, func(fd int) error { return unix.Fallocate(fd, 0, off, n) })
	if err == unix.EOPNOTSUPP {
		err = writeZeros(f, off, n)
	}
	switch err {
	case nil:
		return nil
	case unix.ENOSPC, unix.EDQUOT:
		err = fmt.Errorf("%w (%w)", ErrNoSpace, err)
	case unix.EFBIG:
		err = fmt.Errorf("%w: no file may be that large (%w)", ErrNoSpace, err)
	}
	return &fs.PathError{Op: "fallocate", Path: f.Name(), Err: err}
}

func writeZeros(f *os.File, off, n int64) error {
	zeros := make([]byte, min(n, 1<<20))
	for end := off + n; off < end; off += int64(len(zeros)) {
		if _, err := f.WriteAt(zeros[:min(end-off, int64(len(zeros)))], off); err != nil {
			var errno unix.Errno
			if errors.As(err, &errno) {
				return errno
			}
			return err
		}
	}
	return nil
}

// Publish writes what was stored in a mapping of f through to the file, for a
// side that does not share its pages.
func Publish(_ *os.File, mem []byte) error {
	return os.NewSyscallError("msync", unix.Msync(mem, unix.MS_SYNC))
}

// Refresh drops the cached pages of a mapping of f, so that what is read next
// comes from the file. What was stored is written first.
func Refresh(f *os.File, mem []byte) error {
	if err := Publish(f, mem); err != nil {
		return err
	}
	if err := unix.Madvise(mem, unix.MADV_DONTNEED); err != nil {
		return os.NewSyscallError("madvise", err)
	}
	err := onFD(f, func(fd int) error { return unix.Fadvise(fd, 0, int64(len(mem)), unix.FADV_DONTNEED) })
	return os.NewSyscallError("fadvise", err)
}

// TryLock locks f for its open file description, without waiting, and reports
// whether it could. The lock ends when the last descriptor and mapping that came
// of this opening are gone, however their process ends.
func TryLock(f *os.File) (bool, error) {
	err := onFD(f, func(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
	if err == unix.EWOULDBLOCK {
		return false, nil
	}
	if err != nil {
		return false, &fs.PathError{Op: "flock", Path: f.Name(), Err: err}
	}
	return true, nil
}

// Owner returns the user that f belongs to.
func Owner(f *os.File) (uid int, err error) {
	var st unix.Stat_t
	if err := onFD(f, func(fd int) error { return unix.Fstat(fd, &st) }); err != nil {
		return 0, &fs.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	return int(st.Uid), nil
}

// InMemory reports whether f is of a file system that keeps its files in RAM: a
// fault in a mapping of it waits for no device, server or other program.
func InMemory(f *os.File) bool {
	var st unix.Statfs_t
	if onFD(f, func(fd int) error { return unix.Fstatfs(fd, &st) }) != nil {
		return false
	}
	switch uint32(st.Type) { // signed, on some machines
	case unix.TMPFS_MAGIC, unix.RAMFS_MAGIC, unix.HUGETLBFS_MAGIC:
		return true
	}
	return false
}

// BootID identifies the running kernel, as no other has it before the next
// start of any machine.
func BootID() (string, error) {
	// Not by os.ReadFile: the poller that it asks about the file costs many times
	// what the file does, and who attaches memory asks each time.
	const path = "/proc/sys/kernel/random/boot_id"
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var text [64]byte
	n, err := unix.Read(fd, text[:])
	if err != nil {
		return "", &fs.PathError{Op: "read", Path: path, Err: err}
	}
	return strings.TrimSpace(string(text[:n])), nil
}

func at(d *Dir, op, name string, f func(dir int) error) error {
	if err := onFD(d.f, f); err != nil {
		return &fs.PathError{Op: op, Path: filepath.Join(d.f.Name(), name), Err: err}
	}
	return nil
}

// onFD calls f with the descriptor of file, which stays open meanwhile. It
// repeats what the Go scheduler's signals interrupt.
func onFD(file *os.File, f func(fd int) error) (err error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(fd uintptr) {
		for {
			if err = f(int(fd)); err != unix.EINTR {
				return
			}
		}
	}); cerr != nil {
		return cerr
	}
	return err
}
