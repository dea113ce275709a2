// SPDX-License-Identifier: Apache-2.0

package dial_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/memspan/memspan/wire/dial"
)

func TestReadToken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	if got, err := dial.ReadToken(""); got != "" || err != nil {
		t.Errorf("no file: %q, %v", got, err)
	}
	if _, err := dial.ReadToken(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
	for content, want := range map[string]string{"secret\n": "secret", " a b \r\n": "a b", "\n": ""} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := dial.ReadToken(path)
		if got != want || (err != nil) != (want == "") {
			t.Errorf("token %q: %q, %v", content, got, err)
		}
	}
}
