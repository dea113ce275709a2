// SPDX-License-Identifier: Apache-2.0

//go:build linux

package apps

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// lostWithin is how soon an application learns that its device is lost, on a machine
// that runs who wants to run.
const lostWithin = 5 * time.Second

// A stopwatch counts naps, so that it stands still for as long as a busy machine
// has who wants to run wait for their turn.
type stopwatch struct{ naps atomic.Int64 }

const nap = 10 * time.Millisecond

// startStopwatch starts one that ends with the test.
func startStopwatch(t *testing.T) *stopwatch {
	s := new(stopwatch)
	var napping sync.WaitGroup
	napping.Go(func() {
		for ; t.Context().Err() == nil; s.naps.Add(1) {
			time.Sleep(nap)
		}
	})
	t.Cleanup(napping.Wait)
	return s
}

func (s *stopwatch) took() time.Duration { return time.Duration(s.naps.Load()) * nap }

// children returns the processes that a process has started.
func children(pid int) (list []int) {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid)) // none: it has ended
	for _, path := range threads {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // the thread has ended
		}
		for field := range strings.FieldsSeq(string(text)) {
			if n, err := strconv.Atoi(field); err == nil {
				list = append(list, n)
			}
		}
	}
	return list
}

// alive reports whether a process has not ended; who ought to wait for it may
// be gone.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

// worker returns the only worker of the daemon.
func (d *daemon) worker(t *testing.T) int {
	t.Helper()
	list := children(d.cmd.Process.Pid)
	if len(list) != 1 {
		t.Fatalf("the daemon has the processes %v, want one worker", list)
	}
	return list[0]
}

// A waiter is an application that waits for what never comes.
type waiter struct {
	cmd *exec.Cmd
	out *bufio.Reader
}

func (d *daemon) wait(t *testing.T, transport, app, name string) *waiter {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	w := &waiter{cmd: d.command(ctx, transport, app, name)}
	out, err := w.cmd.StdoutPipe()
	check(t, err)
	w.cmd.Stderr = d.log
	check(t, w.cmd.Start())
	t.Cleanup(func() {
		cancel()
		io.Copy(io.Discard, w.out)
		w.cmd.Wait() // an error where it was killed
	})
	w.out = bufio.NewReader(out)
	if line, err := w.out.ReadString('\n'); err != nil || line != "waiting\n" {
		t.Fatalf("%q, %v", line, err)
	}
	return w
}

// learns checks that the application learns in time that its device is lost,
// since something has happened, and goes on to end well.
func (w *waiter) learns(t *testing.T, since *stopwatch, within time.Duration) {
	t.Helper()
	line, err := w.out.ReadString('\n')
	if took := since.took(); err != nil || line != "VkResult -4\n" || took > within {
		t.Fatalf("%q, %v after %v, want VK_ERROR_DEVICE_LOST within %v", line, err, took, within)
	}
	rest, err := io.ReadAll(w.out)
	if string(rest) != "then -4\n" {
		t.Errorf("%q, %v, want another VK_ERROR_DEVICE_LOST", rest, err)
	}
	if err := w.cmd.Wait(); err != nil {
		t.Errorf("the application ended with %v", err)
	}
}

// TestLost has applications lose their device while they wait for it.
func TestLost(t *testing.T) {
	app := program(t, "sync", computeShader)
	for _, transport := range transports {
		t.Run("worker killed/"+transport, func(t *testing.T) {
			t.Parallel()
			d := serve(t, nil)
			w := d.wait(t, transport, app, "lost")
			start := startStopwatch(t)
			check(t, syscall.Kill(d.worker(t), syscall.SIGKILL))
			w.learns(t, start, lostWithin)
		})
		t.Run("worker stopped/"+transport, func(t *testing.T) {
			t.Parallel()
			d := serve(t, nil)
			w := d.wait(t, transport, app, "lost")
			start, pid := startStopwatch(t), d.worker(t)
			check(t, syscall.Kill(pid, syscall.SIGSTOP))
			w.learns(t, start, lostWithin)
			check(t, syscall.Kill(pid, syscall.SIGCONT))
			eventually(t, "the worker is gone", func() bool { return !alive(pid) })
		})
		t.Run("worker stopped, nobody waits/"+transport, func(t *testing.T) {
			t.Parallel()
			d := serve(t, nil)
			w := d.wait(t, transport, app, "submissions")
			start := startStopwatch(t)
			check(t, syscall.Kill(d.worker(t), syscall.SIGSTOP))
			w.learns(t, start, lostWithin)
		})
		t.Run("daemon killed/"+transport, func(t *testing.T) {
			t.Parallel()
			d := serve(t, nil)
			w := d.wait(t, transport, app, "lost")
			start, pid := startStopwatch(t), d.worker(t)
			d.kill()
			w.learns(t, start, lostWithin)
			eventually(t, "the worker is gone", func() bool { return !alive(pid) })
		})
		t.Run("application killed/"+transport, func(t *testing.T) {
			t.Parallel()
			d := serve(t, nil)
			before := memfds(t, d.cmd.Process.Pid)
			w := d.wait(t, transport, app, "lost")
			pid := d.worker(t)
			for _, child := range children(w.cmd.Process.Pid) {
				check(t, syscall.Kill(child, syscall.SIGKILL))
			}
			eventually(t, "the worker is gone", func() bool { return !alive(pid) })
			eventually(t, "the daemon holds nothing", func() bool { return slices.Equal(memfds(t, d.cmd.Process.Pid), before) })
		})
	}
}

