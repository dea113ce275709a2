// SPDX-License-Identifier: Apache-2.0

package host_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/memspan/memspan/internal/durable"
	"github.com/memspan/memspan/sharedbuf"
	"github.com/memspan/memspan/sharedbuf/host"
)

// Operations that work on pieces, many at a time, see and change the buffer's
// bytes, and nothing beyond its end.
func TestCallReadsAndWrites(t *testing.T) {
	reverse := host.Operation{Name: "reverse", Access: host.ReadWrite, Run: func(c *host.Call) (any, error) {
		var g errgroup.Group
		const piece = 1000
		for off := int64(0); off < c.Size()/2; off += piece {
			g.Go(func() error {
				n := min(piece, c.Size()/2-off)
				low, high := make([]byte, n), make([]byte, n)
				_, err := c.ReadAt(low, off)
				if _, rerr := c.ReadAt(high, c.Size()-off-n); err == nil {
					err = rerr
				}
				slices.Reverse(low)
				slices.Reverse(high)
				if _, werr := c.WriteAt(high, off); err == nil {
					err = werr
				}
				if _, werr := c.WriteAt(low, c.Size()-off-n); err == nil {
					err = werr
				}
				c.Processed(2 * n)
				return err
			})
		}
		return nil, g.Wait()
	}}
	edges := host.Operation{Name: "edges", Access: host.ReadWrite, Run: func(c *host.Call) (any, error) {
		p := make([]byte, 10)
		for _, tt := range []struct {
			off  int64
			n    int
			read error
		}{{c.Size() - 10, 10, nil}, {c.Size() - 4, 4, io.EOF}, {c.Size(), 0, io.EOF}, {c.Size() + 1, 0, io.EOF}, {1<<63 - 1, 0, io.EOF}} {
			if n, err := c.ReadAt(p, tt.off); n != tt.n || err != tt.read {
				return nil, fmt.Errorf("read at %d: %d, %w", tt.off, n, err)
			}
			if n, err := c.WriteAt(p, tt.off); n != tt.n || (err == nil) != (tt.read == nil) {
				return nil, fmt.Errorf("write at %d: %d, %w", tt.off, n, err)
			}
		}
		if _, err := c.ReadAt(p, -1); !errors.Is(err, sharedbuf.ErrInvalid) {
			return nil, fmt.Errorf("read at -1: %w", err)
		}
		return nil, nil
	}}
	kinds(t, func(t *testing.T, ln net.Listener, dir string) {
		serve(t, ln, host.Config{Dir: dir, Operations: []host.Operation{reverse, edges}})
		b := alloc(t, dial(t, ln, dir), 123456)
		scribble(b.Bytes())
		want := bytes.Clone(b.Bytes())
		slices.Reverse(want)
		r, err := b.Process(t.Context(), sharedbuf.Operation("reverse", nil), sharedbuf.Operation("edges", nil))
		if err != nil || r.Bytes != b.Size() || !bytes.Equal(b.Bytes(), want) {
			t.Errorf("%+v, %v, as expected: %t", r, err, bytes.Equal(b.Bytes(), want))
		}
	})
}

// Bytes that are gone are an error for whoever copies them.
func TestCallOnATruncatedFile(t *testing.T) {
	ln, dir := tcp(t), t.TempDir()
	path := filepath.Join(dir, "f")
	var read, write error
	gone := host.Operation{Name: "gone", Access: host.ReadWrite, Run: func(c *host.Call) (any, error) {
		if err := os.Truncate(path, 4096); err != nil {
			return nil, err
		}
		p := make([]byte, 100)
		_, read = c.ReadAt(p, 8192)
		_, write = c.WriteAt(p, 8192)
		return nil, nil
	}}
	serve(t, ln, host.Config{Dir: dir, Operations: []host.Operation{gone}})
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := dial(t, ln, dir).ProcessFile(t.Context(), path, sharedbuf.Operation("gone", nil)); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(read, sharedbuf.ErrTruncated) || !errors.Is(write, sharedbuf.ErrTruncated) {
		t.Errorf("read: %v, write: %v", read, write)
	}
}

