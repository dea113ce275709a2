// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/memspan/memspan/internal/confine"
)

func TestMain(m *testing.M) {
	// The test binary is the memspan command too, and so its own daemon and
	// worker.
	testscript.Main(m, map[string]func(){"memspan": main})
}

// patience bounds the waits of the scripts. It is never reached but by a hang.
const patience = 2 * time.Minute

// TestScript runs the stories in testdata/script. With MEMSPAN_BINARY set they
// are told of that program instead of the test binary.
func TestScript(t *testing.T) {
	bin := ""
	if program := os.Getenv("MEMSPAN_BINARY"); program != "" {
		bin = t.TempDir()
		if err := os.Symlink(program, filepath.Join(bin, "memspan")); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(program); err != nil {
			t.Fatalf("MEMSPAN_BINARY: %v", err)
		}
	}
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		RequireExplicitExec: true,
		Deadline:            time.Now().Add(4 * patience), // a script that hangs says where
		Setup: func(env *testscript.Env) error {
			if bin != "" {
				env.Setenv("PATH", bin+string(filepath.ListSeparator)+env.Getenv("PATH"))
			}
			env.Vars = append(env.Vars, inherited()...)
			run := filepath.Join(env.WorkDir, ".run")
			env.Setenv("XDG_RUNTIME_DIR", run)
			env.Setenv("XDG_CONFIG_HOME", filepath.Join(env.WorkDir, ".config"))
			setup, err := filepath.Abs(filepath.Join("..", "..", "scripts", "setup"))
			if err != nil {
				return err
			}
			env.Setenv("SETUP", setup)
			kernels, err := filepath.Abs(filepath.Join("..", "..", "tier", "vram", "testdata"))
			if err != nil {
				return err
			}
			env.Setenv("KERNELS", kernels)
			env.Values[daemonsKey{}] = make(daemons)
			return os.Mkdir(run, 0o700)
		},
		Condition: func(name string) (bool, error) {
			switch name {
			case "vulkan":
				return os.Getenv("MEMSPAN_TEST_NO_VULKAN") == "", nil
			case "driver": // stands beside the program
				_, err := os.Stat(filepath.Join(filepath.Dir(os.Getenv("MEMSPAN_BINARY")), confine.OwnDriver))
				return err == nil && os.Getenv("MEMSPAN_BINARY") != "", nil
			}
			return false, fmt.Errorf("unknown condition %q", name)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"serve":  cmdServe,
			"host":   cmdHost,
			"end":    cmdEnd,
			"exit":   cmdExit,
			"json":   cmdJSON,
			"random": cmdRandom,
			"until":  cmdUntil,
			"certs":  cmdCerts,
			"signal": cmdSignal,

			"contend": cmdContend,
		},
	})
}

// inherited are the variables that scripts have from their test: which Vulkan
// drivers there are, where coverage goes, and that programs built with the race
// detector need not sit a second before they exit.
func inherited() []string {
	env := []string{"GORACE=atexit_sleep_ms=0"}
	for _, v := range os.Environ() {
		if strings.HasPrefix(v, "VK_") || strings.HasPrefix(v, "GOCOVERDIR=") {
			env = append(env, v)
		}
	}
	return env
}

// daemons are those that a script has started, by name.
type daemons map[string]*testDaemon

// daemonsKey finds them among a script's values.
type daemonsKey struct{}

type testDaemon struct {
	cmd     *exec.Cmd
	manager net.PacketConn // told how the daemon is doing
	exited  chan error
}

// notified returns the next thing that the daemon tells its service manager.
func (d *testDaemon) notified() (string, error) {
	d.manager.SetReadDeadline(time.Now().Add(patience))
	buf := make([]byte, 64)
	n, _, err := d.manager.ReadFrom(buf)
	return string(buf[:max(n, 0)]), err
}

// serve NAME [ARG...] starts 'memspan serve ARG...' and waits until it says
// that it is ready. Its addresses are $NAME_unix, $NAME_tcp and $NAME_tls; its
// standard error is the file NAME.log.
func cmdServe(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: serve NAME [ARG...]")
	}
	beginDaemon(ts, "serve", args[0], args[1:])
}

// host NAME [ARG...] does the same with 'memspan host ARG...'.
func cmdHost(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: host NAME [ARG...]")
	}
	beginDaemon(ts, "host", args[0], args[1:])
}

func beginDaemon(ts *testscript.TestScript, command, name string, args []string) {
	os.Remove(ts.MkAbs(name + ".notify")) // of an earlier one of that name
	manager, err := net.ListenPacket("unixgram", ts.MkAbs(name+".notify"))
	ts.Check(err)
	ts.Defer(func() { manager.Close() })
	log, err := os.Create(ts.MkAbs(name + ".log"))
	ts.Check(err)
	defer log.Close()
	program, err := lookPath(ts, "memspan")
	ts.Check(err)
	cmd := exec.Command(program, append([]string{command, "--json"}, args...)...)
	cmd.Dir = ts.MkAbs(".")
	cmd.Env = environ(ts, "NOTIFY_SOCKET="+manager.LocalAddr().String())
	cmd.Stderr = log
	stdout, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	d := &testDaemon{cmd, manager, make(chan error, 1)}
	var said struct{ Addresses []string }
	decoded := make(chan error, 1)
	go func() {
		err := json.NewDecoder(stdout).Decode(&said)
		decoded <- err
		d.exited <- cmd.Wait()
	}()
	ts.Defer(func() {
		cmd.Process.Kill()
		ts.Logf("daemon %s ended: %v\n%s", name, <-d.exited, ts.ReadFile(name+".log"))
	})
	failed := func(what string, err error) {
		ts.Fatalf("daemon %s: %s: %v\n%s", name, what, err, ts.ReadFile(name+".log"))
	}
	if err := <-decoded; err != nil {
		failed("says nothing", err)
	}
	if state, err := d.notified(); err != nil || state != "READY=1" {
		failed(fmt.Sprintf("notified %q", state), err)
	}
	for _, address := range said.Addresses {
		scheme, _, _ := strings.Cut(address, ":")
		ts.Setenv(name+"_"+scheme, address)
	}
	ts.Setenv(name+"_pid", strconv.Itoa(cmd.Process.Pid))
	ts.Value(daemonsKey{}).(daemons)[name] = d
}

