// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package server_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/memspan/memspan/internal/confine"
	"github.com/memspan/memspan/server"
	"github.com/memspan/memspan/vulkan/handover"
	"github.com/memspan/memspan/wire"
	"github.com/memspan/memspan/wire/control"
	"github.com/memspan/memspan/wire/dial"
)

// vulkanWorker is a worker without Vulkan: it does what its application's
// frames say.
func vulkanWorker() {
	conn, err := confine.Parent()
	if err != nil {
		panic(err)
	}
	p, err := handover.Accept(conn)
	if err != nil {
		panic(err)
	}
	stubborn := make(chan struct{})
	go func() {
		<-p.Done()
		select {
		case <-stubborn:
		default:
			os.Exit(0)
		}
	}()
	for {
		h, err := p.Client.ReadHeader()
		if err != nil {
			select {
			case <-stubborn:
				select {}
			default:
				os.Exit(0)
			}
		}
		data := make([]byte, h.Raw)
		if err := p.Client.ReadData(data); err != nil {
			panic(err)
		}
		verb, rest, _ := strings.Cut(string(data[:min(len(data), 100)]), " ")
		switch verb {
		case "exit":
			os.Exit(3)
		case "stubborn":
			close(stubborn)
		case "report":
			err = p.Report(handover.Status{Confined: "nothing", Device: "a GPU\x1b[0m", Memory: 77, Objects: 5})
		case "start":
			data, _ = json.Marshal(p.Start)
		case "env":
			data = []byte(os.Getenv(rest))
		case "file":
			f, err := p.Files.Take()
			if err != nil {
				panic(err)
			}
			data, _ = io.ReadAll(f)
		}
		if err != nil {
			panic(err)
		}
		if err := p.Client.WriteFrame(wire.Header{Kind: wire.KindStream}, nil, data); err != nil {
			os.Exit(0)
		}
	}
}

// lender starts a server that lends what GPU there is, and returns its addresses
// by transport.
func lender(t *testing.T, cfg server.Config) (*server.Server, map[string]string) {
	t.Helper()
	if cfg.Vulkan == nil {
		cfg.Vulkan = new(server.VulkanConfig)
	}
	cfg.Vulkan.Command = []string{os.Args[0]}
	srv, socket, tcp := listen(t, cfg)
	cert, fingerprint, err := server.SelfSigned(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() {
		served <- srv.Serve(context.Background(), server.TLSListener(ln, &tls.Config{Certificates: []tls.Certificate{cert}}))
	}()
	t.Cleanup(func() {
		ln.Close()
		if err := <-served; err != nil && !errors.Is(err, net.ErrClosed) { // it had not begun
			t.Error(err)
		}
	})
	return srv, map[string]string{
		"unix": "unix:" + socket, "tcp": "tcp://" + tcp, "tls": "tls://" + ln.Addr().String() + "#" + fingerprint,
	}
}

// An application is a client whose session was lent a worker.
type application struct {
	t      *testing.T
	conn   *dial.Conn
	worker int
}

func dialServer(t *testing.T, address string) *dial.Conn {
	t.Helper()
	c, err := dial.Dial(t.Context(), address, dial.Options{Token: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Wire.Close() })
	return c
}

func apply(t *testing.T, address string) *application {
	t.Helper()
	a := &application{t: t, conn: dialServer(t, address)}
	var started control.VulkanStarted
	if err := a.conn.Ask(t.Context(), control.OpVulkan, control.Vulkan{Application: "app\n", PID: 7, Device: "2"}, &started); err != nil {
		t.Fatal(err)
	}
	a.worker = started.Worker
	return a
}

func (a *application) say(data []byte, files ...*os.File) {
	a.t.Helper()
	h := wire.Header{Kind: wire.KindStream}
	var err error
	if len(files) > 0 {
		err = a.conn.Wire.WriteFrameFiles(h, data, files...)
	} else {
		err = a.conn.Wire.WriteFrame(h, nil, data)
	}
	if err != nil {
		a.t.Fatal(err)
	}
}

func (a *application) hear() string {
	a.t.Helper()
	h, err := a.conn.Wire.ReadHeader()
	data := make([]byte, h.Raw)
	if err == nil {
		err = a.conn.Wire.ReadData(data)
	}
	if err != nil {
		a.t.Fatal(err)
	}
	return string(data)
}

func (a *application) ask(text string) string {
	a.t.Helper()
	a.say([]byte(text))
	return a.hear()
}

// lost waits for the end of the connection.
func (a *application) lost() {
	a.t.Helper()
	if h, err := a.conn.Wire.ReadHeader(); err == nil {
		a.t.Errorf("a %v frame, want the end", h.Kind)
	}
}

// gone waits until a process has been waited for.
func gone(t *testing.T, pid int) {
	t.Helper()
	eventually(t, fmt.Sprintf("process %d is gone", pid), func() bool {
		return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
	})
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still not: %s", what)
		}
	}
}

