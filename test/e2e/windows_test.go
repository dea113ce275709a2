// SPDX-License-Identifier: Apache-2.0

//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"hash/crc32"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/memspan/memspan/sharedbuf"
	"github.com/memspan/memspan/sharedbuf/host"
)

// What memspan does on Windows, as far as Wine is one.
func TestWindows(t *testing.T) {
	t.Parallel()
	// Wine goes through all the machine's connections to tell whose one is, and
	// fails if they are many and come and go.
	if !inOwnNetwork(t) {
		return
	}
	w := startWine(t)
	memspan := w.build("memspan", "build", "../../cmd/memspan")
	buffers := filepath.Join(w.drive, "buffers")
	check(t, errors.Join(
		os.MkdirAll(filepath.Join(buffers, "sub"), 0o700),
		os.WriteFile(filepath.Join(w.drive, "secret"), make([]byte, 4096), 0o600),
		os.WriteFile(filepath.Join(buffers, "plain"), make([]byte, 4096), 0o600),
		os.WriteFile(filepath.Join(buffers, "sub", "plain"), make([]byte, 4096), 0o600),
		os.Link(filepath.Join(w.drive, "secret"), filepath.Join(buffers, "hard")),
	))
	translation := "--translate=" + buffers + `=C:\buffers`
	trusting := w.serve(memspan, "--dir", `C:\buffers`, "--trust", "127.0.0.0/8", translation, `--translate=C:\=C:\`)

	t.Run("Packages", func(t *testing.T) { testPackagesOnWindows(t, w) })
	t.Run("LinuxGuest", func(t *testing.T) { testLinuxGuest(t, trusting, buffers) })
	t.Run("CutShort", func(t *testing.T) { testCutShort(t, trusting, buffers) })
	t.Run("BadPaths", func(t *testing.T) { testBadPaths(t, trusting, buffers) })
	t.Run("WindowsGuest", func(t *testing.T) {
		// Without --trust: Windows tells whose process it is.
		address := w.serve(memspan, "--dir", `C:\buffers`)
		testWindowsGuest(t, w, memspan, address, "--dir", `C:\buffers`)

		// What Windows cannot tell is kept out: a Linux process it does not know.
		_, err := dialed(t, address, buffers).Echo(t.Context(), "hello")
		if !errors.Is(err, sharedbuf.ErrDenied) {
			t.Errorf("a stranger gets: %v", err)
		}
		testKilledGuest(t, w, memspan, address, buffers)
	})
	t.Run("Channel", func(t *testing.T) {
		testWindowsGuest(t, w, memspan, trusting)
		testOverTheChannel(t, trusting)
		check(t, os.WriteFile(filepath.Join(w.drive, "token"), []byte(token), 0o600))
		secret := []string{"--token-file", `C:\token`}
		address := w.serve(memspan, append(secret, "--dir", `C:\buffers`, "--tls", "--tls-dir", `C:\tls`)...)
		testWindowsGuest(t, w, memspan, address, append(secret, "--dir", `C:\buffers`, "--encrypted")...)
	})
	t.Run("Client", func(t *testing.T) { testWindowsClient(t, w, memspan) })
	t.Run("LinuxHost", func(t *testing.T) { testWindowsGuest(t, w, memspan, linuxHost(t, buffers), "--dir", `C:\buffers`) })
	if left := buffersIn(t, buffers); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if _, err := w.run(memspan, "serve"); err == nil || !strings.Contains(err.Error(), "unsupported operation") {
		t.Errorf("a daemon on Windows: %v", err)
	}
}

// The tests of packages that have a side for Windows.
func testPackagesOnWindows(t *testing.T, w *wine) {
	for pkg, tests := range map[string]string{
		"internal/bell": "Test", "internal/durable": "Test", "internal/filelock": "Test", "internal/loopback": "Test",
		"internal/memfd": "Test", "internal/memlimit": "Test", "internal/sharedfile": "Test",
		// Others are about seals, files with holes, and what pulls to a memfd.
		"surface":      "^(TestDirectPullOfAnotherProcess|TestStreamIsPulledWhileItIsWritten|TestReplicaTakesVerifiedChunksInAnyOrder|TestManifest.*|TestTicket.*)$",
		"surface/pull": "^(TestCanceledAnywhere|TestReader|TestStream|TestGatherWhatIsMissing)$",
	} {
		out, err := w.run(w.tests(pkg), "-test.v", "-test.timeout=5m", "-test.run="+tests)
		if err != nil || !strings.Contains(out, "--- PASS") {
			t.Errorf("%s: %v", pkg, err)
		}
	}
}

func dialed(t *testing.T, address, dir string) *sharedbuf.Client {
	t.Helper()
	c, err := sharedbuf.Dial(t.Context(), address, sharedbuf.Options{Dir: dir})
	check(t, err)
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// A guest on Linux whose directory is a drive of the Windows host: one file, two
// systems.
func testLinuxGuest(t *testing.T, address, dir string) {
	c := dialed(t, address, dir)
	for _, size := range []int64{1 << 20, 8 << 20, 32 << 20, 1<<20 + 4097} {
		b, err := c.Alloc(t.Context(), size)
		check(t, err)
		mem := b.Bytes()
		for i := range mem {
			mem[i] = byte(i * 7)
		}
		want := crc32.Checksum(mem, crc32.MakeTable(crc32.Castagnoli))
		result, err := b.Process(t.Context(), sharedbuf.Process(), sharedbuf.Checksum())
		check(t, err)
		if result.Bytes != 2*size || string(result.Value) != jsonOf(t, want) {
			t.Errorf("%d bytes: the host saw %+v with %s, want %d", size, result, result.Value, want)
		}
		// What the host writes is in the guest's memory.
		const pattern = 0x12345678
		_, err = b.Process(t.Context(), sharedbuf.Fill(pattern), sharedbuf.Verify(pattern))
		check(t, err)
		if got := binary.LittleEndian.Uint32(mem[size&^3-4:]); got != pattern {
			t.Errorf("%d bytes: the last word is %#x", size, got)
		}
		mem[size-1]++
		if _, err := b.Process(t.Context(), sharedbuf.Verify(pattern)); !errors.Is(err, sharedbuf.ErrMismatch) {
			t.Errorf("%d bytes: a store is not seen: %v", size, err)
		}
		check(t, b.Free())
	}
	small, err := c.Alloc(t.Context(), 4096)
	check(t, err)
	check(t, small.File().Truncate(100))
	if _, err := small.Process(t.Context(), sharedbuf.Process()); !errors.Is(err, sharedbuf.ErrSize) {
		t.Errorf("a file that is too short: %v", err)
	}
}

// A guest on Linux that shares no directory with the Windows host: its bytes are
// sent.
func testOverTheChannel(t *testing.T, address string) {
	b, err := dialed(t, address, "").Alloc(t.Context(), 8<<20)
	check(t, err)
	const pattern = 0x12345678
	_, err = b.Process(t.Context(), sharedbuf.Fill(pattern), sharedbuf.Verify(pattern))
	check(t, err)
	if got := binary.LittleEndian.Uint32(b.Bytes()[8<<20-4:]); got != pattern {
		t.Errorf("what the host wrote is %#x here", got)
	}
	b.Bytes()[5<<20]++
	if _, err := b.Process(t.Context(), sharedbuf.Verify(pattern)); !errors.Is(err, sharedbuf.ErrMismatch) {
		t.Errorf("a store is not seen: %v", err)
	}
	check(t, b.Free())
}

// A guest that cuts its file short while the host reads it gets an error, and the
// host goes on.
func testCutShort(t *testing.T, address, dir string) {
	c := dialed(t, address, dir)
	cut := func(size int64) error {
		b, err := c.Alloc(t.Context(), size)
		check(t, err)
		defer b.Free()
		job, err := b.Start(t.Context(), slices.Repeat([]sharedbuf.Step{sharedbuf.Process()}, 16)...)
		check(t, err)
		for {
			status, err := job.Status(t.Context())
			check(t, err)
			if status.Bytes > 0 || status.Done {
				break
			}
		}
		check(t, b.File().Truncate(4096))
		_, err = job.Wait(t.Context())
		return err
	}
	err := cut(64 << 20)
	if err == nil { // it was faster
		err = cut(512 << 20)
	}
	if !errors.Is(err, sharedbuf.ErrTruncated) {
		t.Errorf("a file that was cut short: %v", err)
	}
	if text, err := c.Echo(t.Context(), "still there"); err != nil || text != "still there" {
		t.Errorf("the host after it: %q, %v", text, err)
	}
}

// Paths that lead elsewhere, or to something else, as a hostile guest writes them.
func testBadPaths(t *testing.T, address, dir string) {
	nc, err := net.Dial("tcp", strings.TrimPrefix(address, "tcp://"))
	check(t, err)
	defer nc.Close()
	in := bufio.NewReaderSize(nc, 4+sharedbuf.MaxResponse)
	ask := func(path string) error {
		t.Helper()
		check(t, nc.SetDeadline(time.Now().Add(30*time.Second)))
		request := map[string]any{"api": sharedbuf.APIShared, "operation": "process", "file_path": path, "buffer_size": 4096, "buffer_id": 1}
		frame, err := sharedbuf.AppendFrame(nil, request, sharedbuf.MaxRequest)
		check(t, err)
		_, err = nc.Write(frame)
		check(t, err)
		body, err := sharedbuf.ReadFrame(in, sharedbuf.MaxResponse)
		check(t, err)
		reply, err := sharedbuf.ParseReply(body)
		check(t, err)
		if failure := reply.Failure(); failure != nil {
			return failure
		}
		return nil
	}
	for _, path := range []string{
		dir + "/plain", dir + "/PLAIN", dir + "/sub/plain",
		`C:\buffers\plain`, `c:\Buffers\plain`, `C:/buffers/sub\plain`,
	} {
		if err := ask(path); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	for path, want := range map[string]sharedbuf.Code{
		dir + "/../secret": sharedbuf.ErrOutside, dir + "/sub/../../secret": sharedbuf.ErrOutside,
		dir + `/..\secret`: sharedbuf.ErrOutside, dir + `/sub\..\..\secret`: sharedbuf.ErrOutside,
		`C:\buffers\..\secret`: sharedbuf.ErrOutside, `C:\secret`: sharedbuf.ErrOutside, `C:\buffersplus\plain`: sharedbuf.ErrOutside,
		`C:plain`: sharedbuf.ErrOutside, `\buffers\plain`: sharedbuf.ErrOutside, `buffers\plain`: sharedbuf.ErrOutside, `Z:\etc\passwd`: sharedbuf.ErrOutside,
		`\\localhost\C$\buffers\plain`: sharedbuf.ErrOutside, `//localhost/C$/buffers/plain`: sharedbuf.ErrOutside,
		`\\?\C:\buffers\plain`: sharedbuf.ErrOutside, `\\.\C:`: sharedbuf.ErrOutside, `\??\C:\buffers\plain`: sharedbuf.ErrOutside,
		dir + "/NUL": sharedbuf.ErrOutside, dir + "/con": sharedbuf.ErrOutside, dir + "/COM1.txt": sharedbuf.ErrOutside, `C:\buffers\AUX`: sharedbuf.ErrOutside,
		dir + "/plain:stream": sharedbuf.ErrOutside, `C:\buffers\plain::$DATA`: sharedbuf.ErrOutside,
		dir + "/plain.": sharedbuf.ErrOutside, dir + "/plain ": sharedbuf.ErrOutside, dir + "/pl?in": sharedbuf.ErrOutside, dir + "/*": sharedbuf.ErrOutside,
		dir + "/sub": sharedbuf.ErrOutside, dir: sharedbuf.ErrOutside, dir + "/hard": sharedbuf.ErrOutside,
		"/etc/passwd": sharedbuf.ErrOutside, "memfd:1": sharedbuf.ErrUnsupported,
		dir + "/none": sharedbuf.ErrNotFound,
	} {
		if err := ask(path); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
	}
}

