// SPDX-License-Identifier: Apache-2.0

//go:build linux

package e2e

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// A wine runs Windows programs, in a Windows of its own with two drives: C: is
// drive, Z: the machine's root.
type wine struct {
	t       *testing.T
	program string
	server  string
	prefix  string
	drive   string // what C: is
}

// startWine makes a Windows that lasts as long as the test, or skips it.
//
// Wine would make one of 700 MB in six seconds. Links to its libraries and a
// registry with the one service that knows of sockets do as well, at once.
func startWine(t *testing.T) *wine {
	t.Helper()
	if runtime.GOARCH != "amd64" {
		t.Skip("the Windows programs are for amd64")
	}
	if os.Getenv("MEMSPAN_BINARY") != "" {
		t.Skip("MEMSPAN_BINARY names what is tested, and it is none for Windows")
	}
	w := &wine{t: t, prefix: t.TempDir()}
	find := func(names ...string) string {
		for _, name := range names {
			if path, err := exec.LookPath(name); err == nil {
				return path
			}
		}
		t.Skipf("there is no %s: scripts/setup test installs it", names[0])
		return ""
	}
	w.program = find("wine64", "/usr/lib/wine/wine64", "/opt/wine-stable/bin/wine64", "wine")
	w.server = find("wineserver", "/usr/lib/wine/wineserver", "/usr/lib/wine/wineserver64", "/opt/wine-stable/bin/wineserver")
	var libraries []string
	for _, dir := range []string{"/usr/lib/x86_64-linux-gnu", "/usr/lib", "/usr/lib64", "/opt/wine-stable/lib64", "/opt/wine-stable/lib"} {
		found, err := filepath.Glob(dir + "/wine/x86_64-windows/*")
		check(t, err)
		if len(found) > 0 {
			libraries = found
			break
		}
	}
	if len(libraries) == 0 {
		t.Skip("where wine has its libraries is not known")
	}
	w.drive = filepath.Join(w.prefix, "drive_c")
	system := filepath.Join(w.drive, "windows", "system32")
	check(t, errors.Join(
		os.MkdirAll(filepath.Join(system, "drivers"), 0o700),
		os.MkdirAll(filepath.Join(w.prefix, "dosdevices"), 0o700),
		os.Symlink("../drive_c", filepath.Join(w.prefix, "dosdevices", "c:")),
		os.Symlink("/", filepath.Join(w.prefix, "dosdevices", "z:")),
		// Wine is not to fill it: it would write over what the links lead to.
		os.WriteFile(filepath.Join(w.prefix, ".update-timestamp"), []byte("disable\n"), 0o600),
		os.WriteFile(filepath.Join(w.prefix, "system.reg"), []byte(wineRegistry), 0o600),
	))
	for _, library := range libraries {
		dir := system
		if strings.HasSuffix(library, ".sys") {
			dir = filepath.Join(system, "drivers")
		}
		check(t, os.Symlink(library, filepath.Join(dir, filepath.Base(library))))
	}
	// Go programs draw random numbers by a library that Wine 8 does not have.
	err := os.WriteFile(filepath.Join(system, "bcryptprimitives.dll.new"), forwarder("bcryptprimitives.dll", "ProcessPrng", "advapi32.SystemFunction036"), 0o600)
	check(t, err)
	if _, err := os.Lstat(filepath.Join(system, "bcryptprimitives.dll")); errors.Is(err, fs.ErrNotExist) {
		check(t, os.Rename(filepath.Join(system, "bcryptprimitives.dll.new"), filepath.Join(system, "bcryptprimitives.dll")))
	}
	t.Cleanup(func() {
		// It ends the programs that are left, and waits for them.
		for _, how := range []string{"-k", "-w"} {
			cmd := exec.Command(w.server, how)
			cmd.Env = w.environment()
			_ = cmd.Run() // it fails if all have ended
		}
	})
	// To a file: the services that it starts keep its output open.
	log, err := os.Create(filepath.Join(w.prefix, "log"))
	check(t, err)
	defer log.Close()
	boot := w.command("wineboot.exe", "--init")
	boot.Stdout, boot.Stderr = log, log
	if err := boot.Run(); err != nil {
		said, _ := os.ReadFile(log.Name())
		t.Skipf("wine does not start: %v\n%s", err, said)
	}
	return w
}

const wineRegistry = `WINE REGISTRY Version 2
;; All keys relative to \\Machine

#arch=win64

[System\\CurrentControlSet\\Services\\nsiproxy]
"DisplayName"="NSI Proxy"
"ErrorControl"=dword:00000001
"ImagePath"="C:\\windows\\system32\\drivers\\nsiproxy.sys"
"Start"=dword:00000002
"Type"=dword:00000001
`

func (w *wine) environment() []string {
	return append(os.Environ(), "WINEPREFIX="+w.prefix, "WINEDEBUG=-all", "WINEDLLOVERRIDES=winemenubuilder.exe=")
}

// command runs a Windows program, which is named by a path of this side or is one
// of Wine's.
func (w *wine) command(program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(w.t.Context(), w.program, append([]string{program}, args...)...)
	cmd.Env = w.environment()
	cmd.Dir = w.drive
	cmd.WaitDelay = 10 * time.Second // others of Wine's may keep its output open
	return cmd
}