// applications returns what the server says of its Vulkan applications.
func applications(t *testing.T, address string) []control.VulkanStat {
	t.Helper()
	c := dialServer(t, address)
	defer c.Wire.Close()
	var st control.Stats
	if err := c.Ask(t.Context(), control.OpStats, struct{}{}, &st); err != nil {
		t.Fatal(err)
	}
	return st.Vulkan
}

// The worker has the application's connection, as it was agreed on, and only
// that.
func TestVulkanHandover(t *testing.T) {
	t.Setenv("VK_DRIVER_FILES", "/x/memspan_icd.json")
	t.Setenv("VK_ICD_FILENAMES", "/x/memspan_icd.json:/y/real.json")
	cache := t.TempDir() + "/made/of it"
	_, addresses := lender(t, server.Config{Vulkan: &server.VulkanConfig{
		Memory: 1 << 30, Deadline: time.Minute, ShaderCache: cache, HideHostCoherent: true,
	}})
	for transport, address := range addresses {
		t.Run(transport, func(t *testing.T) {
			a := apply(t, address)
			var got handover.Start
			if err := json.Unmarshal([]byte(a.ask("start")), &got); err != nil {
				t.Fatal(err)
			}
			want := handover.Start{
				Session: got.Session, Application: "app", PID: 7, Device: "2", IOTimeout: 30 * time.Second,
				Sums: transport == "tcp", Compress: transport != "unix", Local: transport == "unix",
				Memory: 1 << 30, Objects: 1 << 20, QueueDepth: 1 << 14, Deadline: time.Minute, HideHostCoherent: true,
			}
			if want.Local {
				want.PID = os.Getpid()
			}
			if got != want {
				t.Errorf("the worker was told\n%+v, want\n%+v", got, want)
			}
			for name, want := range map[string]string{
				"VK_DRIVER_FILES": "", "VK_ICD_FILENAMES": "/y/real.json", "MEMSPAN_WORKER": "vulkan", "MEMSPAN_SHADER_CACHE": cache,
			} {
				if got := a.ask("env " + name); got != want {
					t.Errorf("%s=%q in the worker, want %q", name, got, want)
				}
			}
			if info, err := os.Stat(cache); err != nil || info.Mode().Perm() != 0o700 {
				t.Errorf("shader cache: %v, %v", info, err)
			}

			// Much at once, in both directions.
			var seed [32]byte
			noise := make([]byte, wire.MaxData)
			rand.NewChaCha8(seed).Read(noise)
			const frames = 40
			sent := make(chan struct{})
			go func() {
				defer close(sent)
				for range frames {
					a.say(noise)
				}
			}()
			for i := range frames {
				if a.hear() != string(noise) {
					t.Fatalf("frame %d came back changed", i)
				}
			}
			<-sent

			if transport == "unix" {
				f, err := os.CreateTemp(t.TempDir(), "")
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				if _, err := f.WriteAt([]byte("passed on"), 0); err != nil {
					t.Fatal(err)
				}
				a.say([]byte("file"), f)
				if got := a.hear(); got != "passed on" {
					t.Errorf("the file holds %q", got)
				}
			}

			a.ask("report")
			eventually(t, "the report is known", func() bool {
				list := applications(t, addresses["unix"])
				return len(list) == 1 && list[0].Memory == 77
			})
			st := applications(t, addresses["unix"])[0]
			if remote := transport != "unix"; st.Application != "app" || st.Worker != a.worker || st.Objects != 5 ||
				st.Device != "a GPU[0m" || st.PID != want.PID || (st.Peer != "") != remote || st.Since.IsZero() {
				t.Errorf("described as %+v", st)
			}

			// The application goes: so does all it had.
			a.conn.Wire.Close()
			gone(t, a.worker)
			eventually(t, "no application is left", func() bool { return len(applications(t, addresses["unix"])) == 0 })
		})
	}
}

