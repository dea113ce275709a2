// SPDX-License-Identifier: Apache-2.0

package memfd_test

import (
	"bytes"
	"fmt"
	"os"
	"syscall"
	"testing"

	"github.com/memspan/memspan/internal/memfd"
	"golang.org/x/sys/unix"
)

func publish(t *testing.T, limit int64) *memfd.Published {
	t.Helper()
	p, err := memfd.Publish("published", limit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// attack does to the memory behind f all that a process can that has its descriptor,
// and reports what it succeeded in.
func attack(t *testing.T, f *os.File) (succeeded []string) {
	t.Helper()
	try := func(what string, err error) {
		if err == nil {
			succeeded = append(succeeded, what)
		}
	}
	size := int(must(f.Stat()).Size())
	files := map[string]*os.File{"as it came": f}
	// The same user can always open it anew, should it not be writable for him.
	path := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	if err := os.Chmod(path, 0o600); err == nil {
		if w, err := os.OpenFile(path, os.O_RDWR, 0); err == nil {
			defer w.Close()
			files["opened anew"] = w
		}
	}
	for how, f := range files {
		fd := int(f.Fd())
		_, err := f.WriteAt([]byte{0xff}, 0)
		try("write, "+how, err)
		for name, flags := range map[string]int{"shared": unix.MAP_SHARED, "validated": unix.MAP_SHARED_VALIDATE} {
			mem, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, flags)
			try("a writable mapping, "+name+", "+how, err)
			if err == nil {
				unix.Munmap(mem)
			}
			if mem, err = unix.Mmap(fd, 0, size, unix.PROT_READ, flags); err == nil {
				try("making a mapping writable, "+name+", "+how, unix.Mprotect(mem, unix.PROT_READ|unix.PROT_WRITE))
				try("removing pages, "+name+", "+how, unix.Madvise(mem, unix.MADV_REMOVE))
				unix.Munmap(mem)
			}
		}
		try("truncating, "+how, unix.Ftruncate(fd, 0))
		try("punching a hole, "+how, unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4096))
		try("zeroing, "+how, unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE, 0, 4096))
		try("collapsing, "+how, unix.Fallocate(fd, unix.FALLOC_FL_COLLAPSE_RANGE, 0, 4096))
	}
	return succeeded
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// Whoever has the descriptor can read, and neither write nor shrink, while it
// grows and once it is frozen.
func TestPublishedIsWrittenByItsOwnerAlone(t *testing.T) {
	p := publish(t, 1<<20)
	for _, size := range []int64{4096, 1 << 20} {
		if err := p.Grow(size); err != nil {
			t.Fatal(err)
		}
		if err := p.Share(); err != nil {
			t.Fatal(err)
		}
		if _, err := p.WriteAt([]byte{byte(size >> 12)}, size-1); err != nil {
			t.Fatal(err)
		}
		if done := attack(t, p.File()); len(done) > 0 {
			t.Errorf("%d bytes: an attacker succeeded in: %v", size, done)
		}
	}
	want := bytes.Clone(p.Bytes())
	if err := p.Fix(); err != nil {
		t.Fatal(err)
	}
	if err := p.Freeze(); err != nil {
		t.Fatal(err)
	}
	if done := attack(t, p.File()); len(done) > 0 {
		t.Errorf("frozen: an attacker succeeded in: %v", done)
	}
	if p.Writable() != nil {
		t.Error("its owner can write what is frozen")
	}
	if !bytes.Equal(p.Bytes(), want) || want[4095] != 1 || want[1<<20-1] != 0 {
		t.Error("other bytes")
	}
	if err := p.Freeze(); err != nil {
		t.Errorf("frozen twice: %v", err)
	}
	if err := p.Share(); err != nil || p.Writable() != nil {
		t.Errorf("frozen, it was shared such that it can be written: %v", err)
	}
}

// It is shared while it is written, and no byte is lost, wherever the writer is.
func TestPublishedIsSharedWhileItIsWritten(t *testing.T) {
	const size, piece = 4 << 20, 4099
	want := bytes.Repeat([]byte("0123456789abcde"), size/15+1)[:size]
	for at := 0; at < size/piece; at += 100 {
		p := publish(t, size)
		if err := p.Grow(size); err != nil {
			t.Fatal(err)
		}
		reached, shared := make(chan struct{}), make(chan error, 1)
		go func() {
			<-reached
			shared <- p.Share()
		}()
		for off := 0; off < size; off += piece {
			if off == at*piece {
				close(reached)
			}
			if n, err := p.WriteAt(want[off:min(off+piece, size)], int64(off)); err != nil || n != min(piece, size-off) {
				t.Fatalf("%d bytes at %d: %v", n, off, err)
			}
		}
		if err := <-shared; err != nil {
			t.Fatal(err)
		}
		if done := attack(t, p.File()); len(done) > 0 {
			t.Errorf("an attacker succeeded in: %v", done)
		}
		if err := p.Freeze(); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(p.Bytes(), want) {
			t.Errorf("shared at %d: other bytes", at*piece)
		}
		p.Close()
	}
}