// An operation is told whether the buffer's bytes are in RAM.
func TestCallInMemory(t *testing.T) {
	inMemory := host.Operation{Name: "in-memory", Run: func(c *host.Call) (any, error) { return c.InMemory(), nil }}
	disk := t.TempDir()
	system, err := durable.FileSystemOf(disk)
	if err != nil {
		t.Skip(err)
	}
	check := func(name string, ln net.Listener, dir string, encrypted, want bool) {
		serve(t, ln, host.Config{Dir: dir, Operations: []host.Operation{inMemory}})
		b, err := dial(t, ln, dir).AllocWith(t.Context(), 1000, sharedbuf.AllocOptions{Encrypted: encrypted})
		if err != nil {
			t.Fatal(err)
		}
		r, err := b.Process(t.Context(), sharedbuf.Operation("in-memory", nil))
		if err != nil {
			t.Fatal(err)
		}
		if got := decode[bool](t, r.Value); got != want {
			t.Errorf("%s: in memory is %t", name, got)
		}
	}
	check("a file", tcp(t), disk, false, system.Volatile)
	check("an encrypted file", tcp(t), disk, true, true)
	check("bytes that are sent", tcp(t), "", false, true)
	if runtime.GOOS != "linux" {
		return
	}
	check("memory without a name", unixSocket(t), "", false, true)
	ram, err := os.MkdirTemp("/dev/shm", "memspan-test-")
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { os.RemoveAll(ram) })
	check("a file in RAM", tcp(t), ram, false, true)
}

// A host without spans knows the operations that need them; one that has them
// replaces these.
func TestOperationsThatNeedSpans(t *testing.T) {
	ln, dir := tcp(t), t.TempDir()
	own := host.Operation{Name: "export", Run: func(*host.Call) (any, error) { return "mine", nil }}
	serve(t, ln, host.Config{Dir: dir, Operations: []host.Operation{own}})
	b := alloc(t, dial(t, ln, dir), 100)
	for _, step := range []sharedbuf.Step{
		sharedbuf.Ingest(sharedbuf.IngestArguments{Name: "s"}), sharedbuf.Transform(sharedbuf.TransformArguments{Kernel: "k"}),
	} {
		if _, err := b.Process(t.Context(), step); !errors.Is(err, sharedbuf.ErrUnsupported) {
			t.Errorf("%s: %v", step.Operation, err)
		}
	}
	if r, err := b.Process(t.Context(), sharedbuf.Export("s")); err != nil || string(r.Value) != `"mine"` {
		t.Errorf("%+v, %v", r, err)
	}
}

// A file that is there is worked on as it is, if it is where the host looks.
func TestProcessFile(t *testing.T) {
	ln, dir := tcp(t), t.TempDir()
	serve(t, ln, host.Config{Dir: dir})
	c := dial(t, ln, "")
	path := filepath.Join(dir, "f")
	write := func(path string, n int) string {
		if err := os.WriteFile(path, make([]byte, n), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	r, err := c.ProcessFile(t.Context(), write(path, 10), sharedbuf.Fill(0x04030201), sharedbuf.Process())
	if err != nil || r.Bytes != 20 {
		t.Fatalf("%+v, %v", r, err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, []byte{1, 2, 3, 4, 1, 2, 3, 4, 1, 2}) {
		t.Errorf("the file has %v, %v", got, err)
	}
	for _, tt := range []struct {
		path string
		code sharedbuf.Code
	}{
		{filepath.Join(dir, "none"), sharedbuf.ErrNotFound},
		{write(filepath.Join(t.TempDir(), "outside"), 10), sharedbuf.ErrOutside},
		{write(filepath.Join(dir, "empty"), 0), sharedbuf.ErrInvalid},
	} {
		if _, err := c.ProcessFile(t.Context(), tt.path, sharedbuf.Process()); !errors.Is(err, tt.code) {
			t.Errorf("%s: %v, want %s", tt.path, err, tt.code)
		}
	}
	if _, err := c.ProcessFile(t.Context(), path); !errors.Is(err, sharedbuf.ErrInvalid) {
		t.Errorf("no operation: %v", err)
	}
}