// A worker that dies ends its application's connection, and no other.
func TestVulkanWorkerDies(t *testing.T) {
	_, addresses := lender(t, server.Config{})
	for transport, address := range addresses {
		t.Run(transport, func(t *testing.T) {
			a, other := apply(t, address), apply(t, address)
			if err := syscall.Kill(a.worker, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			a.lost()
			b := apply(t, address)
			b.say([]byte("exit"))
			b.lost()
			if got := other.ask("hello"); got != "hello" {
				t.Errorf("another application's worker says %q", got)
			}
		})
	}
}

// Shutdown ends workers, those that will not end too.
func TestVulkanShutdown(t *testing.T) {
	for _, transport := range []string{"unix", "tcp", "tls"} {
		t.Run(transport, func(t *testing.T) {
			t.Parallel()
			srv, err := server.New(t.Context(), server.Config{
				HostBudget: 1 << 20, Token: "secret", Vulkan: &server.VulkanConfig{Command: []string{os.Args[0]}},
			})
			if err != nil {
				t.Fatal(err)
			}
			cert, fingerprint, err := server.SelfSigned(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			network, at := "tcp", "127.0.0.1:0"
			if transport == "unix" {
				network, at = "unix", t.TempDir()+"/s"
			}
			ln, err := net.Listen(network, at)
			if err != nil {
				t.Fatal(err)
			}
			address := map[string]string{
				"unix": "unix:" + ln.Addr().String(), "tcp": "tcp://" + ln.Addr().String(),
				"tls": "tls://" + ln.Addr().String() + "#" + fingerprint,
			}[transport]
			if transport == "tls" {
				ln = server.TLSListener(ln, &tls.Config{Certificates: []tls.Certificate{cert}})
			}
			served := make(chan error, 1)
			go func() { served <- srv.Serve(t.Context(), ln) }()
			good, stubborn := apply(t, address), apply(t, address)
			stubborn.ask("stubborn")
			ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
			defer cancel()
			if err := srv.Shutdown(ctx); err != nil {
				t.Error(err)
			}
			for _, a := range []*application{good, stubborn} {
				a.lost()
				if err := syscall.Kill(a.worker, 0); !errors.Is(err, syscall.ESRCH) {
					t.Errorf("worker %d after Shutdown: %v", a.worker, err)
				}
			}
			if err := <-served; err != nil && !errors.Is(err, net.ErrClosed) { // it had not begun
				t.Error(err)
			}
		})
	}
}

// A worker that goes on after its application has gone is killed.
func TestVulkanWorkerIsKilled(t *testing.T) {
	t.Parallel()
	_, addresses := lender(t, server.Config{})
	a := apply(t, addresses["tls"])
	a.ask("stubborn")
	a.conn.Wire.Close()
	gone(t, a.worker)
}

// What is refused, and what becomes of the session.
func TestVulkanRefused(t *testing.T) {
	_, addresses := lender(t, server.Config{Vulkan: &server.VulkanConfig{Workers: 2}})
	for transport, address := range addresses {
		t.Run(transport, func(t *testing.T) {
			var started control.VulkanStarted
			request := func(c *dial.Conn) error {
				return c.Ask(t.Context(), control.OpVulkan, control.Vulkan{}, &started)
			}
			c := dialServer(t, address)
			if err := c.Ask(t.Context(), control.OpStats, struct{}{}, new(control.Stats)); err != nil {
				t.Fatal(err)
			}
			if err := request(c); !errors.Is(err, wire.Invalid) {
				t.Errorf("as the second request: %v", err)
			}
			a, b := apply(t, address), apply(t, address)
			if err := request(dialServer(t, address)); !errors.Is(err, wire.Limit) {
				t.Errorf("one too many: %v", err)
			}
			a.conn.Wire.Close()
			b.conn.Wire.Close()
			gone(t, a.worker)
			gone(t, b.worker)
			eventually(t, "there is room again", func() bool { return len(applications(t, address)) == 0 })

			// Bytes that follow the request would be lost.
			c = dialServer(t, address)
			ask, err := json.Marshal(control.Request{Op: control.OpVulkan, Args: json.RawMessage("{}")})
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Wire.WriteFrame(wire.Header{Kind: wire.KindControl, ID: 1}, nil, ask); err != nil {
				t.Fatal(err)
			}
			c.Wire.WriteFrame(wire.Header{Kind: wire.KindStream}, nil, []byte("too early"))
			for {
				h, err := c.Wire.ReadHeader()
				if err != nil {
					break
				}
				if h.Kind == wire.KindStream {
					// They came apart on their way: then nothing was lost.
					break
				}
			}
			c.Wire.Close()
			eventually(t, "all have gone", func() bool { return len(applications(t, addresses["unix"])) == 0 })
		})
	}
	_, socket, _ := listen(t, server.Config{})
	err := dialServer(t, socket).Ask(t.Context(), control.OpVulkan, control.Vulkan{}, new(control.VulkanStarted))
	if !errors.Is(err, wire.Unsupported) {
		t.Errorf("of a server that lends nothing: %v", err)
	}
	_, socket, _ = listen(t, server.Config{Vulkan: &server.VulkanConfig{Command: []string{"/no/such/program"}}})
	err = dialServer(t, socket).Ask(t.Context(), control.OpVulkan, control.Vulkan{}, new(control.VulkanStarted))
	if !errors.Is(err, wire.Internal) {
		t.Errorf("without a worker's program: %v", err)
	}
}
