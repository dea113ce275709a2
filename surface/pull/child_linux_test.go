// SPDX-License-Identifier: Apache-2.0

package pull_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/server"
	"github.com/memspan/memspan/surface"
	"github.com/memspan/memspan/surface/pull"
	"github.com/memspan/memspan/wire"
)

// What a child process is to do: a word, a ticket and a path.
const childEnv = "MEMSPAN_PULL_CHILD"

// child pulls in a process of its own.
func child() {
	args := strings.Fields(os.Getenv(childEnv))
	if args[0] == "serve" {
		childServes(args[1])
		return
	}
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

// childServes exposes a surface that is whole and one that is not, until it is
// killed.
func childServes(path string) {
	ctx := context.Background()
	fail := func(err error) {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
	srv, err := server.New(ctx, server.Config{Addresses: []string{"unix:" + path}})
	if err != nil {
		fail(err)
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		fail(err)
	}
	go srv.Serve(ctx, ln)
	client, err := memspan.Dial(ctx, "unix:"+path, nil)
	if err != nil {
		fail(err)
	}
	whole, err := client.ExposeBytes(ctx, random(mib), memspan.ExposeOptions{})
	if err != nil {
		fail(err)
	}
	growing, err := client.Expose(ctx, -1, memspan.ExposeOptions{Chunk: 4 * kib})
	if err != nil {
		fail(err)
	}
	for _, t := range []*surface.Ticket{whole.Ticket, growing.Ticket()} {
		text, err := t.Text()
		if err != nil {
			fail(err)
		}
		fmt.Println(text)
	}
	select {}
}

// What is mapped outlives a daemon that was killed; who waits is told.
func TestKilledDaemon(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=serve "+filepath.Join(t.TempDir(), "s"))
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	next := func() *surface.Ticket {
		lines.Scan()
		ticket, err := surface.ParseTicket(lines.Text())
		if err != nil {
			t.Fatal(lines.Text(), err)
		}
		return ticket
	}
	whole, growing := open(t, next(), pull.Options{}), open(t, next(), pull.Options{})
	if !whole.Direct() || !growing.Direct() {
		t.Error("not mapped")
	}
	waits := []func() error{
		func() error { return growing.Wait(t.Context(), 0, 1) },
		func() error { _, err := growing.ReadAt(make([]byte, 1), 0); return err },
		func() error { _, err := growing.ToMemory(t.Context(), all); return err },
		func() error { _, err := growing.CopyTo(t.Context(), io.Discard, all); return err },
		func() error { _, err := growing.Reader(t.Context()).Seek(0, io.SeekEnd); return err },
	}
	done := make(chan error)
	for _, wait := range waits {
		go func() { done <- wait() }()
	}
	cmd.Process.Kill()
	cmd.Wait()
	for range waits {
		if err := <-done; !errors.Is(err, wire.PeerLost) {
			t.Errorf("waiting: %v", err)
		}
	}
	if mem, err := whole.Bytes(); err != nil || !bytes.Equal(mem, random(mib)) {
		t.Errorf("mapped: %v", err)
	}
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
	content := make([]byte, 16*mib)
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