// lookPath finds a program in the script's PATH, which is not this process's.
func lookPath(ts *testscript.TestScript, name string) (string, error) {
	for _, dir := range filepath.SplitList(ts.Getenv("PATH")) {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("no %s in PATH", name)
}

// environ returns the script's variables that a daemon needs, and more.
func environ(ts *testscript.TestScript, more ...string) []string {
	env := append(inherited(), more...)
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "MEMSPAN_SOCKET"} {
		if v := ts.Getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// end NAME sends a daemon SIGTERM and waits for it to exit 0; with ! it kills
// the daemon.
func cmdEnd(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: [!] end NAME")
	}
	d := ts.Value(daemonsKey{}).(daemons)[args[0]]
	if d == nil {
		ts.Fatalf("no daemon %s", args[0])
	}
	sig := syscall.SIGTERM
	if neg {
		sig = syscall.SIGKILL
	}
	ts.Check(d.cmd.Process.Signal(sig))
	if !neg {
		if state, err := d.notified(); err != nil || state != "STOPPING=1" {
			ts.Fatalf("daemon %s notified %q: %v", args[0], state, err)
		}
	}
	select {
	case err := <-d.exited:
		d.exited <- err // for the deferred wait
		if err != nil && !neg {
			ts.Fatalf("daemon %s: %v", args[0], err)
		}
	case <-time.After(patience):
		ts.Fatalf("daemon %s does not stop", args[0])
	}
}

// exit CODE PROGRAM [ARG...] runs a program that must exit with the code.
func cmdExit(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exit CODE PROGRAM [ARG...]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// json [-stderr] PATH WANT checks that the last standard output, or error, is
// one JSON document whose value at PATH, like .span.size or .[0].name, prints
// as WANT. The value of an array or object is its length.
func cmdJSON(ts *testscript.TestScript, neg bool, args []string) {
	stream := "stdout"
	if len(args) > 0 && args[0] == "-stderr" {
		stream, args = "stderr", args[1:]
	}
	if len(args) != 2 {
		ts.Fatalf("usage: [!] json [-stderr] PATH WANT")
	}
	got, err := jsonAt(ts.ReadFile(stream), args[0])
	if err != nil {
		ts.Fatalf("%v", err)
	}
	if (got == args[1]) == neg {
		ts.Fatalf("%s is %s", args[0], got)
	}
}

func jsonAt(doc, path string) (string, error) {
	dec := json.NewDecoder(strings.NewReader(doc))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return "", fmt.Errorf("what was printed is not JSON: %v", err)
	}
	if dec.More() {
		return "", errors.New("what was printed is more than one JSON document")
	}
	for key := range strings.SplitSeq(strings.Trim(path, "."), ".") {
		switch at := v.(type) {
		case map[string]any:
			next, ok := at[key]
			if !ok {
				return "", fmt.Errorf("%s: no field %q", path, key)
			}
			v = next
		case []any:
			i, err := strconv.Atoi(strings.Trim(key, "[]"))
			if key == "" {
				continue
			}
			if err != nil || i < 0 || i >= len(at) {
				return "", fmt.Errorf("%s: no element %q of %d", path, key, len(at))
			}
			v = at[i]
		default:
			return "", fmt.Errorf("%s: %q of %v", path, key, v)
		}
	}
	switch v := v.(type) {
	case map[string]any:
		return strconv.Itoa(len(v)), nil
	case []any:
		return strconv.Itoa(len(v)), nil
	}
	return fmt.Sprint(v), nil
}

// random FILE SIZE makes a file of bytes that do not compress, the same ones
// for one name and size.
func cmdRandom(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: random FILE SIZE")
	}
	var n size
	ts.Check(n.Set(args[1]))
	var seed [32]byte
	copy(seed[:], args[0])
	data := make([]byte, n)
	rand.NewChaCha8(seed).Read(data)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), data, 0o666))
}

// until PATH WANT PROGRAM [ARG...] runs the program again and again until its
// JSON output has the value.
func cmdUntil(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 {
		ts.Fatalf("usage: until PATH WANT PROGRAM [ARG...]")
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		ts.Check(ts.Exec(args[2], args[3:]...))
		got, err := jsonAt(ts.ReadFile("stdout"), args[0])
		if err == nil && got == args[1] {
			return
		}
		select {
		case <-ctx.Done():
			ts.Fatalf("%s is still %s: %v", args[0], got, err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// signal NAME PID sends a signal, like TERM or KILL, to the process whose
// number is in the variable or file PID.
func cmdSignal(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: signal NAME PIDFILE")
	}
	sig, ok := map[string]syscall.Signal{"TERM": syscall.SIGTERM, "INT": syscall.SIGINT, "KILL": syscall.SIGKILL}[args[0]]
	if !ok {
		ts.Fatalf("unknown signal %s", args[0])
	}
	pid, err := strconv.Atoi(strings.TrimSpace(ts.ReadFile(args[1])))
	ts.Check(err)
	ts.Check(syscall.Kill(pid, sig))
}
