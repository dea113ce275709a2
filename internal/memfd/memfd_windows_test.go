// SPDX-License-Identifier: Apache-2.0

package memfd_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/windows"

	"github.com/memspan/memspan/internal/memfd"
)

// handleEnv has the handle that a child of a test reads by.
const handleEnv = "MEMSPAN_TEST_HANDLE"

func TestMain(m *testing.M) {
	if text := os.Getenv(handleEnv); text != "" {
		h, err := strconv.ParseUint(text, 10, 64)
		if err == nil {
			err = readOnly(os.NewFile(uintptr(h), "passed"))
		}
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

const (
	mib   = 1 << 20
	limit = 512 * mib
)

// readOnly is the child: it looks at what is published, tries to get at more, and
// looks again when its input ends.
func readOnly(file *os.File) error {
	if size, err := memfd.Size(file); err != nil || size != limit {
		return fmt.Errorf("the size is %d, %v, want %d", size, err, limit)
	}
	mem, err := memfd.MapRange(file, 0, limit, false)
	if err != nil {
		return err
	}
	if !bytes.Equal(mem[:mib], bytes.Repeat([]byte{1}, mib)) {
		return errors.New("what was published is not seen")
	}
	if err := memfd.Guard(func() { mem[0] = 2 }); err == nil {
		return errors.New("a read-only mapping was written to")
	}
	if _, err := memfd.MapRange(file, 0, mib, true); err == nil {
		return errors.New("it was mapped for writing")
	}
	if _, err := memfd.MapRange(file, 0, limit+1, false); err == nil {
		return errors.New("more than there is was mapped")
	}
	for name, access := range map[string]uint32{"write": windows.FILE_MAP_WRITE, "grant": windows.WRITE_DAC, "own": windows.WRITE_OWNER, "all": windows.GENERIC_ALL} {
		var h windows.Handle
		if windows.DuplicateHandle(windows.CurrentProcess(), windows.Handle(file.Fd()), windows.CurrentProcess(), &h, access, false, 0) == nil {
			fmt.Printf("may %s\n", name)
		}
	}
	fmt.Println("ready")
	if _, err := io.ReadAll(os.Stdin); err != nil {
		return err
	}
	fault := memfd.Guard(func() {
		if !bytes.Equal(mem[64*mib:65*mib], bytes.Repeat([]byte{3}, mib)) {
			err = errors.New("what was published later is not seen")
		}
	})
	tail, terr := memfd.MapRange(file, 64*mib+4096, 10, false)
	if terr == nil && tail[0] != 3 {
		terr = errors.New("a range in the middle is another one")
	}
	if terr == nil {
		terr = memfd.Unmap(tail)
	}
	return errors.Join(err, fault, terr, memfd.Unmap(mem), file.Close())
}

func TestPublishedIsReadByOthers(t *testing.T) {
	p, err := memfd.Publish("test", limit)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Grow(2 * mib); err != nil {
		t.Fatal(err)
	}
	copy(p.Writable(), bytes.Repeat([]byte{1}, mib))
	if !bytes.Equal(p.Bytes()[:mib], bytes.Repeat([]byte{1}, mib)) {
		t.Error("its two mappings differ")
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	h := windows.Handle(p.File().Fd())
	if err := windows.SetHandleInformation(h, windows.HANDLE_FLAG_INHERIT, windows.HANDLE_FLAG_INHERIT); err != nil {
		t.Fatal(err)
	}
	child := exec.Command(program)
	child.Env = append(os.Environ(), fmt.Sprintf("%s=%d", handleEnv, h))
	child.SysProcAttr = &syscall.SysProcAttr{AdditionalInheritedHandles: []syscall.Handle{syscall.Handle(h)}}
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	// Wine gives whoever asks the rights that owners have.
	wine := windows.NewLazySystemDLL("ntdll.dll").NewProc("wine_get_version").Find() == nil
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			t.Fatalf("the reader: %s%v", line, err)
		}
		if line == "ready\n" {
			break
		}
		if line == "may write\n" || !wine {
			t.Errorf("a reader gets more rights: %s", line)
		}
	}
	// It grows under the readers.
	if err := p.Grow(128 * mib); err != nil {
		t.Fatal(err)
	}
	for i := range p.Writable()[64*mib : 65*mib] {
		p.Writable()[64*mib+i] = 3
	}
	if err := errors.Join(p.Fix(), p.Freeze(), p.Freeze()); err != nil {
		t.Fatal(err)
	}
	if p.Writable() != nil || p.Grow(129*mib) == nil {
		t.Error("it can be changed after it was frozen")
	}
	if n, err := p.ReadAt(make([]byte, 10), 128*mib-5); n != 5 || err != io.EOF {
		t.Errorf("ReadAt the end: %d, %v", n, err)
	}
	if err := p.Close(); err != nil { // the child still has it
		t.Error(err)
	}
	in.Close()
	said, _ := io.ReadAll(lines)
	if err := child.Wait(); err != nil {
		t.Errorf("the reader: %v: %s", err, said)
	}
}
