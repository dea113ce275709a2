// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

// The stages are this binary again.
func TestMain(m *testing.M) {
	if os.Getenv(stageEnv) != "" {
		main()
		return
	}
	goleak.VerifyTestMain(m)
}

// reported returns what f has said.
func reported(t *testing.T, f func(report *os.File) error) (string, error) {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "report"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	err = f(file)
	text, failed := os.ReadFile(file.Name())
	if failed != nil {
		t.Fatal(failed)
	}
	return string(text), err
}

func TestNothingIsCopied(t *testing.T) {
	text, err := reported(t, func(report *os.File) error { return run(t.Context(), report) })
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if n := strings.Count(text, " 0 bytes copied"); n != 5 || n != strings.Count(text, "bytes copied") {
		t.Errorf("two exposures and three attachments, not all without a copy:\n%s", text)
	}
	for _, line := range []string{"make:   exposed 64 MiB", "sum:    attached 67108864 bytes", "64 chunks and their sums are right"} {
		if !strings.Contains(text, line) {
			t.Errorf("nobody says %q:\n%s", line, text)
		}
	}
}

// A stage that fails ends the others, and says why.
func TestAStageFails(t *testing.T) {
	text, err := reported(t, func(report *os.File) error { return start(t.Context(), "unix:/nowhere", report) })
	if err == nil {
		t.Fatal("no error without a server")
	}
	for _, want := range []string{"make: ", "no ticket from the stage before"} {
		if !strings.Contains(text, want) {
			t.Errorf("nobody says %q:\n%s", want, text)
		}
	}
}
