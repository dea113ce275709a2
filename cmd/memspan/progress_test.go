// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// openTerminal returns the two ends of a pseudo-terminal.
func openTerminal(t *testing.T) (screen, terminal *os.File) {
	t.Helper()
	screen, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { screen.Close() })
	fd := int(screen.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { terminal.Close() })
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80}); err != nil {
		t.Fatal(err)
	}
	return screen, terminal
}

// A bar is drawn on a terminal, for what takes a while.
func TestProgressIsForTerminals(t *testing.T) {
	screen, terminal := openTerminal(t)
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	file, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()

	t.Setenv("TERM", "xterm")
	for name, to := range map[string]io.Writer{"/dev/null": null, "a file": file, "a pipe": w, "no file": io.Discard} {
		if p := newProgress(to, "put x", 1<<30); p != nil {
			p.stop()
			t.Errorf("%s has a progress bar", name)
		}
		if p := newSteps(to, "steps", 10); p != nil {
			p.stop()
			t.Errorf("%s has a bar of steps", name)
		}
	}
	if newProgress(terminal, "put x", longStep-1) != nil {
		t.Error("a short step has a bar")
	}
	p := newProgress(terminal, "put x", 1<<30)
	if p == nil {
		t.Fatal("a terminal has no bar")
	}
	p.add(1 << 29)
	// It draws by itself, a few times a second.
	var drawn strings.Builder
	for buf := make([]byte, 4096); !strings.Contains(drawn.String(), "512.0 MiB / 1.0 GiB"); {
		n, err := screen.Read(buf)
		if err != nil {
			t.Fatalf("drawn: %q, then %v", drawn.String(), err)
		}
		drawn.Write(buf[:n])
	}
	if !strings.Contains(drawn.String(), "put x") {
		t.Errorf("drawn: %q", drawn.String())
	}
	p.stop()
	p.stop()

	t.Setenv("TERM", "dumb")
	if newProgress(terminal, "put x", 1<<30) != nil {
		t.Error("a dumb terminal has a bar")
	}
}
