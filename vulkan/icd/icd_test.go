// SPDX-License-Identifier: Apache-2.0

package icd_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/memspan/memspan/vulkan/registry"
)

// compile runs the C compiler, or skips.
func compile(t *testing.T, args ...string) {
	t.Helper()
	compiler := os.Getenv("CC")
	if compiler == "" {
		compiler = "cc"
	}
	if _, err := exec.LookPath(compiler); err != nil {
		t.Skipf("no C compiler: %v", err)
	}
	args = append([]string{"-Wall", "-Wextra", "-Werror", "-O1"}, args...)
	if out, err := exec.Command(compiler, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", compiler, args, err, out)
	}
}

// names lists all commands as testdata/walk.c reads them.
func names() []byte {
	var b bytes.Buffer
	for _, c := range registry.Commands {
		kind := "d"
		switch {
		case c.First == registry.None || c.Name == "vkGetInstanceProcAddr":
			kind = "g"
		case c.First == registry.VkInstance:
			kind = "i"
		case c.First == registry.VkPhysicalDevice:
			kind = "p"
		case c.Core != 10:
			kind = "e"
		}
		fmt.Fprintf(&b, "%s %s\n", kind, c.Name)
	}
	return b.Bytes()
}

// walk has a program look up every command in a library.
func walk(t *testing.T, library string) {
	t.Helper()
	walker := filepath.Join(t.TempDir(), "walk")
	compile(t, "-o", walker, "testdata/walk.c", "-ldl")
	cmd := exec.Command(walker, library)
	cmd.Stdin = bytes.NewReader(names())
	out, err := cmd.Output()
	if want := fmt.Sprintf("%d walked\n", len(registry.Commands)); err != nil || string(out) != want {
		t.Errorf("%v, want %q, got\n%s", err, want, out)
	}
}

// exports are the symbols that a library defines for others.
func exports(t *testing.T, library string) string {
	t.Helper()
	out, err := exec.Command("nm", "-D", "--defined-only", "-P", library).Output()
	if err != nil {
		t.Skipf("nm: %v", err)
	}
	var symbols []string
	for line := range strings.Lines(string(out)) {
		symbols = append(symbols, strings.Fields(line)[0])
	}
	return strings.Join(symbols, " ")
}

const wantExports = "vk_icdGetInstanceProcAddr vk_icdGetPhysicalDeviceProcAddr vk_icdNegotiateLoaderICDInterfaceVersion"

func TestEveryCommandHasAnEntry(t *testing.T) {
	library := filepath.Join(t.TempDir(), "lib.so")
	compile(t, "-shared", "-fPIC", "-Wl,--no-undefined", "-Wl,--version-script=exports.map",
		"-o", library, "entry.c", "child.c", "trampolines_gen.c", "testdata/stub.c")
	walk(t, library)
	if got := exports(t, library); got != wantExports {
		t.Errorf("exported: %s", got)
	}
}

// A worker must not get memspan's driver.
func TestWorkersAreRefused(t *testing.T) {
	dir := t.TempDir()
	library, walker := filepath.Join(dir, "lib.so"), filepath.Join(dir, "walk")
	compile(t, "-shared", "-fPIC", "-o", library, "entry.c", "child.c", "trampolines_gen.c", "testdata/stub.c")
	compile(t, "-o", walker, "testdata/walk.c", "-ldl")
	cmd := exec.Command(walker, library)
	cmd.Env = append(os.Environ(), "MEMSPAN_WORKER=vulkan")
	out, _ := cmd.Output()
	if !strings.Contains(string(out), "interface version 7: wrong answer") {
		t.Errorf("not refused:\n%s", out)
	}
}

// Arguments arrive as package registry says: integers and pointers as they are,
// signed ones with their sign, floats as their bits.
func TestArgumentsArePacked(t *testing.T) {
	program := filepath.Join(t.TempDir(), "pack")
	compile(t, "-o", program, "entry.c", "child.c", "trampolines_gen.c", "testdata/pack.c")
	out, err := exec.Command(program).Output()
	if err != nil {
		t.Fatal(err)
	}
	const object = "1122334455667788"
	want := fmt.Sprintf("vkGetFenceStatus %d -4 %s ffffffff00000001\n", registry.VkGetFenceStatus, object) +
		fmt.Sprintf("vkCmdSetDepthBias %d 0 %s 3f800000 c0200000 0\n", registry.VkCmdSetDepthBias, object) +
		fmt.Sprintf("vkCmdDrawIndexed %d 0 %s ffffffff 2 3 fffffffffffffff9 5\n", registry.VkCmdDrawIndexed, object) +
		fmt.Sprintf("vkGetBufferDeviceAddressKHR %d -4 %s %s\n", registry.VkGetBufferDeviceAddress, object, object) +
		fmt.Sprintf("vkCmdPipelineBarrier %d 0 %s 1 2 3 4 %s 6 %s 8 %s\n", registry.VkCmdPipelineBarrier, object, object, object, object) +
		fmt.Sprintf("vkCmdFillBuffer %d 0 %s 1 ffffffffffffffff 3 80000000\n", registry.VkCmdFillBuffer, object)
	if string(out) != want {
		t.Errorf("got\n%swant\n%s", out, want)
	}
}

// goLibrary builds testdata/library as the driver is built.
func goLibrary(t *testing.T) string {
	t.Helper()
	compile(t, "-fsyntax-only", "entry.c")
	script, err := filepath.Abs("exports.map")
	if err != nil {
		t.Fatal(err)
	}
	library := filepath.Join(t.TempDir(), "lib.so")
	build := exec.Command("go", "build", "-buildmode=c-shared", "-trimpath",
		"-ldflags", "-s -w -extldflags=-Wl,--version-script="+script, "-o", library, "./testdata/library")
	build.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return library
}

// What the Go linker makes of it is a driver too, and shows nothing of Go.
func TestGoLibrary(t *testing.T) {
	library := goLibrary(t)
	walk(t, library)
	if got := exports(t, library); got != wantExports {
		t.Errorf("exported: %s", got)
	}
	dynamic, err := exec.Command("readelf", "-d", library).Output()
	if err != nil {
		t.Skipf("readelf: %v", err)
	}
	if !strings.Contains(string(dynamic), "NODELETE") {
		t.Error("the library can be unloaded under Go's threads")
	}
}

// A program that knows nothing of Go keeps its signals, pipes, children and
// threads.
func TestForeignProcess(t *testing.T) {
	library := goLibrary(t)
	program := filepath.Join(t.TempDir(), "foreign")
	compile(t, "-o", program, "testdata/foreign.c", "-ldl", "-pthread")
	for mode, end := range map[string]string{
		"handlers": "", "pipes": "", "children": "", "again": "", "threads": "", "exit": "", "late handlers": "", "own": "",
		"pipe by default": "signal: broken pipe", "crash": "signal: segmentation fault",
	} {
		t.Run(mode, func(t *testing.T) {
			out, err := exec.Command(program, library, mode).CombinedOutput()
			state, want := "", "good\nexits\n"
			if err != nil {
				state = err.Error()
			}
			if end != "" {
				want = ""
			}
			if strings.TrimSuffix(state, " (core dumped)") != end || string(out) != want {
				t.Errorf("%q, want %q; it said:\n%s", state, end, out)
			}
		})
	}
}
