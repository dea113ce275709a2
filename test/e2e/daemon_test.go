// SPDX-License-Identifier: Apache-2.0

//go:build linux

package e2e

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/server"
	"github.com/memspan/memspan/tier/vram"
)

const token = "the token of the tests"

// transports are the ways to a daemon.
var transports = [...]string{"unix", "tcp", "tls"}

// settings say what daemon a test wants.
type settings struct {
	Process      bool   // of its own
	Dir          string // for its socket and certificate
	VRAM         bool
	HideVisible  bool
	HideCoherent bool
	HostBudget   int64
	VRAMBudget   int64
	IOTimeout    time.Duration
	Data         string // the directory of the Disk tier, "": none

	SurfaceBudget int64
}

func (s settings) config(log io.Writer) server.Config {
	cfg := server.Config{
		Token: token, HostBudget: s.HostBudget, IOTimeout: s.IOTimeout, Data: s.Data,
		SurfaceBudget: s.SurfaceBudget,
		Logger:        slog.New(slog.NewTextHandler(log, nil)),
	}
	if s.VRAM {
		cfg.VRAM = &vram.Config{
			Command:          []string{os.Args[0]},
			Budget:           s.VRAMBudget,
			HideHostVisible:  s.HideVisible,
			HideHostCoherent: s.HideCoherent,
		}
	}
	return cfg
}

// A daemon is a running server and the ways to it.
type daemon struct {
	Addresses map[string]string // by transport, as memspan.Dial takes them
	stop      func() error      // of an embedded server
	process   *process          // of another
	binary    bool              // that is the shipped command
}

// start starts a daemon that ends with the test.
func start(t testing.TB, s settings) *daemon {
	t.Helper()
	if s.VRAM && os.Getenv("MEMSPAN_TEST_NO_VULKAN") != "" {
		t.Skip("no Vulkan driver, says MEMSPAN_TEST_NO_VULKAN")
	}
	d := new(daemon)
	switch binary := os.Getenv("MEMSPAN_BINARY"); {
	case binary != "":
		d.binary = true
		d.process = startProcess(t, serveCommand(t, binary, s))
		var said struct{ Addresses []string }
		d.process.hear(&said)
		d.Addresses = byTransport(said.Addresses)
	case s.Process:
		d.process = serverProcess(t, s)
		d.process.hear(&d.Addresses)
	default:
		var err error
		d.Addresses, d.stop, err = embed(s, t.TempDir(), newLogbook(t))
		check(t, err)
		t.Cleanup(func() {
			if d.stop != nil {
				check(t, d.stop())
			}
		})
	}
	if s.VRAM && !d.dial(t, "unix").Tiers().Has(memspan.VRAM) {
		t.Fatal("the server has no VRAM tier: install mesa-vulkan-drivers and libvulkan1, or set MEMSPAN_TEST_NO_VULKAN=1")
	}
	return d
}

// serverProcess starts a server in a process of its own, which will say its
// addresses.
func serverProcess(t testing.TB, s settings) *process {
	t.Helper()
	s.Dir = t.TempDir() // not the process's to remove: it may be killed
	return child(t, "server", s)
}

// serveCommand is the shipped command that runs the daemon.
func serveCommand(t testing.TB, binary string, s settings) *exec.Cmd {
	dir := t.TempDir()
	secret := filepath.Join(dir, "token")
	check(t, os.WriteFile(secret, []byte(token), 0o600))
	cmd := exec.Command(binary, "serve", "--json", "--until-eof", "--log-level=warn",
		"--socket", filepath.Join(dir, "s"), "--token-file", secret, "--tls-dir", dir,
		"--listen", "127.0.0.1:0", "--listen", "0.0.0.0:0") // plain, and encrypted
	add := func(on bool, args ...string) {
		if on {
			cmd.Args = append(cmd.Args, args...)
		}
	}
	add(!s.VRAM, "--no-vram")
	add(s.HideVisible, "--vram-hide", "host-visible")
	add(s.HideCoherent, "--vram-hide", "host-coherent")
	add(s.HostBudget > 0, "--host-budget", strconv.FormatInt(s.HostBudget, 10))
	add(s.VRAMBudget > 0, "--vram-budget", strconv.FormatInt(s.VRAMBudget, 10))
	add(s.Data != "", "--data", s.Data)
	add(s.SurfaceBudget > 0, "--surface-budget", strconv.FormatInt(s.SurfaceBudget, 10))
	add(s.IOTimeout > 0, "--io-timeout", s.IOTimeout.String())
	return cmd
}

// byTransport sorts the addresses that memspan serve prints.
func byTransport(addresses []string) map[string]string {
	m := make(map[string]string)
	for _, a := range addresses {
		transport, rest, _ := strings.Cut(a, ":")
		if transport == "tls" { // on all addresses; the name of this machine may not resolve
			rest = "//127.0.0.1" + rest[strings.LastIndex(rest, ":"):]
		}
		m[transport] = transport + ":" + rest
	}
	return m
}

