// SPDX-License-Identifier: Apache-2.0

//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/memspan/memspan"
)

// inject makes a daemon's system calls on a file fail until the test calls heal.
// What is injected is as strace(1) takes it.
func (d *daemon) inject(t testing.TB, what, file string) (heal func()) {
	t.Helper()
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("no strace: scripts/setup test installs it")
	}
	calls, _, _ := strings.Cut(what, ":")
	cmd := exec.Command(strace, "-f", "-p", strconv.Itoa(d.pid()), "-P", file, "-e", "trace="+calls, "-e", "inject="+what, "-o", os.DevNull)
	said, err := cmd.StderrPipe()
	check(t, err)
	check(t, cmd.Start())
	lines := bufio.NewScanner(said)
	var heard strings.Builder
	for lines.Scan() {
		heard.WriteString(lines.Text() + "\n")
		if strings.Contains(lines.Text(), "attached") {
			break
		}
	}
	if !strings.Contains(heard.String(), "attached") {
		cmd.Wait()
		if strings.Contains(heard.String(), "not permitted") {
			t.Skipf("no process may trace another here: %s", &heard)
		}
		t.Fatalf("strace: %s", &heard)
	}
	healed := false
	heal = func() {
		if healed {
			return
		}
		healed = true
		cmd.Process.Signal(os.Interrupt) // it detaches
		for lines.Scan() {
		}
		cmd.Wait() // it ends as the signal has it
	}
	t.Cleanup(heal)
	return heal
}

// durable makes a span that outlives the daemon and is written through to disk.
func durable(t testing.TB, c *memspan.Client, name string, size int64) *memspan.Span {
	t.Helper()
	s, err := c.Alloc(t.Context(), memspan.SpanConfig{
		Name: name, Size: size, Home: memspan.On(memspan.Disk), Tier: memspan.On(memspan.Host), Policy: memspan.WriteThrough,
	})
	check(t, err)
	return s
}

// After an fsync that failed nothing is said to be durable, what was stays
// readable, and the next daemon finds it.
func TestFailedFsync(t *testing.T) {
	t.Parallel()
	m := startMortal(t, settings{})
	c := m.d.dial(t, "unix")
	s := durable(t, c, "s", 3*block)
	first, second := bytes.Repeat([]byte{1}, 3*block), bytes.Repeat([]byte{2}, 3*block)
	_, err := s.WriteAt(t.Context(), first, 0)
	check(t, err)

	heal := m.d.inject(t, "fdatasync:error=EIO", filepath.Join(m.settings.Data, "blocks"))
	n, err := s.WriteAt(t.Context(), second, 0) // durable as a whole, or not there
	if !errors.Is(err, memspan.ErrTierFailed) || n != 0 {
		t.Errorf("a write that could not be made durable: %d, %v", n, err)
	}
	heal()
	// What the disk holds is not known, so it takes no more, healthy or not.
	if n, err := s.WriteAt(t.Context(), second, 0); !errors.Is(err, memspan.ErrTierFailed) || n != 0 {
		t.Errorf("a write after that: %d, %v", n, err)
	}
	if _, err := s.WriteAt(t.Context(), []byte("x"), 0); !errors.Is(err, memspan.ErrTierFailed) {
		t.Errorf("a small write after that: %v", err)
	}
	if _, err := c.Sync(t.Context()); !errors.Is(err, memspan.ErrTierFailed) { // its end cannot be noted
		t.Errorf("a barrier: %v", err)
	}
	if _, err := c.Alloc(t.Context(), memspan.SpanConfig{Name: "another", Size: 1, Home: memspan.On(memspan.Disk)}); !errors.Is(err, memspan.ErrTierFailed) {
		t.Errorf("a new span: %v", err)
	}
	got := make([]byte, 2*block)
	if _, err := s.ReadAt(t.Context(), got, block); err != nil || !bytes.Equal(got, first[block:]) {
		t.Errorf("what was durable before does not read as it was: %v", err)
	}
	// Spans in RAM are not concerned.
	free := alloc(t, c, memspan.SpanConfig{Size: block})
	if _, err := free.WriteAt(t.Context(), second[:block], 0); err != nil {
		t.Error(err)
	}
	check(t, c.Close())

	m.kill()
	m.set(start(t, m.settings))
	c = m.d.dial(t, "unix")
	s, err = c.Open(t.Context(), "s")
	check(t, err)
	got = make([]byte, 3*block)
	_, err = s.ReadAt(t.Context(), got, 0)
	check(t, err)
	if !bytes.Equal(got, first) && !bytes.Equal(got, second) {
		t.Error("the next daemon finds neither the one nor the other, whole")
	}
	_, err = s.WriteAt(t.Context(), second, 0)
	check(t, err)
}

// A full disk refuses what does not fit, and loses nothing.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	m := startMortal(t, settings{})
	c := m.d.dial(t, "unix")
	s := durable(t, c, "s", 3*block)
	first, second := bytes.Repeat([]byte{1}, 3*block), bytes.Repeat([]byte{2}, 3*block)
	_, err := s.WriteAt(t.Context(), first, 0)
	check(t, err)

	heal := m.d.inject(t, "pwritev:error=ENOSPC", filepath.Join(m.settings.Data, "blocks"))
	for range 3 {
		if n, err := s.WriteAt(t.Context(), second, 0); !errors.Is(err, memspan.ErrBudget) || n != 0 {
			t.Errorf("a write to a full disk: %d, %v", n, err)
		}
	}
	// The log has room that it took before.
	if _, err := s.WriteAt(t.Context(), []byte("small"), 5); err != nil {
		t.Errorf("a small write to a full disk: %v", err)
	}
	// What is written back later is owed meanwhile.
	back, err := c.Alloc(t.Context(), memspan.SpanConfig{Name: "back", Size: block, Home: memspan.On(memspan.Disk)})
	check(t, err)
	_, err = back.WriteAt(t.Context(), second[:block], 0)
	check(t, err)
	eventually(t, "the failure shows", func() bool {
		st, err := back.Stat(t.Context())
		check(t, err)
		return st.Debt == 1 && strings.Contains(st.Error, "no space left")
	})
	if _, err := back.WriteAt(t.Context(), []byte{3}, 0); !errors.Is(err, memspan.ErrDebt) {
		t.Errorf("the next write does not say that the one before could not be written back: %v", err)
	}
	got := make([]byte, 2*block)
	if _, err := s.ReadAt(t.Context(), got, block); err != nil || !bytes.Equal(got, first[block:]) {
		t.Errorf("what was durable before does not read as it was: %v", err)
	}
	heal()

	// What was owed is paid once there is room.
	_, err = back.Sync(t.Context())
	check(t, err)
	_, err = s.WriteAt(t.Context(), second[:2*block], block)
	check(t, err)
	want := append(bytes.Clone(first[:block]), second[:2*block]...)
	copy(want[5:], "small")
	check(t, c.Close())
	m.kill()
	m.set(start(t, m.settings))
	s, err = m.d.dial(t, "unix").Open(t.Context(), "s")
	check(t, err)
	got = make([]byte, 3*block)
	_, err = s.ReadAt(t.Context(), got, 0)
	check(t, err)
	if !bytes.Equal(got, want) {
		t.Error("the next daemon finds other bytes")
	}
}
