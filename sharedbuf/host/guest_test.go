// SPDX-License-Identifier: Apache-2.0

package host_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/memspan/memspan/sharedbuf"
	"github.com/memspan/memspan/sharedbuf/host"
)

// guestVariable makes the test binary a guest: its value is the host's address.
const guestVariable = "MEMSPAN_TEST_GUEST"

// guestMain makes a buffer in the directory that is its argument, names it, and
// waits to be killed.
func guestMain() {
	c, err := sharedbuf.Dial(context.Background(), os.Getenv(guestVariable), sharedbuf.Options{Dir: os.Args[1]})
	if err != nil {
		fmt.Println(err)
		return
	}
	b, err := c.Alloc(context.Background(), 1<<20)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(b.Path())
	select {}
}

// A guest that is killed leaves no file behind; those of the living, and of
// guests that take no lease, stay.
func TestKilledGuest(t *testing.T) {
	ln, dir := tcp(t), t.TempDir()
	h, stop := serve(t, ln, host.Config{Dir: dir, Sweep: 1 << 60})
	legacy := filepath.Join(dir, sharedbuf.NamePrefix+"1_2")
	if err := os.WriteFile(legacy, make([]byte, 10), 0o644); err != nil {
		t.Fatal(err)
	}
	c := dial(t, ln, dir)
	living := alloc(t, c, 100)

	guest := exec.Command(os.Args[0], dir)
	guest.Env = append(os.Environ(), guestVariable+"="+ln.Addr().String())
	out, err := guest.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := guest.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	path := strings.TrimSpace(line)
	if err != nil || !strings.HasPrefix(path, dir) {
		t.Fatalf("the guest says %q, %v", line, err)
	}
	if removed, err := h.Sweep(); err != nil || len(removed) != 0 {
		t.Errorf("while all live: removed %v, %v", removed, err)
	}
	if err := guest.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	guest.Wait() // it was killed
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}
	removed, err := h.Sweep()
	if err != nil || !slices.Equal(removed, []string{filepath.Base(path)}) {
		t.Errorf("removed %v, %v", removed, err)
	}
	for _, gone := range []string{path, path + ".lease"} {
		if _, err := os.Stat(gone); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", gone, err)
		}
	}
	if _, err := living.Process(t.Context(), sharedbuf.Process()); err != nil {
		t.Errorf("a living guest's buffer: %v", err)
	}
	if _, err := os.Stat(legacy); err != nil {
		t.Errorf("a file without a lease: %v", err)
	}
	stop()
}

