// SPDX-License-Identifier: Apache-2.0

package mapping_test

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/memspan/memspan/mapping"
)

// sharedMemory returns what this process holds in shared memory, and how many
// mappings and descriptors it has.
func sharedMemory(t *testing.T) (bytes int64, maps, files int) {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "RssShmem:")
	if _, err := fmt.Sscan(rest, &bytes); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if strings.Contains(s.Text(), "memspan-shadow") {
			maps++
		}
	}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		link, _ := os.Readlink("/proc/self/fd/" + fd.Name())
		if strings.Contains(link, "memspan-shadow") || strings.Contains(link, "userfaultfd") || strings.Contains(link, "pagemap") {
			files++
		}
	}
	return bytes << 10, maps, files
}

func TestThousandMappingsLeaveNothing(t *testing.T) {
	bothTrackings(t, func(t *testing.T, tracking mapping.Tracking) {
		const limit = 1 << 20
		srv := newServer(blockSize * 8)
		before, maps, files := sharedMemory(t)
		p := mapping.NewPool(limit)
		for i := range int64(1000) {
			off, n := i*131, 1+i*997%(blockSize*5)
			sh, err := mapping.NewShadow(p, off, n, blockSize, i%3 != 0, tracking)
			if err != nil {
				t.Fatal(err)
			}
			if err := sh.Fill(off, n/2, func(dst []byte) error { copy(dst, srv[off:]); return nil }); err != nil {
				t.Fatal(err)
			}
			if err := sh.Arm(); err != nil {
				t.Fatal(err)
			}
			for k := int64(0); k < n; k += 4096 {
				sh.Bytes()[k]++
			}
			if i%3 == 1 {
				srv.flush(t, sh, off, n)
			}
			if err := sh.Close(); err != nil {
				t.Fatal(err)
			}
			if p.Idle() > limit {
				t.Fatalf("%d bytes idle, the limit is %d", p.Idle(), limit)
			}
		}
		if bytes, _, _ := sharedMemory(t); bytes > before+2*limit { // each page may be in both mappings
			t.Errorf("%d bytes of shared memory with an open pool, %d before", bytes, before)
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		if b, m, f := sharedMemory(t); b > before || m != maps || f != files {
			t.Errorf("%d bytes, %d maps, %d descriptors; before: %d, %d, %d", b, m, f, before, maps, files)
		}
	})
}

// A sparse mapping costs what is touched, not what it spans.
func TestUntouchedMemoryCostsNothing(t *testing.T) {
	bothTrackings(t, func(t *testing.T, tracking mapping.Tracking) {
		p := newPool(t)
		const n = 1 << 30
		for range 2 { // the second time with reused memory
			sh, err := mapping.NewShadow(p, 0, n, 1<<20, true, tracking)
			if err != nil {
				t.Fatal(err)
			}
			if err := sh.Arm(); err != nil {
				t.Fatal(err)
			}
			sh.Bytes()[n/2], sh.Bytes()[n-1] = 1, 1
			found := 0
			if err := sh.Collect(t.Context(), 0, n, func(c *mapping.Change) error {
				found += len(c.Data)
				sh.Ack(c)
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			if found != 2 {
				t.Errorf("%d bytes changed, want 2", found)
			}
			if err := sh.Close(); err != nil {
				t.Fatal(err)
			}
			if p.Idle() > 1<<20 {
				t.Errorf("two bytes of a GiB cost %d", p.Idle())
			}
		}
	})
}
