// SPDX-License-Identifier: Apache-2.0

package mapping_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/memspan/memspan/mapping"
)

// fewFiles tells a process of this test that its limit of open files is low.
const fewFiles = "MEMSPAN_TEST_FEW_FILES"

// withFewFiles runs the rest of a test in a process of its own that may have so
// many files open and cannot raise that. It reports whether this is that process.
func withFewFiles(t *testing.T, limit string) bool {
	t.Helper()
	if os.Getenv(fewFiles) == limit {
		return true
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-c", `ulimit -n "$1" && exec "$2" -test.run "^$3\$" -test.v`, "sh", limit, self, t.Name())
	cmd.Env = append(os.Environ(), fewFiles+"="+limit)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Fatalf("the test did not run:\n%s", out)
	}
	return false
}

func openFiles(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// Many more shadows than a process may have files open at a time keep what is
// stored to each, and leave nothing.
func TestMoreShadowsThanFiles(t *testing.T) {
	if !withFewFiles(t, "256") {
		return
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur != 256 || limit.Max != 256 {
		t.Fatalf("limit %d, at most %d: %v", limit.Cur, limit.Max, err)
	}
	bothTrackings(t, func(t *testing.T, tracking mapping.Tracking) {
		const shadows, size, makers = 2000, 3 * 4096, 4
		srv := newServer(shadows * size)
		want := bytes.Clone(srv)
		before := openFiles(t)
		p := mapping.NewPool(1 << 20)
		var all [shadows]*mapping.Shadow
		var work sync.WaitGroup
		for m := range makers {
			work.Go(func() {
				for i := m; i < shadows; i += makers {
					off := int64(i * size)
					sh, err := mapping.NewShadow(p, off, size, blockSize, true, tracking)
					if err != nil {
						t.Errorf("shadow %d: %v", i, err)
						return
					}
					if err := sh.Fill(off, size, func(dst []byte) error { copy(dst, srv[off:]); return nil }); err != nil {
						t.Error(err)
					}
					if err := sh.Arm(); err != nil {
						t.Error(err)
					}
					all[i] = sh
					if i%10 == 7 { // some come and go
						if err := sh.Close(); err != nil {
							t.Error(err)
						}
						all[i] = nil
					}
				}
			})
		}
		work.Wait()
		if t.Failed() {
			return
		}
		if n := openFiles(t); n > before+3 {
			t.Errorf("%d files are open, %d before", n, before)
		}
		for i, sh := range all {
			if sh == nil {
				continue
			}
			at := i * 31 % size
			sh.Bytes()[at]++
			want[i*size+at]++
		}
		for i, sh := range all {
			if sh != nil {
				srv.flush(t, sh, int64(i*size), size)
			}
		}
		wantEqual(t, "flushed", srv, want)
		for _, sh := range all[:shadows/2] {
			if sh != nil {
				if err := sh.Close(); err != nil {
					t.Error(err)
				}
			}
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		for i, sh := range all[shadows/2:] { // they outlive the pool
			if sh == nil {
				continue
			}
			i += shadows / 2
			sh.Bytes()[5]++
			want[i*size+5]++
			srv.flush(t, sh, int64(i*size), size)
			if err := sh.Close(); err != nil {
				t.Error(err)
			}
		}
		wantEqual(t, "flushed after the pool was closed", srv, want)
		if n := openFiles(t); n != before {
			t.Errorf("%d files are open, %d before", n, before)
		}
	})
}

// Who has no descriptor left is told which limit is in the way, and can map once
// he has.
func TestNoFileLeft(t *testing.T) {
	if !withFewFiles(t, "32") {
		return
	}
	p := newPool(t)
	var taken []*os.File
	for {
		f, err := os.Open("/dev/null")
		if err != nil {
			break
		}
		taken = append(taken, f)
	}
	_, err := mapping.NewShadow(p, 0, 1, blockSize, true, mapping.Auto)
	if !errors.Is(err, unix.EMFILE) || !strings.Contains(err.Error(), "RLIMIT_NOFILE allows 32") {
		t.Errorf("error %v, want EMFILE that names RLIMIT_NOFILE", err)
	}
	for _, f := range taken {
		f.Close()
	}
	tracking := mapping.Pages
	for _, mode := range []mapping.Tracking{mapping.Pages, mapping.Auto} {
		sh, err := mapping.NewShadow(p, 0, 1, blockSize, true, mode)
		if errors.Is(err, errors.ErrUnsupported) {
			tracking = mapping.Compare
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if sh.Tracking() != tracking {
			t.Errorf("tracking by %v, want %v", sh.Tracking(), tracking)
		}
		if err := sh.Close(); err != nil {
			t.Error(err)
		}
	}
}
