// SPDX-License-Identifier: Apache-2.0

package confine

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// A Process is a worker that was started by Start. Its methods may be called
// concurrently.
type Process struct {
	cmd    *exec.Cmd
	stderr *lineLogger
	gone   chan struct{}
}

// Start starts command as a worker, see Spawn, with the given variables added
// to its environment, and returns the connection to it too. What it writes to
// its standard error goes to log. The process is waited for.
func Start(command []string, log *slog.Logger, variables ...string) (*Process, *net.UnixConn, error) {
	p := &Process{cmd: exec.Command(command[0], command[1:]...), stderr: &lineLogger{log: log}, gone: make(chan struct{})}
	p.cmd.Env = append(withRealDrivers(os.Environ()), variables...)
	p.cmd.Stderr = p.stderr
	p.cmd.WaitDelay = time.Second // should a descendant of the worker keep its stderr open
	var conn *net.UnixConn
	started := make(chan error)
	go func() {
		// The worker dies with the thread that started it; the thread stays
		// with this goroutine for as long as the worker lives.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		var err error
		conn, err = Spawn(p.cmd)
		started <- err
		if err != nil {
			return
		}
		p.cmd.Wait() // its error is in ProcessState
		close(p.gone)
	}()
	if err := <-started; err != nil {
		return nil, nil, fmt.Errorf("start worker %q: %w", command[0], err)
	}
	return p, conn, nil
}

// PID returns the process's number.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Kill ends the process by force.
func (p *Process) Kill() { p.cmd.Process.Kill() } // an error means that it has ended

// Gone is closed when the process has ended, and all that it had is free.
func (p *Process) Gone() <-chan struct{} { return p.gone }

// State says how the process ended, as in "signal: killed". It may be called
// once Gone is closed.
func (p *Process) State() string { return p.cmd.ProcessState.String() }

// LastWords returns what best tells why the process ended, of what it wrote to
// its standard error: the start of a crash report, else the last line. It may
// be called once Gone is closed.
func (p *Process) LastWords() string { return p.stderr.last() }

// lineLogger logs what a worker writes to stderr.
type lineLogger struct {
	log     *slog.Logger
	part    []byte
	tail    string
	crashed bool
}

func (w *lineLogger) Write(p []byte) (int, error) {
	const longest = 4 << 10
	w.part = append(w.part, p...)
	for {
		line, rest, found := bytes.Cut(w.part, []byte("\n"))
		if !found && len(w.part) < longest {
			return len(p), nil
		}
		w.part = rest
		w.log.Debug("worker says", "line", string(line))
		if !w.crashed {
			w.tail = string(line)
			w.crashed = strings.HasPrefix(w.tail, "panic:") || strings.HasPrefix(w.tail, "fatal error:") || strings.HasPrefix(w.tail, "SIG")
		}
	}
}

// last returns the line that LastWords is about.
func (w *lineLogger) last() string {
	if len(w.part) > 0 && !w.crashed {
		return string(w.part)
	}
	return w.tail
}

// OwnDriver is the file name of the manifest by which Vulkan's loader finds
// memspan's own driver: the one that has a worker do the work.
const OwnDriver = "memspan_icd.json"

// withRealDrivers takes memspan's own driver out of the variables that name
// drivers: a worker runs the machine's own, and would otherwise ask for a
// worker in turn.
func withRealDrivers(env []string) []string {
	ours := func(path string) bool { return filepath.Base(path) == OwnDriver }
	var kept []string
	for _, v := range env {
		name, value, _ := strings.Cut(v, "=")
		switch name {
		case "VK_DRIVER_FILES", "VK_ADD_DRIVER_FILES", "VK_ICD_FILENAMES":
			list := filepath.SplitList(value)
			if slices.ContainsFunc(list, ours) {
				list = slices.DeleteFunc(list, ours)
				if len(list) == 0 {
					continue
				}
				v = name + "=" + strings.Join(list, string(filepath.ListSeparator))
			}
		}
		kept = append(kept, v)
	}
	return kept
}
