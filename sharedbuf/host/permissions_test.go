// SPDX-License-Identifier: Apache-2.0

package host_test

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/memspan/memspan/sharedbuf"
	"github.com/memspan/memspan/sharedbuf/host"
)

// What a buffer's permissions forbid is denied, and does not happen.
func TestPermissions(t *testing.T) {
	kinds(t, func(t *testing.T, ln net.Listener, dir string) {
		serve(t, ln, host.Config{Dir: dir})
		c := dial(t, ln, dir)
		me, other := os.Getuid(), os.Getuid()+1
		for _, test := range []struct {
			name        string
			permissions sharedbuf.Permissions
			allowed     []string // of process, checksum, fill
		}{
			{"none", sharedbuf.Permissions{}, []string{"process", "checksum", "fill"}},
			{"read-only", sharedbuf.Permissions{ReadOnly: true}, []string{"process", "checksum"}},
			{"some operations", sharedbuf.Permissions{Operations: []string{"fill", "process"}}, []string{"process", "fill"}},
			{"both", sharedbuf.Permissions{ReadOnly: true, Operations: []string{"fill", "process"}}, []string{"process"}},
			{"me", sharedbuf.Permissions{Users: []int{other, me}}, []string{"process", "checksum", "fill"}},
			{"another", sharedbuf.Permissions{Users: []int{other}}, nil},
		} {
			b, err := c.AllocWith(t.Context(), 100, sharedbuf.AllocOptions{Permissions: test.permissions})
			if err != nil {
				t.Fatalf("%s: %v", test.name, err)
			}
			for _, step := range []sharedbuf.Step{sharedbuf.Process(), sharedbuf.Checksum(), sharedbuf.Fill(7)} {
				clear(b.Bytes())
				may := slices.Contains(test.allowed, step.Operation)
				for _, chain := range [][]sharedbuf.Step{{step}, {step, step}} {
					_, err := b.Process(t.Context(), chain...)
					if may && err != nil || !may && !errors.Is(err, sharedbuf.ErrDenied) {
						t.Errorf("%s: %s: %v", test.name, step.Operation, err)
					}
				}
				j, err := b.Start(t.Context(), step)
				if err == nil {
					_, err = j.Wait(t.Context())
				}
				if may && err != nil || !may && !errors.Is(err, sharedbuf.ErrDenied) {
					t.Errorf("%s: %s in the background: %v", test.name, step.Operation, err)
				}
				if filled := b.Bytes()[0] == 7; filled != (may && step.Operation == "fill") {
					t.Errorf("%s: %s: the buffer was filled: %v", test.name, step.Operation, filled)
				}
			}
		}
		// A chain is refused whole.
		b, err := c.AllocWith(t.Context(), 100, sharedbuf.AllocOptions{Permissions: sharedbuf.Permissions{Operations: []string{"fill"}}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Process(t.Context(), sharedbuf.Fill(7), sharedbuf.Checksum()); !errors.Is(err, sharedbuf.ErrDenied) || b.Bytes()[0] != 0 {
			t.Errorf("a chain whose second step is denied: %v, %d", err, b.Bytes()[0])
		}
		for name, p := range map[string]sharedbuf.Permissions{
			"mode": {Mode: os.ModeDir | 0o700},
			"long": {Operations: []string{strings.Repeat("x", 5000)}},
		} {
			if _, err := c.AllocWith(t.Context(), 100, sharedbuf.AllocOptions{Permissions: p}); !errors.Is(err, sharedbuf.ErrInvalid) && !errors.Is(err, sharedbuf.ErrLimit) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

// A file's permissions hold for whoever names it, and do not depend on what he
// says; of a lease that is not understood nothing is allowed.
func TestPermissionsOfFiles(t *testing.T) {
	ln, dir := tcp(t), t.TempDir()
	serve(t, ln, host.Config{Dir: dir})
	b, err := dial(t, ln, dir).AllocWith(t.Context(), 100, sharedbuf.AllocOptions{
		Permissions: sharedbuf.Permissions{Mode: 0o640, ReadOnly: true}})
	if err != nil {
		t.Fatal(err)
	}
	for suffix, want := range map[string]os.FileMode{"": 0o640, ".lease": 0o640} {
		if info, err := os.Stat(b.Path() + suffix); err != nil || info.Mode() != want {
			t.Errorf("%s%s: %v, %v", b.Path(), suffix, info.Mode(), err)
		}
	}
	g := connect(t, ln)
	fill := func(path string) *sharedbuf.Reply {
		return g.ask(map[string]any{"api": "shared_buffer", "operation": "fill", "arguments": map[string]int{"pattern": 1},
			"file_path": path, "buffer_size": 100, "permissions": map[string]any{}})
	}
	if reply := fill(b.Path()); reply.Code != sharedbuf.ErrDenied {
		t.Errorf("a guest without generation and lease fills it: %+v", reply)
	}
	// As another guest, of whatever version, may have left it.
	lease := func(terms string) []byte {
		record := append([]byte("MSPLEAS2"), make([]byte, 56)...)
		return append(binary.LittleEndian.AppendUint32(record, uint32(len(terms))), terms...)
	}
	for name, test := range map[string]struct {
		lease []byte
		want  sharedbuf.Code
	}{
		"first version":     {append([]byte("MSPLEASE"), make([]byte, 56)...), ""},
		"no terms":          {lease(""), ""},
		"allowed":           {lease(`{"operations":["fill"]}`), ""},
		"denied":            {lease(`{"operations":["checksum"]}`), sharedbuf.ErrDenied},
		"a field too many":  {lease(`{"until":"noon"}`), sharedbuf.ErrDenied},
		"no JSON":           {lease(`{`), sharedbuf.ErrDenied},
		"something else":    {lease(`7`), sharedbuf.ErrDenied},
		"cut":               {lease(`{"operations":["fill"]}`)[:70], sharedbuf.ErrStale},
		"an unknown record": {append([]byte("MSPLEAS3"), make([]byte, 60)...), sharedbuf.ErrStale},
		"empty":             {nil, sharedbuf.ErrStale},
	} {
		path := filepath.Join(dir, "buffer")
		if err := errors.Join(os.WriteFile(path, make([]byte, 100), 0o600), os.WriteFile(path+".lease", test.lease, 0o600)); err != nil {
			t.Fatal(err)
		}
		if reply := fill(path); reply.Code != test.want {
			t.Errorf("%s: %+v, want %q", name, reply, test.want)
		}
		text, err := os.ReadFile(path)
		if err != nil || (text[0] == 1) != (test.want == "") {
			t.Errorf("%s: filled: %v, %v", name, text[0] == 1, err)
		}
	}
}

// What is written as permissions is read as the same.
func TestPermissionsAreReadAsWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := sharedbuf.Permissions{
			ReadOnly:   rapid.Bool().Draw(t, "readOnly"),
			Operations: rapid.SliceOfN(rapid.String(), 0, 3).Draw(t, "operations"),
			Users:      rapid.SliceOfN(rapid.IntRange(0, 5), 0, 3).Draw(t, "users"),
		}
		text, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		back, err := sharedbuf.ParsePermissions(text)
		if err != nil {
			t.Fatal(err)
		}
		user := rapid.IntRange(-1, 5).Draw(t, "user")
		op := rapid.SampledFrom(append(p.Operations, "other")).Draw(t, "operation")
		writes := rapid.Bool().Draw(t, "writes")
		want := (len(p.Users) == 0 || slices.Contains(p.Users, user)) &&
			(len(p.Operations) == 0 || slices.Contains(p.Operations, op)) && !(p.ReadOnly && writes)
		if got := back.Permit(user, op, writes); (got == nil) != want {
			t.Errorf("%s: user %d, %q, writes %v: %v", text, user, op, writes, got)
		}
	})
}

func FuzzParsePermissions(f *testing.F) {
	f.Add([]byte(`{"read_only":true,"operations":["process"],"users":[0,1000]}`), "process")
	f.Add([]byte(``), "fill")
	f.Add([]byte(`{} {}`), "fill")
	f.Fuzz(func(t *testing.T, text []byte, operation string) {
		p, err := sharedbuf.ParsePermissions(text)
		if err != nil {
			if !errors.Is(err, sharedbuf.ErrDenied) {
				t.Errorf("%q: %v", text, err)
			}
			return
		}
		if err := p.Permit(-1, operation, true); err != nil && !errors.Is(err, sharedbuf.ErrDenied) {
			t.Errorf("%q: %v", text, err)
		}
	})
}
