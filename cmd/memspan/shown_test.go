// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"

	"github.com/memspan/memspan/surface/pull"
	"github.com/memspan/memspan/wire"
)

// What somebody else has called something does not steer the terminal that it is shown on.
func TestShown(t *testing.T) {
	for text, want := range map[string]string{
		"plain ñ 日本 😀":   "plain ñ 日本 😀",
		"two\nlines":     "two\nlines",
		"\x1b[31mred":    `\x1b[31mred`,
		"\u202egpj.exe":  `\u202egpj.exe`,
		"tab\tnul\x00":   `tab\tnul\x00`,
		"quote'\u2028\"": `quote'\u2028"`,
	} {
		if got := shown(text); got != want {
			t.Errorf("%q is shown as %q, want %q", text, got, want)
		}
	}
	var table strings.Builder
	rows := newTable(&table, "NAME")
	rows.row("a\x1b]0;b")
	if err := rows.flush(); err != nil || strings.Contains(table.String(), "\x1b") {
		t.Errorf("a table has %q, %v", table.String(), err)
	}
}

// What a source said is no news of this machine's disk.
func TestPulledHasNoHint(t *testing.T) {
	if h := hint(wire.Corrupt); h == "" {
		t.Error("a corrupt span has no hint")
	}
	if h := hint(&pull.Error{Op: "pull", Err: wire.Corrupt}); h != "" {
		t.Errorf("a corrupt chunk has the hint %q", h)
	}
}
