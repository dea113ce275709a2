// SPDX-License-Identifier: Apache-2.0

package sharedfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/windows"

	"github.com/memspan/memspan/internal/userid"
)

// A Dir is a directory that stays the same one, whatever happens to its path.
// Its methods may be called concurrently; Close must come last.
type Dir struct{ root *os.Root }

// OpenDir opens a directory. Links in path are followed: they are the choice of
// whoever names the directory, unlike those below it.
func OpenDir(path string) (*Dir, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	return &Dir{root}, nil
}

// Close closes the directory, not the files opened in it.
func (d *Dir) Close() error { return d.root.Close() }

// Open opens the file at rel, a relative path with slashes, for reading, and for
// writing too if writable is set. It fails with ErrEscape if that leads out of the
// directory, over a link or to a stream beside a file, and with ErrNotRegular for
// anything but a plain file that has this one name. It never waits, whatever is
// there. Nothing outside of the directory is opened, whatever is changed in it
// meanwhile; a link that appears in that moment and stays in the directory may be
// followed.
func (d *Dir) Open(rel string, writable bool) (*os.File, error) {
	failed := func(err error) (*os.File, error) {
		return nil, &fs.PathError{Op: "open", Path: rel, Err: err}
	}
	if rel == "" {
		return failed(fs.ErrNotExist)
	}
	path := filepath.FromSlash(rel)
	if !filepath.IsLocal(path) {
		return failed(ErrEscape)
	}
	path = filepath.Clean(path)
	for i := 0; i <= len(path); i++ {
		if i < len(path) && path[i] != filepath.Separator {
			continue
		}
		info, err := d.root.Lstat(path[:i])
		if err != nil {
			return nil, err
		}
		switch mode := info.Mode().Type(); {
		case mode != 0 && mode != fs.ModeDir: // a link, a junction or another reparse point
			return failed(ErrEscape)
		case i == len(path) && mode != 0:
			return failed(ErrNotRegular)
		}
	}
	flags := os.O_RDONLY
	if writable {
		flags = os.O_RDWR
	}
	f, err := d.root.OpenFile(path, flags, 0)
	if err != nil {
		return nil, err
	}
	var info windows.ByHandleFileInformation
	if err := onHandle(f, func(h windows.Handle) error { return windows.GetFileInformationByHandle(h, &info) }); err != nil {
		f.Close()
		return nil, &fs.PathError{Op: "stat", Path: rel, Err: err}
	}
	const special = windows.FILE_ATTRIBUTE_DIRECTORY | windows.FILE_ATTRIBUTE_REPARSE_POINT
	if info.FileAttributes&special != 0 || info.NumberOfLinks > 1 {
		f.Close()
		return failed(ErrNotRegular)
	}
	return f, nil
}

// Create makes the file name in the directory, with the rights that files get
// there, and fails with an error that matches fs.ErrExist if the name is taken.
func (d *Dir) Create(name string) (*os.File, error) {
	f, err := d.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	return f, withSpace(err)
}

// unmapTime is how long a side that was asked to stop may take to unmap a file,
// which Windows does not remove before.
const unmapTime = time.Second

// Remove removes the file name of the directory. Where the file system cannot take
// the name from a file that is open, it goes when all have closed it.
func (d *Dir) Remove(name string) error {
	err := d.root.Remove(name)
	for end := time.Now().Add(unmapTime); errors.Is(err, fs.ErrPermission) && time.Now().Before(end); {
		time.Sleep(unmapTime / 100)
		err = d.root.Remove(name)
	}
	if !errors.Is(err, windows.ERROR_INVALID_FUNCTION) {
		return err
	}
	// Wine 8 does not know the call that takes it at once.
	f, err := d.root.OpenFile(name, windows.FILE_FLAG_DELETE_ON_CLOSE|windows.FILE_FLAG_OPEN_REPARSE_POINT, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

// Same reports whether name is, now, the file that f is.
func (d *Dir) Same(name string, f *os.File) (bool, error) {
	there, err := d.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	here, err := f.Stat()
	return err == nil && os.SameFile(there, here), err
}

// Names returns the names in the directory that begin with prefix.
func (d *Dir) Names(prefix string) ([]string, error) {
	f, err := d.root.Open(".")
	if err != nil {
		return nil, err
	}
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

// Reserve gives a new file that is shorter the size of off+n bytes and takes the room
// for them now, as Windows does for files that are neither sparse nor compressed. It
// fails with ErrNoSpace.
func Reserve(f *os.File, off, n int64) error {
	info, err := f.Stat()
	if err != nil || info.Size() >= off+n {
		return err
	}
	return withSpace(f.Truncate(off + n))
}

// withSpace has err match ErrNoSpace if it says so in Windows' words.
func withSpace(err error) error {
	for _, full := range []error{windows.ERROR_DISK_FULL, windows.ERROR_HANDLE_DISK_FULL, windows.ERROR_DISK_QUOTA_EXCEEDED, windows.ERROR_FILE_TOO_LARGE} {
		if errors.Is(err, full) {
			return fmt.Errorf("%w (%w)", ErrNoSpace, err)
		}
	}
	return err
}

// Enlarge does nothing: Windows has no large pages for files.
func Enlarge(*os.File, int64, []byte) {}

// Refresh has what is read next come from the file: what was stored is written
// first. Windows drops a mapping's pages when the file server says so.
func Refresh(f *os.File, mem []byte) error { return Publish(f, mem) }

// lockAt is the byte that TryLock locks. Windows' locks keep others from reading:
// it is none that a file has.
const lockAt = 1 << 62

// TryLock locks f for its handle, without waiting, and reports whether it could.
// The lock ends when the handle is closed or its process ends, however it ends.
func TryLock(f *os.File) (bool, error) {
	err := onHandle(f, func(h windows.Handle) error {
		const flags = windows.LOCKFILE_EXCLUSIVE_LOCK | windows.LOCKFILE_FAIL_IMMEDIATELY
		return windows.LockFileEx(h, flags, 0, 1, 0, &windows.Overlapped{OffsetHigh: lockAt >> 32})
	})
	if errors.Is(err, windows.ERROR_LOCK_VIOLATION) {
		return false, nil
	}
	if err != nil {
		return false, &fs.PathError{Op: "LockFileEx", Path: f.Name(), Err: err}
	}
	return true, nil
}

// Owner returns the user that f belongs to, by the numbers of package userid.
func Owner(f *os.File) (uid int, err error) {
	var sd *windows.SECURITY_DESCRIPTOR
	if err := onHandle(f, func(h windows.Handle) (err error) {
		sd, err = windows.GetSecurityInfo(h, windows.SE_FILE_OBJECT, windows.OWNER_SECURITY_INFORMATION)
		return err
	}); err != nil {
		return 0, &fs.PathError{Op: "GetSecurityInfo", Path: f.Name(), Err: err}
	}
	sid, _, err := sd.Owner()
	if err != nil || sid == nil {
		return 0, &fs.PathError{Op: "owner", Path: f.Name(), Err: errors.Join(err, fs.ErrPermission)}
	}
	return userid.OfOwner(sid)
}

// InMemory returns false: what a file's pages come from is not told.
func InMemory(*os.File) bool { return false }

// onHandle calls f with the handle of file, which stays open meanwhile.
func onHandle(file *os.File, f func(h windows.Handle) error) (err error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(h uintptr) { err = f(windows.Handle(h)) }); cerr != nil {
		return cerr
	}
	return err
}
