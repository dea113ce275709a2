// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package confine

import (
	"bytes"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
)

func TestWithRealDrivers(t *testing.T) {
	got := withRealDrivers([]string{
		"PATH=/x/" + OwnDriver, "VK_DRIVER_FILES=/x/" + OwnDriver, "VK_ADD_DRIVER_FILES=/a.json:/x/" + OwnDriver + ":/b.json",
		"VK_ICD_FILENAMES=", "VK_LAYER_PATH=/l",
	})
	want := []string{"PATH=/x/" + OwnDriver, "VK_ADD_DRIVER_FILES=/a.json:/b.json", "VK_ICD_FILENAMES=", "VK_LAYER_PATH=/l"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// run starts a shell as a worker, and waits for its end.
func run(t *testing.T, script string) (p *Process, log string) {
	t.Helper()
	var out bytes.Buffer
	p, conn, err := Start([]string{"/bin/sh", "-c", script}, slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug})), "GREETING=hello")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	text, err := io.ReadAll(conn)
	if err != nil || string(text) != "hello\n" {
		t.Errorf("the worker says %q, %v", text, err)
	}
	<-p.Gone()
	return p, out.String()
}

func TestProcess(t *testing.T) {
	p, log := run(t, "echo $GREETING >&3; echo first >&2; echo last >&2; exit 4")
	if p.State() != "exit status 4" || p.LastWords() != "last" || !strings.Contains(log, "first") {
		t.Errorf("state %q, last words %q, log:\n%s", p.State(), p.LastWords(), log)
	}
	// Of a crash the first line tells most.
	p, _ = run(t, "echo $GREETING >&3; echo panic: oh >&2; echo goroutine 1 >&2; printf rest >&2; kill -9 $$")
	if p.State() != "signal: killed" || p.LastWords() != "panic: oh" {
		t.Errorf("state %q, last words %q", p.State(), p.LastWords())
	}
	p, _ = run(t, "echo $GREETING >&3; printf 'no newline' >&2")
	if p.State() != "exit status 0" || p.LastWords() != "no newline" {
		t.Errorf("state %q, last words %q", p.State(), p.LastWords())
	}
	if _, _, err := Start([]string{"/no/such/program"}, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a program that is not there was started")
	}
}

func TestProcessIsKilled(t *testing.T) {
	p, conn, err := Start([]string{"/bin/sleep", "1000"}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	p.Kill()
	<-p.Gone()
	if p.PID() <= 0 || p.State() != "signal: killed" {
		t.Errorf("process %d: %s", p.PID(), p.State())
	}
}
