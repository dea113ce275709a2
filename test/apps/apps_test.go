// SPDX-License-Identifier: Apache-2.0

//go:build linux

package apps

import (
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

var graphicsShaders = []string{"triangle.vert", "triangle.frag"}

const computeShader = "mix.comp"

// slow reports whether tests may take minutes.
func slow() bool { return os.Getenv("MEMSPAN_SLOW") != "" }

// TestTransfer runs the document's own test application and checks that it
// prints what the document expects, times aside.
func TestTransfer(t *testing.T) {
	app := program(t, "transfer")
	d := serve(t, nil)
	took := regexp.MustCompile(`took ([0-9.]+) ms, ([0-9]+) MB/s`)
	for _, size := range []int{1 << 20, 10 << 20, 100 << 20} {
		native := d.run(t, "native", app, strconv.Itoa(size))
		for _, transport := range transports {
			ours := d.run(t, transport, app, strconv.Itoa(size))
			if want, got := took.ReplaceAllString(native, "took"), took.ReplaceAllString(ours, "took"); got != want {
				t.Errorf("%d bytes, %s:\n%s", size, transport, difference(want, got))
			}
			t.Logf("%d bytes, %s: %v", size, transport, took.FindAllString(ours, -1))
		}
		if !strings.Contains(native, "Phase 8 PASSED") {
			t.Errorf("%d bytes, native:\n%s", size, native)
		}
	}
}

func TestCompute(t *testing.T) {
	app := program(t, "compute", computeShader)
	d := serve(t, nil)
	for _, name := range []string{"mapped", "staged", "large-shader"} {
		t.Run(name, func(t *testing.T) { d.same(t, app, name) })
	}
}

// TestGoApplication runs a program that has Go's runtime itself, beside the
// driver's.
func TestGoApplication(t *testing.T) {
	app := program(t, "gocompute", computeShader)
	serve(t, nil).same(t, app)
}

func TestGraphics(t *testing.T) {
	app := program(t, "graphics", graphicsShaders...)
	d := serve(t, nil)
	for _, name := range []string{"render-pass", "dynamic-rendering", "linear-image"} {
		t.Run(name, func(t *testing.T) { d.same(t, app, name) })
	}
}

func TestMemory(t *testing.T) {
	app := program(t, "memory")
	d := serve(t, nil)
	for _, name := range []string{"both-sides", "read-into", "concurrent", "ranges", "parts", "isolated", "large", "invisible", "freed", "refused"} {
		t.Run(name, func(t *testing.T) { d.same(t, app, name) })
	}
}

// TestMemoryWithoutImport does so where the driver cannot use the application's
// memory in place, as some cannot.
func TestMemoryWithoutImport(t *testing.T) {
	app := program(t, "memory")
	d := serve(t, nil, "--vulkan-hide", "import")
	for _, name := range []string{"both-sides", "read-into", "concurrent", "ranges", "parts", "isolated", "large", "freed"} {
		t.Run(name, func(t *testing.T) { d.same(t, app, name) })
	}
}

// TestMemoryIncoherent does so where memory has to be flushed and invalidated.
func TestMemoryIncoherent(t *testing.T) {
	app := program(t, "memory")
	d := serve(t, nil, "--vulkan-hide", "host-coherent")
	d.same(t, app, "ranges")
}

func TestSync(t *testing.T) {
	app := program(t, "sync", computeShader)
	d := serve(t, nil)
	for _, name := range []string{"fences", "polling", "timeline", "turns", "semaphores", "events", "devices", "forks"} {
		t.Run(name, func(t *testing.T) { d.same(t, app, name) })
	}
}

// TestFacts compares what applications ask before they do anything.
func TestFacts(t *testing.T) {
	app := program(t, "facts")
	d := serve(t, nil)
	for _, name := range []string{"formats", "enumerations", "requirements", "refused"} {
		t.Run(name, func(t *testing.T) { d.same(t, app, name) })
	}
	t.Run("SwiftShader", func(t *testing.T) {
		variables := swiftShader(t)
		d := serve(t, variables)
		native := d.runIn(t, "", variables, "native", app, "enumerations")
		for _, transport := range transports {
			if out := d.run(t, transport, app, "enumerations"); out != native {
				t.Errorf("%s:\n%s", transport, difference(native, out))
			}
		}
	})
}

// TestForkedChildren has processes fork that use the device, and their children
// use one, too: each has a connection of its own.
func TestForkedChildren(t *testing.T) {
	app := program(t, "sync", computeShader)
	d := serve(t, nil)
	for _, transport := range transports {
		if out := d.run(t, transport, app, "children"); out != "three generations\n" {
			t.Errorf("%s: %q", transport, out)
		}
	}
}

// TestSignals interrupts the application all the time, by a handler that knows
// nothing of the driver and needs room on the stack.
func TestSignals(t *testing.T) {
	serve(t, nil).same(t, program(t, "signals"))
}

// TestThreads has four threads at work on one device: for a minute if there is
// time.
func TestThreads(t *testing.T) {
	app := program(t, "threads", computeShader)
	d := serve(t, nil)
	seconds := "1"
	if slow() {
		seconds = "60"
	}
	for _, transport := range transports {
		t.Run(transport, func(t *testing.T) { d.run(t, transport, app, seconds) })
	}
}

// TestTLS goes through the daemon, which decrypts for the worker.
func TestTLS(t *testing.T) {
	d := serve(t, nil)
	for _, app := range [][]string{
		{program(t, "compute", computeShader), "mapped"},
		{program(t, "memory"), "large"},
		{program(t, "sync", computeShader), "timeline"},
	} {
		if native, out := d.run(t, "native", app...), d.run(t, "tls", app...); out != native {
			t.Errorf("%v:\n%s", app[1:], difference(native, out))
		}
	}
}

// TestApplicationsAtOnce runs several on one daemon.
func TestApplicationsAtOnce(t *testing.T) {
	app := program(t, "compute", computeShader)
	d := serve(t, nil)
	native := d.run(t, "native", app, "staged")
	t.Run("all", func(t *testing.T) {
		for i := range 6 {
			transport := transports[i%len(transports)]
			t.Run(transport, func(t *testing.T) {
				t.Parallel()
				if out := d.run(t, transport, app, "staged"); out != native {
					t.Error(difference(native, out))
				}
			})
		}
	})
}

// wanted skips tests that download programs, unless they are asked for.
func wanted(t testing.TB) {
	if os.Getenv("MEMSPAN_TEST_APPS") == "" {
		t.Skip("takes programs from the network: make test-apps")
	}
}