// run runs a Windows program to its end and returns what it wrote.
func (w *wine) run(program string, args ...string) (string, error) {
	var out, complaints bytes.Buffer
	cmd := w.command(program, args...)
	cmd.Stdout, cmd.Stderr = &out, &complaints
	err := cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("%s %s: %w\n%s%s", filepath.Base(program), strings.Join(args, " "), err, &out, &complaints)
	}
	return out.String(), err
}

// tests builds the tests of a package of this module for Windows.
func (w *wine) tests(pkg string) string {
	w.t.Helper()
	return w.build(filepath.Base(pkg)+".test", "test", "-c", "-overlay", w.overlay(), "../../"+pkg)
}

// overlay returns what has the standard library remove files under Wine 8, which does
// not know the newest of the calls for that, and has no name for not knowing one
// that the library expects. Tests that make files could not clean up without.
func (w *wine) overlay() string {
	w.t.Helper()
	path := filepath.Join(w.prefix, "overlay.json")
	if _, err := os.Stat(path); err == nil {
		return path
	}
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	check(w.t, err)
	library := filepath.Join(strings.TrimSpace(string(goroot)), "src/internal/syscall/windows/at_windows.go")
	text, err := os.ReadFile(library)
	check(w.t, err)
	const known, all = "\tcase STATUS_INVALID_INFO_CLASS,", "\tcase NTStatus(0xC0000002), STATUS_INVALID_INFO_CLASS,"
	mended := filepath.Join(w.prefix, "at_windows.go")
	check(w.t, os.WriteFile(mended, bytes.Replace(text, []byte(known), []byte(all), 1), 0o600))
	json, err := json.Marshal(map[string]any{"Replace": map[string]string{library: mended}})
	check(w.t, err)
	check(w.t, os.WriteFile(path, json, 0o600))
	return path
}

// build builds something of this module for Windows.
func (w *wine) build(name string, args ...string) string {
	w.t.Helper()
	path := filepath.Join(w.drive, name+".exe")
	cmd := exec.CommandContext(w.t.Context(), "go", append(args[:len(args)-1:len(args)-1], "-o", path, args[len(args)-1])...)
	cmd.Env = append(os.Environ(), "GOOS=windows", "GOARCH=amd64", "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		w.t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
	return path
}

// A hello is what a host says when it listens.
type hello struct {
	Addresses []string `json:"addresses"`
}

// serve starts memspan.exe host, which lasts as long as the test, and returns its
// address.
func (w *wine) serve(memspan string, args ...string) string {
	w.t.Helper()
	cmd := w.command(memspan, append([]string{"host", "--json", "--listen", "127.0.0.1:0"}, args...)...)
	cmd.Stderr = newLogbook(w.t)
	out, err := cmd.StdoutPipe()
	check(w.t, err)
	check(w.t, cmd.Start())
	w.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	var h hello
	if err := json.NewDecoder(out).Decode(&h); err != nil {
		w.t.Fatalf("the host did not start: %v", err)
	}
	return cmp.Or(h.Addresses...)
}

// forwarder returns a Windows library of one function, which is another library's:
// target is its name there. It has no code.
func forwarder(library, function, target string) []byte {
	const (
		at        = 0x1000 // where its one section is in memory
		alignment = 0x200  // and in the file
	)
	// The directory of what it exports, its three tables of one entry, the names.
	const tables, names = at + 40, at + 40 + 12
	functionAt := names + len(library) + 1
	targetAt := functionAt + len(function) + 1
	le := binary.LittleEndian
	var section []byte
	for _, v := range []int{
		0, 0, 0, names, 1, 1, 1, tables, tables + 4, tables + 8, // one function, with one name, by the ordinal 1
		targetAt, functionAt, 0,
	} {
		section = le.AppendUint32(section, uint32(v))
	}
	for _, name := range []string{library, function, target} {
		section = append(append(section, name...), 0)
	}
	size := uint32(len(section))

	image := append([]byte("MZ"), make([]byte, 58)...)
	image = le.AppendUint32(image, 64)
	image = append(image, "PE\x00\x00"...)
	put := func(fields ...any) {
		for _, v := range fields {
			image, _ = binary.Append(image, le, v)
		}
	}
	// For amd64, of one section, without a symbol; a library of 64 bits.
	put(uint16(0x8664), uint16(1), [3]uint32{}, uint16(112+16*8), uint16(0x2022))
	put(uint16(0x20b), [2]uint8{}, [3]uint32{0, alignment, 0}, uint32(0), uint32(at))
	put(uint64(0x180000000), [2]uint32{at, alignment}, [6]uint16{6, 0, 0, 0, 6, 0}, uint32(0))
	put([3]uint32{2 * at, alignment, 0}, [2]uint16{2, 0x100})
	put([4]uint64{1 << 20, 1 << 12, 1 << 20, 1 << 12}, [2]uint32{0, 16})
	put([2]uint32{at, size}, [15][2]uint32{})
	image = append(image, ".rdata\x00\x00"...)
	put([4]uint32{size, at, alignment, alignment}, [3]uint32{}, uint32(0x40000040))
	image = append(image, make([]byte, alignment-len(image))...)
	return append(append(image, section...), make([]byte, alignment-len(section))...)
}
