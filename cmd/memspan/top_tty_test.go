// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/memspan/memspan"
)

// top on a terminal: it draws, takes keys, follows the terminal's size, and
// leaves with q.
func TestTopOnATerminal(t *testing.T) {
	ctx := t.Context()
	path, client := serveHere(t)
	if _, err := client.Alloc(ctx, memspan.SpanConfig{Name: "watched", Size: 3 << 20}); err != nil {
		t.Fatal(err)
	}

	screen, terminal := openTerminal(t)
	cmd := exec.Command("memspan", "top", "--address", path)
	cmd.Env = append(os.Environ(), "TERM=xterm-256color", "COLORTERM=", "NO_COLOR=")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = terminal, terminal, terminal
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	terminal.Close() // the program's now: its end is the screen's
	defer cmd.Process.Kill()

	var drawn strings.Builder
	until := func(want string) {
		t.Helper()
		for buf := make([]byte, 4096); !strings.Contains(drawn.String(), want); {
			n, err := screen.Read(buf)
			if err != nil {
				t.Fatalf("%q is not drawn, but %q, then %v", want, drawn.String(), err)
			}
			drawn.Write(buf[:n])
		}
		drawn.Reset()
	}
	press := func(keys string) {
		if _, err := screen.WriteString(keys); err != nil {
			t.Fatal(err)
		}
	}
	until("watched")
	press("\r")
	// A terminal of another size is drawn on anew.
	if err := unix.IoctlSetWinsize(int(screen.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 30, Col: 100}); err != nil {
		t.Fatal(err)
	}
	until("host (home)")
	press("q")
	until("\x1b[?1049l") // back to the user's own screen
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ends with %v", err)
	}
}
