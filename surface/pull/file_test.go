// SPDX-License-Identifier: Apache-2.0

package pull_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/memspan/memspan/surface"
	"github.com/memspan/memspan/surface/pull"
	"github.com/memspan/memspan/wire"
)

// interrupted pulls to path until a good half is there.
func interrupted(t *testing.T, h *host, ticket *surface.Ticket, path string, r surface.Range) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	half := int64(len(h.stored)) / 2
	s := open(t, ticket, pull.Options{Progress: func(p pull.Progress) {
		if p.Done > half {
			cancel()
		}
	}})
	if err := s.ToFile(ctx, path, r); !errors.Is(err, context.Canceled) {
		t.Fatalf("the first pull: %v", err)
	}
	s.Close()
}

// What a partial file has is not asked for again, nor hashed; after a restart of
// the machine it is hashed, and what is not right is asked for again.
func TestResumed(t *testing.T) {
	content := random(20*mib + 33)
	clear(content[3*mib : 5*mib])
	for _, key := range []*surface.Key{nil, new(surface.NewKey())} {
		for _, reboot := range []bool{false, true} {
			h := expose(t, content, mib, key)
			var reads atomic.Int64
			h.onRead = func(*wire.Conn, wire.Header, wire.MemoryCommand) bool {
				reads.Add(1)
				return false
			}
			ticket := h.rooted(h.tcp())
			path := filepath.Join(t.TempDir(), "file")
			interrupted(t, h, ticket, path, all)
			if _, err := os.Stat(path); err == nil {
				t.Fatal("there is a file before its time")
			}
			want := content
			spoil, err := os.OpenFile(path+".part", os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := spoil.WriteAt([]byte{content[100] + 1}, 100); err != nil {
				t.Fatal(err)
			}
			spoil.Close()
			if reboot {
				if err := pull.Reboot(path + ".part.state"); err != nil {
					t.Fatal(err)
				}
			} else { // it is believed: who spoils a partial file spoils the file
				want = bytes.Clone(content)
				want[100]++
			}
			reads.Store(0)
			s := open(t, ticket, pull.Options{})
			if err := s.ToFile(t.Context(), path, all); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
				t.Errorf("key %v, reboot %v: other bytes, or %v", key, reboot, err)
			}
			frames := int64(1) // of a chunk
			if key != nil {
				frames = 2
			}
			if n := reads.Load(); n > 12*frames {
				t.Errorf("key %v, reboot %v: %d of 21 chunks were read again", key, reboot, n/frames)
			}
		}
	}
}

func TestPartInTheWay(t *testing.T) {
	h := expose(t, random(10*mib), mib, nil)
	ticket := h.rooted(h.tcp())
	path := filepath.Join(t.TempDir(), "file")
	interrupted(t, h, ticket, path, all)
	before, err := os.ReadFile(path + ".part")
	if err != nil {
		t.Fatal(err)
	}
	refused := func(why string, ticket *surface.Ticket, r surface.Range) {
		t.Helper()
		s := open(t, ticket, pull.Options{})
		if err := s.ToFile(t.Context(), path, r); !errors.Is(err, pull.ErrPart) {
			t.Errorf("%s: %v", why, err)
		}
	}
	other := expose(t, random(10*mib), mib, nil)
	refused("another surface", other.rooted(other.tcp()), all)
	refused("another range", ticket, surface.Range{Offset: 1, Length: mib})
	if after, err := os.ReadFile(path + ".part"); err != nil || !bytes.Equal(before, after) {
		t.Errorf("it was changed, or %v", err)
	}
	state, err := os.ReadFile(path + ".part.state")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".part.state", state[:len(state)-1], 0o600); err != nil {
		t.Fatal(err)
	}
	refused("a damaged state", ticket, all)
	if err := os.Remove(path + ".part.state"); err != nil {
		t.Fatal(err)
	}
	refused("no state", ticket, all)
	if err := os.Remove(path + ".part"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".part.state", state, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := open(t, ticket, pull.Options{}).ToFile(t.Context(), path, all); err != nil {
		t.Errorf("a state alone: %v", err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, random(10*mib)) {
		t.Errorf("other bytes, or %v", err)
	}
}

func TestTwoPullersOfOneFile(t *testing.T) {
	h := grow(t, 16*kib, nil)
	ticket := h.rootless(h.tcp())
	path := filepath.Join(t.TempDir(), "file")
	begun := make(chan struct{})
	first := open(t, ticket, pull.Options{Progress: func(pull.Progress) { close(begun) }})
	done := make(chan error)
	go func() { done <- first.ToFile(t.Context(), path, all) }()
	h.add(random(16 * kib))
	<-begun
	if err := open(t, ticket, pull.Options{}).ToFile(t.Context(), path, all); !errors.Is(err, pull.ErrBusy) {
		t.Errorf("the second: %v", err)
	}
	h.seal()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// What is not a plain file is not replaced by one, and a link leads where it did.
func TestNoPlainFile(t *testing.T) {
	content := random(10 * kib)
	h := expose(t, content, 4*kib, nil)
	s := open(t, h.rooted(h.tcp()), pull.Options{})
	dir := t.TempDir()
	old, link := filepath.Join(dir, "old"), filepath.Join(dir, "link")
	if err := os.WriteFile(old, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(old, link); err != nil {
		t.Skip(err) // Windows does not allow it to everybody
	}
	if err := s.ToFile(t.Context(), link, all); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(old); err != nil || !bytes.Equal(got, content) {
		t.Errorf("where the link leads are %d bytes, %v", len(got), err)
	}
	if to, err := os.Readlink(link); err != nil || to != old {
		t.Errorf("the link leads to %q, %v", to, err)
	}
	if err := s.ToFile(t.Context(), dir, all); !errors.Is(err, fs.ErrExist) {
		t.Errorf("in the place of a directory: %v", err)
	}
	if _, err := os.Lstat(dir + ".part"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("something was pulled for a directory: %v", err)
	}
}
