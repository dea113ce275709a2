// SPDX-License-Identifier: Apache-2.0

//go:build amd64 || arm64

package confine_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/memspan/memspan/internal/confine"
)

// A worker of this test tries what its environment's TRY names and answers the
// error it got.
func TestMain(m *testing.M) {
	if os.Getenv("TRY") != "" {
		if err := worker(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

type report struct {
	State confine.State
	Err   string
	Errno syscall.Errno
	Out   string
}

func worker() error {
	state, err := confine.Confine(os.Getenv("CACHE"))
	if err != nil {
		return err
	}
	conn, err := confine.Parent()
	if err != nil {
		return err
	}
	defer conn.Close()
	r := report{State: state}
	args := strings.Fields(os.Getenv("TRY"))
	if r.Out, err = try(args[0], args[1:], conn); err != nil {
		r.Err = err.Error()
		errors.As(err, &r.Errno)
	}
	return json.NewEncoder(conn).Encode(r)
}

func try(what string, args []string, conn net.Conn) (string, error) {
	switch what {
	case "nothing":
		return strings.Join(os.Args[1:], " "), nil
	case "read":
		b, err := os.ReadFile(args[0])
		return string(b[:min(len(b), 100)]), err
	case "list":
		_, err := os.ReadDir(args[0])
		return "", err
	case "write":
		return "", os.WriteFile(args[0], []byte("x"), 0o600)
	case "dial":
		c, err := net.Dial(args[0], args[1])
		if err == nil {
			c.Close()
		}
		return "", err
	case "listen":
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err == nil {
			l.Close()
		}
		return "", err
	case "kill":
		pid, _ := strconv.Atoi(args[0])
		return "", syscall.Kill(pid, 0)
	case "ptrace":
		return "", syscall.PtraceAttach(os.Getppid())
	case "unshare":
		return "", syscall.Unshare(syscall.CLONE_NEWUSER)
	case "clone":
		_, err := syscall.ForkExec("/bin/true", nil, &syscall.ProcAttr{Sys: &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER}})
		return "", err
	case "threads":
		done := make(chan error)
		for range 8 { // a thread each: the confinement is the whole process's
			go func() {
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
				_, err := os.ReadDir(args[0])
				done <- err
			}()
		}
		for range 8 {
			if err := <-done; !errors.Is(err, os.ErrPermission) {
				return "", fmt.Errorf("a thread may read %s: %v", args[0], err)
			}
		}
		return "", nil
	case "wait":
		fmt.Fprintln(conn, os.Getpid())
		_, err := conn.Read(make([]byte, 1))
		return "", err
	}
	return "", fmt.Errorf("test does not know %q", what)
}

// ask starts a worker that tries something and returns its report.
func ask(t *testing.T, what string) report {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.Command(os.Args[0], "an argument")
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0", "TRY="+what)
	cmd.Stderr = os.Stderr
	conn, err := confine.Spawn(cmd)
	if err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer conn.Close()
	var r report
	if err := json.NewDecoder(conn).Decode(&r); err != nil {
		t.Fatalf("worker's report: %v", err)
	}
	return r
}

func TestConfine(t *testing.T) {
	home := t.TempDir()
	if !strings.HasPrefix(home, os.TempDir()) {
		t.Fatal(home)
	}
	userHome := homeOf(t)
	state := ask(t, "nothing").State
	if !state.Full() {
		t.Logf("this kernel confines in part: %v", state)
	}

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	socket := filepath.Join(home, "s")
	unixListener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer unixListener.Close()

	const (
		anyKernel = iota
		landlock
		landlock6
		seccomp
	)
	for _, c := range []struct {
		try   string
		needs int
		want  syscall.Errno
	}{
		{"read /etc/passwd", anyKernel, 0},
		{"read /proc/self/status", anyKernel, 0},
		{"list /usr/lib", anyKernel, 0},
		{"write " + home + "/file", anyKernel, 0},
		{"write /dev/null", anyKernel, 0},
		{"list " + userHome, landlock, syscall.EACCES},
		{"threads " + userHome, landlock, 0},
		{"write /etc/memspan-test", landlock, syscall.EACCES},
		{"list /var/log", landlock, syscall.EACCES},
		{"kill " + strconv.Itoa(os.Getpid()), landlock6, syscall.EPERM},
		{"dial tcp " + listener.Addr().String(), seccomp, syscall.EACCES},
		{"dial udp 127.0.0.1:9", seccomp, syscall.EACCES},
		{"dial unix " + socket, seccomp, syscall.EPERM},
		{"dial unixgram " + socket, seccomp, syscall.EACCES},
		{"listen", seccomp, syscall.EACCES},
		{"ptrace", seccomp, syscall.EPERM},
		{"unshare", seccomp, syscall.EPERM},
		{"clone", seccomp, syscall.EPERM},
	} {
		t.Run(c.try, func(t *testing.T) {
			if c.needs == landlock && state.Landlock == 0 || c.needs == landlock6 && state.Landlock < 6 || c.needs == seccomp && !state.Seccomp {
				t.Skipf("this kernel has no such confinement: %v", state)
			}
			if r := ask(t, c.try); r.Errno != c.want || (c.want == 0) != (r.Err == "") {
				t.Errorf("got %q, want errno %v", r.Err, c.want)
			}
		})
	}
}

// homeOf returns the user's home directory, which workers may not read. Some users, as
// of containers, have it among temporary files, which they may.
func homeOf(t *testing.T) string {
	t.Helper()
	home, err := os.UserHomeDir()
	if err != nil {
		t.Skip("no home directory")
	}
	if rel, err := filepath.Rel(os.TempDir(), home); err == nil && filepath.IsLocal(rel) {
		t.Skipf("the home directory %s is among temporary files", home)
	}
	return home
}

// TestShaderCache writes to a directory that only the argument allows.
func TestShaderCache(t *testing.T) {
	if ask(t, "nothing").State.Landlock == 0 {
		t.Skip("this kernel does not confine files")
	}
	home := homeOf(t)
	dir, err := os.MkdirTemp(home, "memspan-test-")
	if err != nil {
		t.Skip(err)
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "f")
	if r := ask(t, "write "+file); r.Errno != syscall.EACCES {
		t.Errorf("without a cache: %q", r.Err)
	}
	t.Setenv("CACHE", dir)
	if r := ask(t, "write "+file); r.Err != "" {
		t.Errorf("to the cache: %q", r.Err)
	}
	if r := ask(t, "list "+home); r.Errno != syscall.EACCES {
		t.Errorf("beside the cache: %q", r.Err)
	}
}

func TestConfineKeepsArguments(t *testing.T) {
	if r := ask(t, "nothing"); r.Out != "an argument" {
		t.Errorf("arguments %q", r.Out)
	}
}

// TestMarkIsNotInherited starts a worker from a process that has the mark.
func TestMarkIsNotInherited(t *testing.T) {
	want := ask(t, "nothing").State
	t.Setenv("MEMSPAN_CONFINED", "0 false")
	if got := ask(t, "nothing").State; got != want {
		t.Errorf("confined by %v, without the mark by %v", got, want)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "TRY=nothing")
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "is not confined") {
		t.Errorf("a process that claims to be confined: %v\n%s", err, out)
	}
}

// TestParentDies starts, on a thread of its own, a worker that waits for ever,
// ends the thread, and sees the worker end too.
func TestParentDies(t *testing.T) {
	type started struct {
		cmd  *exec.Cmd
		conn *net.UnixConn
		err  error
	}
	result := make(chan started)
	var start func()
	start = func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if syscall.Gettid() == os.Getpid() {
			// The first thread does not end. It is occupied now, so that the
			// next try gets another.
			done := make(chan struct{})
			go func() { defer close(done); start() }()
			<-done
			runtime.UnlockOSThread()
			return
		}
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "TRY=wait")
		conn, err := confine.Spawn(cmd)
		result <- started{cmd, conn, err}
	}
	go start()
	s := <-result
	if s.err != nil {
		t.Fatal(s.err)
	}
	defer s.conn.Close()
	s.conn.SetDeadline(time.Now().Add(2 * time.Minute))
	bufio.NewReader(s.conn).ReadString('\n') // an error if the signal came first
	var exit *exec.ExitError
	if err := s.cmd.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("worker ended with %v, want killed", err)
	}
}

func TestParentByHand(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "TRY=nothing")
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "started by their parent") {
		t.Errorf("%v\n%s", err, out)
	}
}