// serveRole is a server process: it says its addresses, serves, and stops when
// the test lets go.
func serveRole(_ context.Context, c *console) error {
	var s settings
	if err := c.hear(&s); err != nil {
		return err
	}
	addresses, stop, err := embed(s, s.Dir, os.Stderr)
	if err != nil {
		return err
	}
	if err := c.say(addresses); err != nil {
		return err
	}
	if err := c.wait(); err != nil {
		return err
	}
	if err := stop(); err != nil {
		return err
	}
	return goleak.Find()
}

// embed runs a server in this process, with its socket and certificate in dir.
func embed(s settings, dir string, log io.Writer) (addresses map[string]string, stop func() error, err error) {
	cert, fingerprint, err := server.SelfSigned(dir)
	if err != nil {
		return nil, nil, err
	}
	ctx := context.Background()
	cfg := s.config(log)
	cfg.Addresses = []string{"unix:" + filepath.Join(dir, "s")}
	srv, err := server.New(ctx, cfg)
	if err != nil {
		return nil, nil, err
	}
	var serving errgroup.Group
	stop = func() error {
		ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		err := srv.Shutdown(ctx)
		if served := serving.Wait(); err == nil {
			err = served
		}
		return err
	}
	listen := func(network, address string, wrap func(net.Listener) net.Listener) (at string) {
		var ln net.Listener
		if err == nil {
			ln, err = net.Listen(network, address)
		}
		if err != nil {
			return ""
		}
		at = ln.Addr().String()
		serving.Go(func() error { return srv.Serve(ctx, wrap(ln)) })
		return at
	}
	plain := func(ln net.Listener) net.Listener { return ln }
	addresses = map[string]string{
		"unix": "unix:" + listen("unix", filepath.Join(dir, "s"), plain),
		"tcp":  "tcp://" + listen("tcp", "127.0.0.1:0", plain),
		"tls": "tls://" + listen("tcp", "127.0.0.1:0", func(ln net.Listener) net.Listener {
			return server.TLSListener(ln, &tls.Config{Certificates: []tls.Certificate{cert}})
		}) + "#" + fingerprint,
	}
	if err != nil {
		stop()
		return nil, nil, err
	}
	return addresses, stop, nil
}

// pid returns the daemon's process.
func (d *daemon) pid() int {
	if d.process != nil {
		return d.process.pid()
	}
	return os.Getpid()
}

// shutdown stops the daemon in good order, before the test ends.
func (d *daemon) shutdown() error {
	if d.binary {
		err := d.process.cmd.Process.Signal(syscall.SIGTERM)
		d.process.wait()
		return err
	}
	if d.process != nil {
		d.process.end()
		return nil
	}
	stop := d.stop
	d.stop = nil
	return stop()
}

// dial connects to the daemon until the test ends.
func (d *daemon) dial(t testing.TB, transport string, opts ...memspan.Options) *memspan.Client {
	t.Helper()
	return dial(t, d.Addresses[transport], opts...)
}

func dial(t testing.TB, address string, opts ...memspan.Options) *memspan.Client {
	t.Helper()
	o := memspan.Options{Token: token}
	if len(opts) > 0 {
		o = opts[0]
		o.Token = token
	}
	c, err := memspan.Dial(t.Context(), address, &o)
	check(t, err)
	t.Cleanup(func() { check(t, c.Close()) })
	return c
}

// sessions waits until the daemon has n sessions, c's included.
func sessions(t testing.TB, c *memspan.Client, n int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d sessions", n), func() bool {
		st, err := c.Stats(t.Context())
		check(t, err)
		return st.Sessions == n
	})
}

// worker returns the process of the daemon's Vulkan worker, 0 if there is none
// now.
func (d *daemon) worker(t testing.TB) int {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", d.pid()))
	check(t, err)
	for _, path := range threads {
		children, err := os.ReadFile(path)
		if err != nil {
			continue // the thread has ended
		}
		for pid := range strings.FieldsSeq(string(children)) {
			env, err := os.ReadFile("/proc/" + pid + "/environ")
			if err == nil && strings.Contains(string(env), "MEMSPAN_WORKER=1") {
				n, err := strconv.Atoi(pid)
				check(t, err)
				return n
			}
		}
	}
	return 0
}

// resident returns a process's resident memory in bytes: its own, and what it
// shares, which is the bytes of spans.
func resident(pid int) (anon, shared int64, err error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(status)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		kib, _ := strconv.ParseInt(f[1], 10, 64)
		switch f[0] {
		case "RssAnon:":
			anon = kib << 10
		case "RssShmem:":
			shared = kib << 10
		}
	}
	return anon, shared, nil
}
