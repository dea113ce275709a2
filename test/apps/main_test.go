// SPDX-License-Identifier: Apache-2.0

//go:build linux

package apps

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/memspan/memspan/internal/vk"
)

// patience bounds what one application takes. It is never reached but by a
// hang.
const patience = 4 * time.Minute

// TestMain makes the directory of what the tests build.
func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "memspan-apps-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	built = newBuilds(dir)
	// Programs built with the race detector need not sit a second before they
	// exit.
	os.Setenv("GORACE", "atexit_sleep_ms=0")
	// Much of what the tests do is to wait. The command line says otherwise if
	// it wants.
	flag.Set("test.parallel", "6")
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// builds is what the tests have built.
type builds struct {
	dir     string
	memspan func() (string, error)

	mu       sync.Mutex
	programs map[string]func() error // by path
}

var built *builds

func newBuilds(dir string) *builds {
	return &builds{dir: dir, memspan: sync.OnceValues(func() (string, error) { return buildMemspan(dir) }),
		programs: make(map[string]func() error)}
}

// buildMemspan makes the command, with the driver beside it, and returns its
// path.
func buildMemspan(dir string) (string, error) {
	if binary := os.Getenv("MEMSPAN_BINARY"); binary != "" {
		return binary, nil
	}
	program := filepath.Join(dir, "memspan")
	race := "-race=false"
	if raceDetector {
		race = "-race"
	}
	// The detector's run-time library wants the addresses of its process to
	// itself: it cannot be in a library of a foreign program. The driver is run
	// under it by the tests of vulkan/driver.
	for _, args := range [][]string{
		{"build", race, "-o", program, "../../cmd/memspan"},
		{"build", "-buildmode=c-shared", "-o", filepath.Join(dir, "libvulkan_memspan.so"), "../../cmd/libvulkan_memspan"},
	} {
		if err := command("go", args...); err != nil {
			return "", err
		}
	}
	manifest, err := os.ReadFile("../../cmd/libvulkan_memspan/memspan_icd.json")
	if err != nil {
		return "", err
	}
	return program, os.WriteFile(filepath.Join(dir, "memspan_icd.json"), manifest, 0o644)
}

// command runs a tool.
func command(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// compiler is the C compiler.
func compiler() string {
	if cc := os.Getenv("CC"); cc != "" {
		return cc
	}
	return "cc"
}

// needs fails a test where there is no Vulkan, unless the environment says that
// there is none, and skips it where a tool is missing.
func needs(t testing.TB, tools ...string) {
	t.Helper()
	if os.Getenv("MEMSPAN_TEST_NO_VULKAN") != "" {
		t.Skip("no Vulkan driver, says MEMSPAN_TEST_NO_VULKAN")
	}
	if _, err := vk.Devices(); err != nil {
		t.Fatal(err)
	}
	for _, tool := range append(tools, compiler()) {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%v (scripts/setup test installs it)", err)
		}
	}
}

// program compiles testdata/name.c or the Go program testdata/name, with its
// shaders, and returns its path.
func program(t testing.TB, name string, shaders ...string) string {
	t.Helper()
	needs(t, "glslangValidator")
	path := filepath.Join(built.dir, name)
	built.mu.Lock()
	once, ok := built.programs[path]
	if !ok {
		once = sync.OnceValue(func() error {
			for _, shader := range shaders {
				variable := strings.ReplaceAll(shader, ".", "_")
				if err := command("glslangValidator", "-V", "--target-env", "vulkan1.1", "--quiet", "--vn", variable,
					"-o", filepath.Join(built.dir, variable+".h"), filepath.Join("testdata", shader)); err != nil {
					return err
				}
			}
			if info, err := os.Stat(filepath.Join("testdata", name)); err == nil && info.IsDir() {
				return command("env", "CGO_ENABLED=1", "CGO_CFLAGS=-O1 -I"+built.dir,
					"go", "build", "-o", path, "./"+filepath.Join("testdata", name))
			}
			args := []string{"-O1", "-Wall", "-Wextra", "-Werror", "-I", built.dir, "-o", path,
				filepath.Join("testdata", name+".c"), "-lvulkan", "-lpthread"}
			if name == "gles" {
				args = append(args, "-lEGL", "-lGLESv2")
			}
			return command(compiler(), args...)
		})
		built.programs[path] = once
	}
	built.mu.Unlock()
	err := once()
	for _, header := range []string{"vulkan/vulkan.h", "EGL/egl.h", "GLES3/gl31.h"} {
		if err != nil && strings.Contains(err.Error(), header+": No such file") {
			t.Skipf("no %s (scripts/setup installs it)", header)
		}
	}
	check(t, err)
	return path
}

// transports are the ways to a daemon. "native" is none: the machine's driver.
var transports = [...]string{"unix", "tcp"}

