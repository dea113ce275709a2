// SPDX-License-Identifier: Apache-2.0

//go:build linux

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/tier/vram"
)

// roleEnv says what a child process of a test is.
const roleEnv = "MEMSPAN_E2E_ROLE"

// TestMain runs the tests or, in their children, a worker, a server or a
// client.
func TestMain(m *testing.M) {
	if os.Getenv("MEMSPAN_WORKER") == "1" {
		exit(vram.Worker(context.Background()))
	}
	role := os.Getenv(roleEnv)
	if role == networkRole {
		if err := startNetwork(); err != nil {
			exit(err)
		}
	}
	if role == "" || role == networkRole {
		// Much of what the tests do is to wait, for slow links and for dying
		// processes. The command line says otherwise if it wants.
		flag.Set("test.parallel", "6")
		goleak.VerifyTestMain(m)
		return
	}
	c := &console{json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)}
	switch ctx := context.Background(); role {
	case "server":
		exit(serveRole(ctx, c))
	case "holder":
		exit(holderRole(ctx, c))
	case "locker":
		exit(lockerRole(ctx, c))
	case "busy":
		exit(busyRole(ctx, c))
	case "mapper":
		exit(mapperRole(ctx, c))
	case "bulk":
		exit(bulkRole(ctx, c))
	default:
		exit(fmt.Errorf("unknown role %q", role))
	}
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// A console is a child's line to its test: JSON values in both directions.
type console struct {
	in  *json.Decoder
	out *json.Encoder
}

func (c *console) say(v any) error  { return c.out.Encode(v) }
func (c *console) hear(v any) error { return c.in.Decode(v) }

// begin hears what a child is to do, into args, and connects to the address
// that is part of it.
func (c *console) begin(ctx context.Context, args any, address *string, opts memspan.Options) (*memspan.Client, error) {
	if err := c.hear(args); err != nil {
		return nil, err
	}
	opts.Token = token
	return memspan.Dial(ctx, *address, &opts)
}

// wait returns when the test has let go.
func (c *console) wait() error {
	var v any
	if err := c.in.Decode(&v); err != io.EOF {
		return fmt.Errorf("the test said %v, want the end (%v)", v, err)
	}
	return nil
}

// A process is the test's side of a child.
type process struct {
	t    testing.TB
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *json.Decoder
	over bool
}

// startProcess runs a command that ends when its standard input does, at the
// latest with the test.
func startProcess(t testing.TB, cmd *exec.Cmd) *process {
	t.Helper()
	cmd.Stderr = newLogbook(t)
	in, err := cmd.StdinPipe()
	check(t, err)
	out, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	p := &process{t: t, cmd: cmd, in: in, out: json.NewDecoder(out)}
	t.Cleanup(p.end)
	return p
}

// A logbook keeps what a process or a server says, and shows it if the test
// fails.
type logbook struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func newLogbook(t testing.TB) *logbook {
	b := new(logbook)
	t.Cleanup(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if t.Failed() && b.text.Len() > 0 {
			t.Logf("log:\n%s", b.text.Bytes())
		}
	})
	return b
}

func (b *logbook) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

// child runs this binary in a role, with args as the first it hears.
func child(t testing.TB, role string, args any) *process {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleEnv+"="+role)
	p := startProcess(t, cmd)
	p.say(args)
	return p
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) say(v any) {
	p.t.Helper()
	check(p.t, json.NewEncoder(p.in).Encode(v))
}

func (p *process) hear(v any) {
	p.t.Helper()
	if err := p.out.Decode(v); err != nil {
		p.t.Fatalf("%s process %d: %v", p.cmd.Path, p.pid(), err)
	}
}

// kill ends the process as kill -9 does.
func (p *process) kill() {
	p.over = true
	if err := p.cmd.Process.Kill(); err != nil {
		p.t.Error(err)
	}
	p.in.Close()
	p.cmd.Wait() // says that it was killed
}

// end lets the process go, and waits until it has ended.
func (p *process) end() {
	p.in.Close()
	p.wait()
}

// wait waits until the process has ended well. Race reports and panics make it
// end badly.
func (p *process) wait() {
	if p.over {
		return
	}
	p.over = true
	// It says where it hangs. What a daemon owes its disk may take a minute, where
	// many tests write at a time.
	hung := time.AfterFunc(patience, func() { p.cmd.Process.Signal(syscall.SIGQUIT) })
	defer hung.Stop()
	if err := p.cmd.Wait(); err != nil {
		p.t.Errorf("process %d: %v", p.pid(), err)
	}
}

func check(t testing.TB, err error) {
	if err != nil {
		t.Helper()
		t.Fatal(err)
	}
}

// want checks that err is of the given kind.
func want(t testing.TB, what string, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("%s: error %v, want %v", what, err, kind)
	}
}

// patience bounds waits that are never reached but by a hang.
const patience = 3 * time.Minute

// eventually polls what no event tells, until it is so.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still not: %s", what)
		}
	}
}

// slow reports whether tests may take minutes.
func slow() bool { return os.Getenv("MEMSPAN_SLOW") != "" }
