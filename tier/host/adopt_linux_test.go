// SPDX-License-Identifier: Apache-2.0

package host_test

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/memspan/memspan/tier/host"
)

// Memory of others is taken only if it is as a space's own: what is of another
// kind is to be copied.
func TestAdopt(t *testing.T) {
	const growable = unix.F_SEAL_SHRINK
	const fixed = growable | unix.F_SEAL_GROW
	h := host.New(32<<20, nil)
	defer h.Close()
	for _, tt := range []struct {
		name  string
		flags int
		size  int64
		seals int
		want  error
	}{
		{"ordinary", 0, 2 << 20, fixed, nil},
		{"growable", 0, 2 << 20, growable, errors.ErrUnsupported},
		{"shrinkable", 0, 2 << 20, unix.F_SEAL_GROW, errors.ErrUnsupported},
		{"longer", 0, 3 << 20, fixed, errors.ErrUnsupported},
		{"huge pages", unix.MFD_HUGETLB | unix.MFD_HUGE_2MB, 2 << 20, fixed, errors.ErrUnsupported},
	} {
		fd, err := unix.MemfdCreate(tt.name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|tt.flags)
		if err != nil {
			t.Logf("%s: not tested: %v", tt.name, err)
			continue
		}
		file := os.NewFile(uintptr(fd), tt.name)
		defer file.Close()
		if err := file.Truncate(tt.size); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.FcntlInt(file.Fd(), unix.F_ADD_SEALS, tt.seals); err != nil {
			t.Fatal(err)
		}
		s, err := h.OpenSpace(tt.name, 2<<20)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Adopt(file); !errors.Is(err, tt.want) {
			t.Errorf("%s: error %v, want %v", tt.name, err, tt.want)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}