// TestDeadline has the device work for longer than an application may.
func TestDeadline(t *testing.T) {
	app := program(t, "sync", computeShader)
	for _, transport := range transports {
		t.Run(transport, func(t *testing.T) {
			d := serve(t, nil, "--vulkan-deadline", "1s")
			w := d.wait(t, transport, app, "hang")
			w.learns(t, startStopwatch(t), lostWithin+time.Second)
			eventually(t, "the worker has ended", func() bool { return len(children(d.cmd.Process.Pid)) == 0 })
			if log := d.log.String(); strings.Contains(log, "segmentation") {
				t.Error("the worker crashed")
			}
		})
	}
}

// memfds returns what shared memory and sockets a process has.
func memfds(t *testing.T, pid int) (list []string) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	check(t, err)
	for _, e := range entries {
		if to, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && strings.Contains(to, "memfd:") {
			list = append(list, to)
		}
	}
	return list
}

// TestIsolation loads a driver into the worker that tries what a worker must
// not be able to do, and answers as its device's name.
func TestIsolation(t *testing.T) {
	needs(t, "vulkaninfo")
	home, err := os.UserHomeDir()
	check(t, err)
	for _, temporary := range []string{"/tmp", os.TempDir()} {
		if rel, err := filepath.Rel(temporary, home); err == nil && filepath.IsLocal(rel) {
			t.Skipf("the home directory %s is among temporary files, which workers may read", home)
		}
	}
	secret, err := os.CreateTemp(home, "memspan-secret-")
	if err != nil {
		t.Skipf("nothing can be written to the home directory: %v", err)
	}
	secret.Close()
	defer os.Remove(secret.Name())
	// The directory is one that workers may read: that of temporary files.
	dir, err := os.MkdirTemp("/tmp", "memspan-probe-")
	check(t, err)
	defer os.RemoveAll(dir)
	check(t, command(compiler(), "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC",
		"-o", filepath.Join(dir, "probe.so"), filepath.Join("testdata", "probe.c")))
	manifest := filepath.Join(dir, "probe.json")
	check(t, os.WriteFile(manifest, []byte(`{"file_format_version": "1.0.0", "ICD": {"library_path": "./probe.so", "api_version": "1.0.0"}}`), 0o644))
	answer := filepath.Join(dir, "answer")
	listener, err := net.Listen("unix", filepath.Join(dir, "s"))
	check(t, err)
	defer listener.Close()
	d := serve(t, []string{"VK_DRIVER_FILES=" + manifest, "VK_ICD_FILENAMES=" + manifest,
		"PROBE_FILE=" + secret.Name(), "PROBE_SOCKET=" + listener.Addr().String(), "PROBE_ANSWER=" + answer})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	d.command(ctx, "unix", "vulkaninfo", "--summary").Run() // fails: the probe is no real driver
	got, err := os.ReadFile(answer)
	check(t, err)
	if log := d.log.String(); !strings.Contains(log, "landlock") || !strings.Contains(log, "seccomp") {
		t.Skip("this kernel confines in part")
	}
	const want = "open: Permission denied\nconnect: Operation not permitted\nsocket: Permission denied\ntrace: Operation not permitted\n"
	if string(got) != want {
		t.Errorf("the worker's attempts:\n%swant:\n%s", got, want)
	}
}
