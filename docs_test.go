// SPDX-License-Identifier: Apache-2.0

package memspan_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode"
)

var (
	docLink    = regexp.MustCompile(`\]\(([^)#\s]*)(?:#([^)\s]+))?\)`)
	docHeading = regexp.MustCompile(`(?m)^#+ (.*)$`)
)

// anchor is what a heading is linked by.
func anchor(heading string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
			return unicode.ToLower(r)
		}
		return -1
	}, strings.TrimSpace(heading))
}

// Links from one document to another lead somewhere.
func TestDocumentsLinkToWhatThereIs(t *testing.T) {
	documents, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, from := range append(documents, "README.md", "ARCHITECTURE.md", "CONTRIBUTING.md") {
		text, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		for _, link := range docLink.FindAllStringSubmatch(string(text), -1) {
			path, place := link[1], link[2]
			if strings.Contains(path, "://") {
				continue
			}
			to := from
			if path != "" {
				to = filepath.Join(filepath.Dir(from), path)
			}
			target, err := os.ReadFile(to)
			if info, serr := os.Stat(to); serr != nil || err != nil && !info.IsDir() {
				t.Errorf("%s: there is no %s", from, path)
				continue
			}
			found := place == ""
			for _, heading := range docHeading.FindAllStringSubmatch(string(target), -1) {
				found = found || anchor(heading[1]) == place
			}
			if !found {
				t.Errorf("%s: %s has no heading %s", from, to, place)
			}
		}
	}
}
