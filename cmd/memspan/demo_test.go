// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/server"
)

// TestDemoFindsWrongWords lets a run expect other bytes than it wrote: it must
// not pass, must say where, and must fail the command.
func TestDemoFindsWrongWords(t *testing.T) {
	ctx := t.Context()
	_, client := serveHere(t)

	const words, wrong = 1 << 20, 300_001
	calls := 0
	shifty := pattern{name: "shifty", word: func(i int64) uint32 {
		if calls++; calls > words && i == wrong {
			return 42
		}
		return 7
	}}
	run := &demoRun{tier: memspan.Host, path: pathUnix, size: 4 * words, pattern: shifty, say: func(string, ...any) {}}
	got := run.do(ctx, client)
	if got.Verdict != verdictMismatch || !strings.Contains(got.Detail, "offset 1200004: expected 0x0000002a, got 0x00000007") {
		t.Errorf("verdict %s: %s", got.Verdict, got.Detail)
	}
	if spans, err := client.List(ctx); err != nil || len(spans) != 0 {
		t.Errorf("spans left: %v, %v", spans, err)
	}

	report := demoReport{OK: true}
	report.add(&demoResult{Verdict: verdictOK})
	report.add(got)
	report.add(&demoResult{Verdict: verdictOK})
	for _, asJSON := range []bool{false, true} {
		var out bytes.Buffer
		if err := report.finish(&out, asJSON); !errors.Is(err, errReported) {
			t.Errorf("the command ends with %v", err)
		}
		if !strings.Contains(out.String(), verdictMismatch) || !strings.Contains(out.String(), "1200004") {
			t.Errorf("the report does not say what is wrong:\n%s", out.String())
		}
	}
}

// serveHere runs a server of RAM until the test ends, and returns its socket's
// path and a client of it.
func serveHere(t *testing.T) (path string, client *memspan.Client) {
	t.Helper()
	ctx := context.Background() // the test's ends before its cleanup
	srv, err := server.New(ctx, server.Config{HostBudget: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ctx, ln) }()
	t.Cleanup(func() {
		if err := errors.Join(srv.Shutdown(ctx), <-served); err != nil {
			t.Error(err)
		}
	})
	client, err = memspan.Dial(ctx, path, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return path, client
}
