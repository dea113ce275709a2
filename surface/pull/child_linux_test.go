// SPDX-License-Identifier: Apache-2.0

package pull_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/memspan/memspan/surface"
	"github.com/memspan/memspan/surface/pull"
	"github.com/memspan/memspan/wire"
)

// What a child process is to do: a word, a ticket and a path.
const childEnv = "MEMSPAN_PULL_CHILD"

// child pulls in a process of its own.
func child() {
	args := strings.Fields(os.Getenv(childEnv))
	ticket, err := surface.ParseTicket(args[1])
	if err == nil && args[0] == "small" {
		err = syscall.Mount("none", filepath.Dir(args[2]), "tmpfs", 0, "size=1m")
		if err != nil {
			fmt.Println("no mount:", err)
			return
		}
	}
	var s *pull.Surface
	if err == nil {
		s, err = pull.Open(context.Background(), ticket, pull.Options{})
	}
	if err == nil {
		defer s.Close()
		err = s.ToFile(context.Background(), args[2], all)
	}
	switch {
	case err == nil:
		fmt.Println("done")
		return
	case !errors.Is(err, syscall.ENOSPC):
		fmt.Println("failed:", err)
		return
	}
	// With more room it goes on.
	fmt.Println("full")
	if err := syscall.Mount("none", filepath.Dir(args[2]), "", syscall.MS_REMOUNT, "size=64m"); err != nil {
		fmt.Println("no mount:", err)
		return
	}
	if err := s.ToFile(context.Background(), args[2], all); err != nil {
		fmt.Println("failed:", err)
		return
	}
	got, err := os.ReadFile(args[2])
	fmt.Println("then", surface.Sum(got), err)
}

func command(t *testing.T, role string, ticket *surface.Ticket, path string) *exec.Cmd {
	text, err := ticket.Text()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+role+" "+text+" "+path)
	return cmd
}

// A puller that is killed leaves what the next goes on with.
func TestKilledPuller(t *testing.T) {
	content := random(40*mib + 5)
	h := expose(t, content, mib, nil)
	path := filepath.Join(t.TempDir(), "file")
	const before = 36 // reads
	reached := make(chan struct{})
	var reads atomic.Int64
	h.onRead = func(*wire.Conn, wire.Header, wire.MemoryCommand) bool {
		n := reads.Add(1)
		if n == before {
			close(reached)
		}
		return n >= before
	}
	ticket := h.rooted(h.tcp())
	cmd := command(t, "pull", ticket, path)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-reached
	if _, err := os.Stat(path); err == nil {
		t.Error("there is a file before its time")
	}
	cmd.Process.Kill()
	cmd.Wait()
	reads.Store(-1 << 40)
	s := open(t, ticket, pull.Options{})
	if err := s.ToFile(t.Context(), path, all); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, content) {
		t.Errorf("other bytes, or %v", err)
	}
	// What was saved last is at most so many bytes behind, and as many may have been under way.
	if again := reads.Load() + 1<<40; again > 41-before+16+20 {
		t.Errorf("%d of 41 chunks were pulled again", again)
	} else {
		t.Logf("%d of 41 chunks were pulled again", again)
	}
}

// A full disk is said to be full, and with more room the pull goes on.
func TestFullDisk(t *testing.T) {
	for name, host := range map[string]func(content []byte) (*host, *surface.Ticket){
		"known size": func(content []byte) (*host, *surface.Ticket) {
			h := expose(t, content, 64*kib, nil)
			return h, h.rooted(h.tcp())
		},
		"unknown": func(content []byte) (*host, *surface.Ticket) {
			h := grow(t, 64*kib, nil)
			h.add(content)
			address := h.tcp()
			return h, h.rootless(address)
		},
	} {
		t.Run(name, func(t *testing.T) {
			content := random(5*mib + 99)
			h, ticket := host(content)
			cmd := command(t, "small", ticket, filepath.Join(t.TempDir(), "file"))
			cmd.SysProcAttr = &syscall.SysProcAttr{
				Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
				UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
				GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
			}
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				t.Skip(err)
			}
			if name == "unknown" {
				h.seal()
			}
			cmd.Wait()
			if strings.HasPrefix(out.String(), "no mount") {
				t.Skip(out.String())
			}
			if want := fmt.Sprintln("full") + fmt.Sprintln("then", surface.Sum(content), nil); out.String() != want {
				t.Errorf("%s, want %s", out.String(), want)
			}
		})
	}
}

// blocks returns how many bytes a file takes.
func blocks(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}

// Zeros take no room.
func TestSparseFile(t *testing.T) {
	content := make([]byte, 64*mib)
	copy(content[10*mib:], random(mib))
	h := expose(t, content, mib, nil)
	path := filepath.Join(t.TempDir(), "file")
	if err := open(t, h.rooted(h.tcp()), pull.Options{}).ToFile(t.Context(), path, all); err != nil {
		t.Fatal(err)
	}
	if n := blocks(t, path); n > 2*mib {
		t.Errorf("the file takes %d bytes", n)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, content) {
		t.Errorf("other bytes, or %v", err)
	}
}