// A guest on Windows.
func testWindowsGuest(t *testing.T, w *wine, memspan, address string, args ...string) {
	t.Helper()
	out, err := w.run(memspan, append([]string{"buffer", "test", "--address", address}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(out, "Dynamic shared buffer tests completed successfully!\n") || strings.Count(out, "Buffer integrity verified") != 3 {
		t.Errorf("it said:\n%s", out)
	}
}

// A client on Windows, of a daemon on Linux.
func testWindowsClient(t *testing.T, w *wine, memspan string) {
	d := start(t, settings{})
	secret, file := filepath.Join(w.drive, "token"), filepath.Join(w.drive, "file")
	content := bytes.Repeat([]byte("memory that lives elsewhere\x00"), 100_000)
	check(t, errors.Join(os.WriteFile(secret, []byte(token), 0o600), os.WriteFile(file, content, 0o600)))
	for _, transport := range []string{"tcp", "tls"} {
		args := func(command ...string) []string {
			return append(command, "--address", d.Addresses[transport], "--token-file", `C:\token`)
		}
		back := func(what string) {
			t.Helper()
			path := filepath.Join(w.drive, "back")
			got, err := os.ReadFile(path)
			if err != nil || !bytes.Equal(got, content) {
				t.Errorf("%s over %s: %d bytes came back (%v) of %d", what, transport, len(got), err, len(content))
			}
			check(t, os.Remove(path))
		}
		_, err := w.run(memspan, args("put", `C:\file`, "--name", transport)...)
		check(t, err)
		_, err = w.run(memspan, args("get", transport, "-o", `C:\back`)...)
		check(t, err)
		back("put and get")
		ticket, err := w.run(memspan, args("expose", `C:\file`)...)
		check(t, err)
		_, err = w.run(memspan, "pull", strings.TrimSpace(ticket), "--from", d.Addresses["tls"], "-o", `C:\back`)
		check(t, err)
		back("expose and pull")
	}
}

// A guest that is killed leaves nothing behind for long.
func testKilledGuest(t *testing.T, w *wine, memspan, address, dir string) {
	cmd := w.command(memspan, "buffer", "test", "--address", address, "--dir", `C:\buffers`, "1GiB")
	check(t, cmd.Start())
	eventually(t, "the guest has a buffer and its lease", func() bool { return len(buffersIn(t, dir)) == 2 })
	cmd.Process.Kill()
	cmd.Wait()
	eventually(t, "the buffer of the killed guest is gone", func() bool { return len(buffersIn(t, dir)) == 0 })
}

func buffersIn(t *testing.T, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, sharedbuf.NamePrefix+"*"))
	check(t, err)
	return names
}

// linuxHost serves guests on Windows whose drive is a directory here.
func linuxHost(t *testing.T, dir string) string {
	t.Helper()
	h, err := host.New(host.Config{Dir: dir, Translate: sharedbuf.Translation{{Guest: `C:\buffers`, Host: dir}}})
	check(t, err)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, h.Close()); err != nil {
			t.Error(err)
		}
	})
	return ln.Addr().String()
}

func jsonOf(t *testing.T, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	check(t, err)
	return string(text)
}
