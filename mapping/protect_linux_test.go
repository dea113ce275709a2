// SPDX-License-Identifier: Apache-2.0

package mapping_test

import (
	"encoding/binary"
	"os"
	"reflect"
	"testing"

	"github.com/memspan/memspan/mapping"
)

// Pages that the user did not write are protected, and so not looked at, after
// Arm and after each Collect: also those of reused memory.
func TestPagesAreProtected(t *testing.T) {
	needs(t, mapping.Pages)
	pagemap, err := os.Open("/proc/self/pagemap")
	if err != nil {
		t.Skip(err)
	}
	defer pagemap.Close()
	const pages = 2 * blockSize / 4096
	p := newPool(t)
	srv := newServer(2 * blockSize)
	for range 2 {
		sh := srv.open(t, p, 0, 2*blockSize, mapping.Pages)
		mem := sh.Bytes()
		entries := make([]byte, 8*pages)
		protected := func(page int) bool {
			t.Helper()
			at := int64(reflect.ValueOf(mem).Pointer()) / int64(os.Getpagesize()) * 8
			if _, err := pagemap.ReadAt(entries, at); err != nil {
				t.Fatal(err)
			}
			return binary.NativeEndian.Uint64(entries[8*page:])>>57&1 != 0 // PM_UFFD_WP
		}
		for page := range pages {
			if !protected(page) {
				t.Fatalf("page %d is not protected after Arm", page)
			}
		}
		mem[5*4096]++
		if protected(5) || !protected(6) {
			t.Error("writing page 5 must unprotect it, and it alone")
		}
		collect(t, sh, 0, 2*blockSize)
		if !protected(5) {
			t.Error("page 5 is not protected after Collect")
		}
		for i := range mem {
			mem[i] = 1
		}
		if err := sh.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