// A daemon is a 'memspan serve' of a test's own.
type daemon struct {
	program   string
	addresses map[string]string
	token     string // a file
	cmd       *exec.Cmd
	in        io.Closer
	log       *logbook
	over      bool
}

// serve starts a daemon that ends with the test, with variables added to its
// environment.
func serve(t testing.TB, variables []string, args ...string) *daemon {
	t.Helper()
	needs(t)
	program, err := built.memspan()
	check(t, err)
	dir := t.TempDir()
	d := &daemon{program: program, token: filepath.Join(dir, "token"), log: new(logbook), addresses: make(map[string]string)}
	check(t, os.WriteFile(d.token, []byte("the token of the tests"), 0o600))
	d.cmd = exec.Command(program, append([]string{"serve", "--json", "--until-eof", "--no-vram", "--log-level", "debug",
		"--socket", filepath.Join(dir, "s"), "--token-file", d.token, "--tls-dir", dir,
		"--listen", "127.0.0.1:0", "--listen", "0.0.0.0:0"}, args...)...)
	d.cmd.Env = append(append(os.Environ(), "XDG_CACHE_HOME="+filepath.Join(built.dir, "cache")), variables...)
	d.cmd.Stderr = d.log
	d.in, err = d.cmd.StdinPipe()
	check(t, err)
	out, err := d.cmd.StdoutPipe()
	check(t, err)
	check(t, d.cmd.Start())
	t.Cleanup(func() {
		if err := d.end(); err != nil {
			t.Errorf("daemon: %v", err)
		}
		if t.Failed() {
			t.Logf("daemon:\n%s", d.log.String())
		}
	})
	var said struct{ Addresses []string }
	check(t, json.NewDecoder(out).Decode(&said))
	for _, a := range said.Addresses {
		transport, rest, _ := strings.Cut(a, ":")
		if transport == "tls" { // on all addresses; the name of this machine may not resolve
			rest = "//127.0.0.1" + rest[strings.LastIndex(rest, ":"):]
		}
		d.addresses[transport] = transport + ":" + rest
	}
	return d
}

// end stops the daemon in good order.
func (d *daemon) end() error {
	if d.over {
		return nil
	}
	d.over = true
	d.in.Close()
	kill := time.AfterFunc(patience, func() { d.cmd.Process.Kill() })
	defer kill.Stop()
	return d.cmd.Wait()
}

// kill ends the daemon as kill -9 does.
func (d *daemon) kill() {
	d.over = true
	d.cmd.Process.Kill() // an error means that it has ended
	d.cmd.Wait()         // says that it was killed
}

// command returns how to run an application: by the daemon's transport, or
// natively.
func (d *daemon) command(ctx context.Context, transport string, app ...string) *exec.Cmd {
	if transport == "native" {
		return exec.CommandContext(ctx, app[0], app[1:]...)
	}
	args := append([]string{"run", "--server", d.addresses[transport], "--token-file", d.token, "--"}, app...)
	return exec.CommandContext(ctx, d.program, args...)
}

// run runs an application to its end and returns what it printed. It must
// succeed.
func (d *daemon) run(t testing.TB, transport string, app ...string) string {
	t.Helper()
	return d.runIn(t, "", nil, transport, app...)
}

// runIn does so in a directory, with variables added to the environment.
func (d *daemon) runIn(t testing.TB, dir string, variables []string, transport string, app ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var out, diag bytes.Buffer
	cmd := d.command(ctx, transport, app...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &out, &diag
	cmd.Env = append(os.Environ(), variables...)
	// The application has this long to end by itself, then the command that
	// runs it ends, and the application is on its own.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %s: %v\n%s%s", transport, strings.Join(app, " "), err, out.Bytes(), diag.Bytes())
	}
	return out.String()
}

// same runs an application natively and by every transport, and checks that it
// prints the same.
func (d *daemon) same(t *testing.T, app ...string) {
	t.Helper()
	native := d.run(t, "native", app...)
	for _, transport := range transports {
		if out := d.run(t, transport, app...); out != native {
			t.Errorf("%s: %s:\n%s", transport, strings.Join(app, " "), difference(native, out))
		}
	}
}

// difference returns the lines of two texts that differ.
func difference(native, ours string) string {
	var b strings.Builder
	a, z := strings.Split(native, "\n"), strings.Split(ours, "\n")
	for i := range max(len(a), len(z)) {
		line := func(list []string) string {
			if i < len(list) {
				return list[i]
			}
			return "(no line)"
		}
		if line(a) != line(z) {
			fmt.Fprintf(&b, "line %d native: %s\nline %d memspan: %s\n", i+1, line(a), i+1, line(z))
		}
	}
	return b.String()
}

// A logbook keeps what a process says.
type logbook struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logbook) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logbook) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func check(t testing.TB, err error) {
	if err != nil {
		t.Helper()
		t.Fatal(err)
	}
}

// eventually polls what no event tells, until it is so.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still not: %s", what)
		}
	}
}
