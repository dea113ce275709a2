// SPDX-License-Identifier: Apache-2.0

//go:build linux

package e2e

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/memspan/memspan"
)

// pythonDir has the Python client and its tests.
var pythonDir = filepath.Join("..", "..", "python")

// findPython returns the python3 of the path or the system's, rather one that has
// numpy.
func findPython() (name string, numpy bool) {
	for _, candidate := range []string{"python3", "/usr/bin/python3"} {
		path, err := exec.LookPath(candidate)
		if err != nil {
			continue
		}
		if exec.Command(path, "-c", "import numpy").Run() == nil {
			return path, true
		}
		name = cmp.Or(name, path)
	}
	return name, false
}

// python runs Python with a daemon's socket in its environment, and returns what
// it says. Without a Python at all the test is skipped.
func python(t *testing.T, d *daemon, args []string, env ...string) string {
	t.Helper()
	name, _ := findPython()
	if name == "" {
		t.Skip("there is no python3: scripts/setup test installs it")
	}
	cmd := exec.CommandContext(t.Context(), name, append([]string{"-X", "dev"}, args...)...)
	cmd.Dir = pythonDir
	cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1", "MEMSPAN_SOCKET="+strings.TrimPrefix(d.Addresses["unix"], "unix:"))
	cmd.Env = append(cmd.Env, env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	return string(out)
}

// unittests runs tests of the Python client, at least one of which must pass.
func unittests(t *testing.T, d *daemon, which []string, env ...string) {
	t.Helper()
	out := python(t, d, append([]string{"-m", "unittest", "-v"}, which...), env...)
	if !strings.Contains(out, " ... ok") {
		t.Errorf("nothing was tested:\n%s", out)
	}
	for line := range strings.Lines(out) {
		if strings.Contains(line, "skipped") || strings.HasPrefix(line, "Ran ") {
			t.Log(strings.TrimSpace(line))
		}
	}
}

// The Python client's own tests, with numpy where it is installed, and without.
func TestPython(t *testing.T) {
	t.Parallel()
	for _, with := range []string{"numpy", "nothing"} {
		t.Run("with "+with, func(t *testing.T) {
			env := "MEMSPAN_TEST_NO_NUMPY="
			if with == "nothing" {
				env += "1"
			} else if _, numpy := findPython(); !numpy {
				t.Skip("there is no numpy: scripts/setup test installs it")
			}
			unittests(t, start(t, settings{Process: true, Data: t.TempDir()}), nil, env)
		})
	}
}

// What the pages show of the Python client is what happens.
func TestPythonExamples(t *testing.T) {
	t.Parallel()
	d := start(t, settings{Process: true})
	python(t, d, []string{"-m", "doctest", filepath.Join("..", "docs", "python.md")}, "PYTHONPATH=.")
	readme, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	check(t, err)
	_, code, found := strings.Cut(string(readme), "```python\n")
	code, _, closed := strings.Cut(code, "```")
	if !found || !closed {
		t.Fatal("there is no Python in the README")
	}
	if _, numpy := findPython(); numpy {
		python(t, d, []string{"-c", code}, "PYTHONPATH=.")
	}
}

// What Go and Python store is seen by the other, by pages and by frames, and
// conflicts are found between them.
func TestPythonAndGo(t *testing.T) {
	t.Parallel()
	d := start(t, settings{Process: true})
	c := d.dial(t, "unix")
	s := alloc(t, c, memspan.SpanConfig{Name: "both", Size: 3 << 20})
	direct := mapped(t, s, 1<<20-100, 200, memspan.ReadWrite)
	for i := range direct.Bytes() {
		direct.Bytes()[i] = byte(i)
	}
	if _, err := s.WriteAt(t.Context(), []byte("go at"), 2<<20); err != nil {
		t.Fatal(err)
	}
	shadow := mapped(t, s, 2<<20, 100, memspan.ReadWrite|memspan.Shadow)
	copy(shadow.Bytes(), "conflict")
	copy(shadow.Bytes()[50:], "apart")

	unittests(t, d, []string{"test_memspan.WithGo"}, "MEMSPAN_TEST_SPAN=both")

	if got := direct.Bytes(); !bytes.Equal(got[:100], bytes.Repeat([]byte("p"), 100)) || got[100] != 100 {
		t.Errorf("mapped in Go: % x", got[:101])
	}
	got := make([]byte, 6)
	if _, err := s.ReadAt(t.Context(), got, 2<<20); err != nil || string(got) != "python" {
		t.Errorf("read in Go: %q, %v", got, err)
	}
	_, err := shadow.Flush(t.Context())
	want(t, "a flush of the same bytes", err, memspan.ErrConflict)
	check(t, shadow.Discard(t.Context()))
	unmap(t, direct)
	if st := stat(t, s); st.Unclean != 0 {
		t.Errorf("%d unclean blocks", st.Unclean)
	}
}

// Killed under a Python program the daemon is an error to it, and no more.
func TestPythonLosesItsDaemon(t *testing.T) {
	t.Parallel()
	d := start(t, settings{Process: true})
	unittests(t, d, []string{"test_memspan.Killed"}, "MEMSPAN_TEST_KILL="+strconv.Itoa(d.pid()))
	d.process.kill() // it is; this waits for it
}

// A Python program pulls what another machine's daemon exposes through its own,
// which verifies it.
func TestPythonPullsAnothersSurface(t *testing.T) {
	t.Parallel()
	far, near := start(t, settings{Process: true}), start(t, settings{Process: true})
	content := someBytes(5<<20 + 77)
	done, err := far.dial(t, "unix").ExposeBytes(t.Context(), content, memspan.ExposeOptions{Chunk: 64 << 10})
	check(t, err)
	text, err := far.ticketTo(done.Ticket, "tls").Text()
	check(t, err)
	unittests(t, near, []string{"test_memspan.AnothersSurface"},
		"MEMSPAN_TEST_TICKET="+text, fmt.Sprintf("MEMSPAN_TEST_SHA256=%x", sha256.Sum256(content)))
}

// A Python program pulls what is encrypted: this user's daemon decrypts it for him, whether it
// has the surface or pulls it from another machine's daemon.
func TestPythonPullsWhatIsEncrypted(t *testing.T) {
	t.Parallel()
	far, near := start(t, settings{Process: true}), start(t, settings{Process: true})
	content := someBytes(3<<20 + 77)
	done, err := far.dial(t, "unix").ExposeBytes(t.Context(), content, memspan.ExposeOptions{Chunk: 64 << 10, Encrypt: true})
	check(t, err)
	text, err := far.ticketTo(done.Ticket, "tls").Text()
	check(t, err)
	for _, d := range []*daemon{far, near} {
		unittests(t, d, []string{"test_memspan.Encrypted"},
			"MEMSPAN_TEST_KEYED="+text, fmt.Sprintf("MEMSPAN_TEST_SHA256=%x", sha256.Sum256(content)))
	}
}
