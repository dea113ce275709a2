// SPDX-License-Identifier: Apache-2.0

package durable_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/memspan/memspan/internal/durable"
)

func Example() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	f, err := durable.Open(filepath.Join(dir, "file"), true)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	if _, err := f.Writev([][]byte{[]byte("both "), []byte("parts")}, 0); err != nil {
		panic(err)
	}
	if err := errors.Join(f.Sync(), durable.SyncDir(dir)); err != nil { // durable from here on
		panic(err)
	}
	p := make([]byte, 5)
	if _, err := f.Readv([][]byte{p}, 5); err != nil {
		panic(err)
	}
	fmt.Println(string(p))
	// Output: parts
}

func open(t *testing.T) *durable.File {
	t.Helper()
	f, err := durable.Open(filepath.Join(t.TempDir(), "file"), true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// More buffers than the system takes at once are read and written whole, empty
// ones between them do no harm.
func TestManyBuffers(t *testing.T) {
	f := open(t)
	var write, read [][]byte
	var want, got []byte
	for i := range 3000 {
		p := bytes.Repeat([]byte{byte(i)}, i%5)
		want = append(want, p...)
		write = append(write, p)
	}
	got = make([]byte, len(want))
	for rest := got; len(rest) > 0; {
		n := min(3, len(rest))
		read = append(read, rest[:n], nil)
		rest = rest[n:]
	}
	if n, err := f.Writev(write, 11); n != len(want) || err != nil {
		t.Fatalf("wrote %d of %d: %v", n, len(want), err)
	}
	if n, err := f.Readv(read, 11); n != len(want) || err != nil {
		t.Fatalf("read %d of %d: %v", n, len(want), err)
	}
	if !bytes.Equal(got, want) {
		t.Error("other bytes were read than written")
	}
	if n, err := f.Readv([][]byte{make([]byte, 10), make([]byte, 10)}, 11+int64(len(want))-15); n != 15 || !errors.Is(err, io.EOF) {
		t.Errorf("over the end: %d, %v", n, err)
	}
}

func TestRoom(t *testing.T) {
	f := open(t)
	taken := func() int64 {
		var st syscall.Stat_t
		if err := syscall.Stat(f.Name(), &st); err != nil {
			t.Fatal(err)
		}
		return st.Blocks * 512
	}
	if err := f.Allocate(0, 1<<20); err != nil {
		t.Skip(err)
	}
	if size, err := f.Size(); size != 1<<20 || err != nil || taken() < 1<<20 {
		t.Errorf("allocated: size %d, %d taken, %v", size, taken(), err)
	}
	if err := f.Punch(0, 1<<20); errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	if size, err := f.Size(); size != 1<<20 || err != nil || taken() > 64<<10 {
		t.Errorf("punched: size %d, %d taken, %v", size, taken(), err)
	}
	if err := errors.Join(f.StartWriteback(0, 10), f.WillNeed(0, 10), f.Truncate(5)); err != nil {
		t.Error(err)
	}
	if size, _ := f.Size(); size != 5 {
		t.Errorf("truncated: size %d", size)
	}
}

func TestErrors(t *testing.T) {
	dir := t.TempDir()
	if _, err := durable.Open(filepath.Join(dir, "none"), false); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if err := os.Symlink("elsewhere", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if _, err := durable.Open(filepath.Join(dir, "link"), true); err == nil {
		t.Error("a link was followed")
	}
	f := open(t)
	f.Close()
	if err := f.Sync(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("sync of a closed file: %v", err)
	}
	if _, err := f.Writev([][]byte{{1}}, 0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("write to a closed file: %v", err)
	}
	if err := durable.SyncDir(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("sync of no directory: %v", err)
	}
}
