// SPDX-License-Identifier: Apache-2.0

package memfd_test

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/memspan/memspan/internal/memfd"
)

// A draft has all of its memory before it is stored to, and zeros in it are holes
// nevertheless.
func TestDraftHasItsMemory(t *testing.T) {
	for _, size := range []int64{1, 4097, 65<<20 + 3} {
		d := must(memfd.NewDraft("draft", size))
		var st unix.Stat_t
		if err := unix.Fstat(int(d.File().Fd()), &st); err != nil {
			t.Fatal(err)
		}
		if held := st.Blocks * 512; held < size || st.Size != size || int64(len(d.Bytes())) != size {
			t.Errorf("a draft of %d bytes has %d, and holds %d of memory", size, st.Size, held)
		}
		if at, err := unix.Seek(int(d.File().Fd()), 0, unix.SEEK_DATA); err != unix.ENXIO {
			t.Errorf("a draft of %d bytes that nobody stored to has data at %d (%v)", size, at, err)
		}
		d.Bytes()[size-1] = 1
		if err := d.Freeze(); err != nil {
			t.Error(err)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}