// Frozen without having been shared, it is what nobody can write, or it is not frozen.
func TestFreezingNeedsTheSeal(t *testing.T) {
	p := publish(t, 4096)
	if err := p.Grow(4096); err != nil {
		t.Fatal(err)
	}
	path := fmt.Sprintf("/proc/self/fd/%d", p.File().Fd())
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	f := must(os.OpenFile(path, os.O_RDWR, 0))
	defer f.Close()
	mem := must(unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED))
	if err := p.Freeze(); err == nil {
		t.Error("frozen, and somebody can write it")
	}
	if err := unix.Munmap(mem); err != nil {
		t.Fatal(err)
	}
	if err := p.Freeze(); err != nil {
		t.Error(err)
	}
	if done := attack(t, p.File()); len(done) > 0 {
		t.Errorf("an attacker succeeded in: %v", done)
	}
}

// Freezing works against a reader that maps it, and against one that keeps pages
// busy and with them the seal from being set.
func TestNobodyPreventsFreezing(t *testing.T) {
	for _, busy := range []bool{false, true} {
		p := publish(t, 1<<16)
		if err := p.Grow(1 << 16); err != nil {
			t.Fatal(err)
		}
		if err := p.Share(); err != nil {
			t.Fatal(err)
		}
		if _, err := p.WriteAt([]byte("bytes"), 0); err != nil {
			t.Fatal(err)
		}
		path := fmt.Sprintf("/proc/self/fd/%d", p.File().Fd())
		if err := os.Chmod(path, 0o600); err != nil {
			t.Fatal(err)
		}
		f := must(os.OpenFile(path, os.O_RDWR, 0))
		defer f.Close()
		mem := must(unix.Mmap(int(f.Fd()), 0, 1<<16, unix.PROT_READ, unix.MAP_SHARED))
		defer unix.Munmap(mem)
		if busy {
			var pipe [2]int
			if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
				t.Fatal(err)
			}
			defer unix.Close(pipe[0])
			defer unix.Close(pipe[1])
			if _, err := unix.Vmsplice(pipe[1], []unix.Iovec{{Base: &mem[0], Len: 4096}}, 0); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.Freeze(); err != nil {
			t.Fatalf("busy %v: %v", busy, err)
		}
		if done := attack(t, p.File()); len(done) > 0 {
			t.Errorf("busy %v: an attacker succeeded in: %v", busy, done)
		}
	}
}

func TestAdoptTakesWhatNobodyCanChange(t *testing.T) {
	all := unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW
	for _, seals := range []int{0, all &^ unix.F_SEAL_WRITE, all &^ unix.F_SEAL_SHRINK, all &^ unix.F_SEAL_GROW, all} {
		fd := must(unix.MemfdCreate("adopt", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING))
		f := os.NewFile(uintptr(fd), "adopt")
		defer f.Close()
		must(f.WriteString("bytes"))
		must(unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals))
		p, err := memfd.Adopt(f)
		if (err == nil) != (seals == all) {
			t.Errorf("seals %#x: error %v", seals, err)
		}
		if err != nil {
			continue
		}
		if string(p.Bytes()) != "bytes" || p.Limit() != 5 {
			t.Errorf("adopted %q", p.Bytes())
		}
		p.Close()
	}
	if _, err := memfd.Adopt(must(os.Open("/dev/null"))); err == nil {
		t.Error("a device was adopted")
	}
}

// Limits of the process are told, so that nobody runs into those that kill.
func TestLimitsAreRead(t *testing.T) {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &l); err != nil {
		t.Fatal(err)
	}
	got := memfd.ReadLimits()
	if unlimited := l.Cur > 1<<62; unlimited != (got.File == 0) {
		t.Errorf("file size limit %d, read as %d", l.Cur, got.File)
	}
}

func TestDataFindsHoles(t *testing.T) {
	f := must(os.Create(t.TempDir() + "/sparse"))
	defer f.Close()
	if err := f.Truncate(1 << 20); err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{64 << 10, 512 << 10} {
		must(f.WriteAt([]byte("data"), off))
	}
	got := must(memfd.Data(f, 1<<20, 100))
	if len(got) != 2 {
		t.Skipf("the file system knows no holes: %v", got)
	}
	for i, off := range []int64{64 << 10, 512 << 10} {
		if got[i][0] > off || got[i][1] < off+4 || got[i][1] > off+(64<<10) {
			t.Errorf("data in %v, want some around %d", got[i], off)
		}
	}
	if got := must(memfd.Data(f, 1<<20, 1)); len(got) != 1 || got[0][1] != 1<<20 {
		t.Errorf("limited to one: %v", got)
	}
	if got := must(memfd.Data(f, 0, 1)); len(got) != 0 {
		t.Errorf("of nothing: %v", got)
	}
}

// Frozen, it has address space for its bytes alone, and they stay in their place.
func TestFreezeGivesAddressSpaceBack(t *testing.T) {
	p := publish(t, 1<<40)
	if err := p.Grow(5000); err != nil {
		t.Fatal(err)
	}
	if _, err := p.WriteAt([]byte("here"), 0); err != nil {
		t.Fatal(err)
	}
	before := p.Bytes()[:5000]
	if err := p.Freeze(); err != nil {
		t.Fatal(err)
	}
	if p.Limit() != 5000 || len(p.Bytes()) != 5000 || &before[0] != &p.Bytes()[0] || string(before[:4]) != "here" {
		t.Errorf("limit %d, %d bytes", p.Limit(), len(p.Bytes()))
	}
	f, err := memfd.Adopt(p.File())
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	text, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(text) {
		var begin, end uint64
		if bytes.Contains(line, []byte("memfd:published")) {
			if _, err := fmt.Sscanf(string(line), "%x-%x", &begin, &end); err != nil || end-begin > 8192 {
				t.Errorf("%s (%v)", line, err)
			}
		}
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}
