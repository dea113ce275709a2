// SPDX-License-Identifier: Apache-2.0

//go:build linux

package apps

import (
	"bufio"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestOwnDaemon has 'memspan run' start the daemon itself: none runs.
func TestOwnDaemon(t *testing.T) {
	app := program(t, "compute", computeShader)
	memspan, err := built.memspan()
	check(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	native, err := exec.CommandContext(ctx, app, "mapped").CombinedOutput()
	check(t, err)
	cmd := exec.CommandContext(ctx, memspan, "run", "--", app, "mapped")
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+t.TempDir(), "MEMSPAN_SOCKET=", "MEMSPAN_SERVER=")
	out, err := cmd.CombinedOutput()
	if err != nil || string(out) != string(native) {
		t.Errorf("%v\n%s", err, difference(string(native), string(out)))
	}
}

// TestOwnDaemonIsNotLeft kills 'memspan run' while its application waits for the
// device: that is lost, and nothing stays behind.
func TestOwnDaemonIsNotLeft(t *testing.T) {
	app := program(t, "sync", computeShader)
	memspan, err := built.memspan()
	check(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	temp := t.TempDir()
	cmd := exec.CommandContext(ctx, memspan, "run", "--", app, "lost")
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+t.TempDir(), "TMPDIR="+temp, "MEMSPAN_SOCKET=", "MEMSPAN_SERVER=")
	out, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	lines := bufio.NewReader(out)
	line, err := lines.ReadString('\n')
	dirs, _ := filepath.Glob(filepath.Join(temp, "memspan-*")) // the pattern is right
	cmd.Process.Kill()                                         // an error means that it has ended
	rest, _ := io.ReadAll(lines)                               // the application's, until it has ended
	cmd.Wait()                                                 // says that it was killed
	if err != nil || line != "waiting\n" || len(dirs) != 1 || string(rest) != "VkResult -4\nthen -4\n" {
		t.Fatalf("%q, %v, then %q; in %v", line, err, rest, dirs)
	}
	eventually(t, "the daemon's directory is gone", func() bool {
		_, err := os.Stat(dirs[0])
		return errors.Is(err, fs.ErrNotExist)
	})
}

// TestManifest starts an application by Vulkan's own variables, without
// 'memspan run', and has it count its round trips.
func TestManifest(t *testing.T) {
	app := program(t, "compute", computeShader)
	d := serve(t, nil)
	manifest, err := exec.Command(d.program, "icd").Output()
	check(t, err)
	for _, transport := range []string{"unix", "tcp", "tls"} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		cmd := exec.CommandContext(ctx, app, "mapped")
		cmd.Env = append(os.Environ(), "VK_DRIVER_FILES="+strings.TrimSpace(string(manifest)), "VK_ICD_FILENAMES="+strings.TrimSpace(string(manifest)),
			"MEMSPAN_SERVER="+d.addresses[transport], "MEMSPAN_TOKEN_FILE="+d.token, "MEMSPAN_TRACE=-")
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "vkQueueSubmit") || !strings.Contains(string(out), "100000 elements right after 5 rounds") {
			t.Errorf("%s: %v\n%s", transport, err, out)
		}
	}
	// The driver does not work without a server, and says why.
	cmd := exec.Command(app, "mapped")
	cmd.Env = append(os.Environ(), "VK_DRIVER_FILES="+strings.TrimSpace(string(manifest)), "VK_ICD_FILENAMES="+strings.TrimSpace(string(manifest)),
		"MEMSPAN_SERVER=tcp://127.0.0.1:1", "MEMSPAN_TOKEN=x")
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "127.0.0.1:1") {
		t.Errorf("without a server: %v\n%s", err, out)
	}
}