// What a host refuses to open, each with its kind of error.
func TestPaths(t *testing.T) {
	ln := tcp(t)
	root := t.TempDir()
	dir := filepath.Join(root, "shared")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	serve(t, ln, host.Config{Dir: dir})
	write := func(path string) string {
		t.Helper()
		if err := os.WriteFile(path, make([]byte, 100), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	secret := write(filepath.Join(root, "secret"))
	link := filepath.Join(dir, "link")
	linkedDir := filepath.Join(dir, "up")
	hard := filepath.Join(dir, "hard")
	if err := errors.Join(os.Symlink(secret, link), os.Symlink(root, linkedDir), os.Link(write(filepath.Join(root, "other")), hard), os.Mkdir(filepath.Join(dir, "sub"), 0o700)); err != nil {
		t.Fatal(err)
	}
	good := write(filepath.Join(dir, "good"))
	tests := []struct {
		path string
		want sharedbuf.Code
	}{
		{good, ""},
		{write(filepath.Join(dir, "sub", "good")), ""},
		{secret, sharedbuf.ErrOutside},
		{dir + "/../secret", sharedbuf.ErrOutside},
		{dir + "/sub/../good", sharedbuf.ErrOutside},
		{dir + "/./good", sharedbuf.ErrOutside},
		{dir + "x/good", sharedbuf.ErrOutside},
		{"/mnt/config/x", sharedbuf.ErrOutside},
		{`\\server\share\x`, sharedbuf.ErrOutside},
		{"//server/share/x", sharedbuf.ErrOutside},
		{"good", sharedbuf.ErrOutside},
		{"", sharedbuf.ErrOutside},
		{good + "\x00", sharedbuf.ErrOutside},
		{dir, sharedbuf.ErrOutside},
		{filepath.Join(dir, "sub"), sharedbuf.ErrOutside},
		{link, sharedbuf.ErrOutside},
		{linkedDir + "/secret", sharedbuf.ErrOutside},
		{hard, sharedbuf.ErrOutside},
		{filepath.Join(dir, "none"), sharedbuf.ErrNotFound},
		{good + "/below", sharedbuf.ErrFailed},
		{"memfd:1", sharedbuf.ErrUnsupported},
	}
	if os.Getuid() == 0 {
		foreign := write(filepath.Join(dir, "foreign"))
		if err := os.Chown(foreign, 12345, 12345); err != nil {
			t.Fatal(err)
		}
		tests = append(tests, struct {
			path string
			want sharedbuf.Code
		}{foreign, sharedbuf.ErrNotOwner})
	}
	c := connect(t, ln)
	for _, test := range tests {
		for op, arguments := range map[string]any{"process": struct{}{}, "fill": map[string]int{"pattern": 1}} {
			reply := c.ask(map[string]any{"api": "shared_buffer", "request_id": 5, "operation": op, "arguments": arguments,
				"file_path": test.path, "buffer_size": 100, "buffer_id": 1})
			if reply.Code != test.want {
				t.Errorf("%s %q: %+v, want %q", op, test.path, reply, test.want)
			}
		}
	}
	if text, err := os.ReadFile(secret); err != nil || string(text) != string(make([]byte, 100)) {
		t.Errorf("the secret is %q, %v", text, err)
	}
	for name, size := range map[string]int64{"short": 101, "long": 99} {
		reply := c.ask(map[string]any{"api": "shared_buffer", "operation": "process", "file_path": good, "buffer_size": size, "buffer_id": 1})
		if reply.Code != sharedbuf.ErrSize {
			t.Errorf("a file that is too %s: %+v", name, reply)
		}
	}
}

// A file that is cut short while it is mapped gives an error, and no more.
func TestTruncatedWhileMapped(t *testing.T) {
	ln, dir := tcp(t), t.TempDir()
	path := filepath.Join(dir, "buffer")
	cut := func(*host.Call) (any, error) { return nil, os.Truncate(path, 4096) }
	serve(t, ln, host.Config{Dir: dir, Operations: []host.Operation{{Name: "cut", Access: host.ReadWrite, Run: cut}}})
	c := connect(t, ln)
	pattern := map[string]any{"pattern": 0}
	for _, then := range []map[string]any{
		{"operation": "process"}, {"operation": "checksum"},
		{"operation": "verify", "arguments": pattern}, {"operation": "fill", "arguments": pattern},
	} {
		if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		request := map[string]any{"api": "shared_buffer", "operation": "cut", "then": []any{then}, "file_path": path, "buffer_size": 1 << 20}
		if reply := c.ask(request); reply.Code != sharedbuf.ErrTruncated || !strings.Contains(reply.Error, "step 2") {
			t.Errorf("%v: %+v, want truncated", then, reply)
		}
	}
}

// A request for another generation than the buffer has is refused.
func TestStale(t *testing.T) {
	ln, dir := tcp(t), t.TempDir()
	serve(t, ln, host.Config{Dir: dir})
	b := alloc(t, dial(t, ln, dir), 100)
	if _, err := b.Process(t.Context(), sharedbuf.Process()); err != nil {
		t.Fatal(err)
	}
	c := connect(t, ln)
	for generation, want := range map[uint64]sharedbuf.Code{1: sharedbuf.ErrStale, 2: "", 3: sharedbuf.ErrStale} {
		reply := c.ask(map[string]any{"api": "shared_buffer", "operation": "process", "file_path": b.Path(),
			"buffer_size": 100, "buffer_id": b.ID(), "generation": generation})
		if reply.Code != want {
			t.Errorf("generation %d: %+v, want %q", generation, reply, want)
		}
	}
}

// The guest calls the directory by another name than the host.
func TestTranslated(t *testing.T) {
	ln, root := tcp(t), t.TempDir()
	there := filepath.Join(root, "there")
	here := filepath.Join(root, "here")
	if err := errors.Join(os.Mkdir(there, 0o700), os.Symlink(there, here)); err != nil {
		t.Fatal(err)
	}
	rule, err := sharedbuf.ParseRule(here + "=" + there)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, ln, host.Config{Dir: there, Translate: sharedbuf.Translation{rule}})
	b := alloc(t, dial(t, ln, here), 100)
	if !strings.HasPrefix(b.Path(), here) {
		t.Errorf("path %s", b.Path())
	}
	if _, err := b.Process(t.Context(), sharedbuf.Fill(1)); err != nil || b.Bytes()[0] != 1 {
		t.Error(err)
	}
}
