// SPDX-License-Identifier: Apache-2.0

package surface_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/windows"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/surface"
)

// pullerEnv has the handles that a child of a test pulls by.
const pullerEnv = "MEMSPAN_TEST_PULLER"

const (
	pulledSize = 5<<20 + 123
	pulledSeed = 9
)

// Another process, which inherited the two handles and has nothing else, waits for
// the chunks of a surface that is still written, and maps them; what it has mapped
// outlives the store.
func TestDirectPullOfAnotherProcess(t *testing.T) {
	if handles := os.Getenv(pullerEnv); handles != "" {
		if err := pull(handles); err != nil {
			t.Fatal(err)
		}
		return
	}
	s := surface.NewStore(surface.Config{})
	e := create(t, s, surface.Spec{Size: -1})
	o := open(t, s, e.Ticket())
	memory, page, err := files(o)
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command(os.Args[0], "-test.run=^TestDirectPullOfAnotherProcess$", "-test.timeout=30s")
	child.Env = append(os.Environ(), fmt.Sprintf("%s=%d %d", pullerEnv, memory.Fd(), page.Fd()))
	child.SysProcAttr = new(syscall.SysProcAttr)
	for _, f := range []*os.File{memory, page} {
		if err := windows.SetHandleInformation(windows.Handle(f.Fd()), windows.HANDLE_FLAG_INHERIT, windows.HANDLE_FLAG_INHERIT); err != nil {
			t.Fatal(err)
		}
		child.SysProcAttr.AdditionalInheritedHandles = append(child.SysProcAttr.AdditionalInheritedHandles, syscall.Handle(f.Fd()))
	}
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
	lines := bufio.NewReader(out)
	hear := func(want string) {
		t.Helper()
		if line, err := lines.ReadString('\n'); strings.TrimSpace(line) != want {
			rest, _ := io.ReadAll(lines)
			t.Fatalf("the puller said %q (%v), want %q\n%s", line, err, want, rest)
		}
	}
	hear("waiting")
	content := random(pulledSize, pulledSeed)
	for i := 0; i < len(content); i += 1 << 20 {
		if err := e.Append(t.Context(), content[i:min(i+1<<20, len(content))]); err != nil {
			t.Fatal(err)
		}
		if i+1<<20 <= len(content) {
			hear(fmt.Sprintf("chunk %d", i>>20))
		}
	}
	if _, err := e.Seal(t.Context()); err != nil {
		t.Fatal(err)
	}
	hear(fmt.Sprintf("chunk %d", len(content)>>20))
	hear("whole")
	o.Close()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	in.Close()
	hear("still whole")
	if err := child.Wait(); err != nil {
		t.Error(err)
	}
}

func pull(handles string) error {
	var m, p uintptr
	if _, err := fmt.Sscan(handles, &m, &p); err != nil {
		return err
	}
	memory, page := os.NewFile(m, "memory"), os.NewFile(p, "page")
	defer memory.Close()
	defer page.Close()
	avail, err := surface.OpenAvailability(page)
	if err != nil {
		return err
	}
	defer avail.Close()
	if _, err := memfd.MapRange(page, 0, 4096, true); err == nil {
		return errors.New("the availability page was mapped for writing")
	}
	if _, err := memfd.MapRange(memory, 0, 4096, true); err == nil {
		return errors.New("the memory was mapped for writing")
	}
	fmt.Println("waiting")
	want := random(pulledSize, pulledSeed)
	for i := range int64(6) {
		if err := avail.Wait(context.Background(), i); err != nil {
			return err
		}
		part, err := memfd.MapRange(memory, i<<20, min(1<<20, pulledSize-i<<20), false)
		if err != nil {
			return err
		}
		if !bytes.Equal(part, want[i<<20:][:len(part)]) {
			return fmt.Errorf("chunk %d: other bytes", i)
		}
		if err := memfd.Unmap(part); err != nil {
			return err
		}
		fmt.Println("chunk", i)
	}
	mem, err := memfd.MapRange(memory, 0, pulledSize, false)
	if err != nil {
		return err
	}
	defer memfd.Unmap(mem)
	for seen := avail.Sequence(); avail.State() == surface.Open; seen = avail.Sequence() {
		if err := avail.WaitChange(context.Background(), seen); err != nil {
			return err
		}
	}
	if !bytes.Equal(mem, want) || avail.State() != surface.Sealed {
		return fmt.Errorf("other bytes, or state %v", avail.State())
	}
	fmt.Println("whole")
	if _, err := io.ReadAll(os.Stdin); err != nil {
		return err
	}
	if !bytes.Equal(mem, want) {
		return errors.New("other bytes after the store was closed")
	}
	// Nobody will ring any more.
	if avail.State() != surface.Revoked {
		return fmt.Errorf("state %v after the store was closed", avail.State())
	}
	if err := avail.WaitChange(context.Background(), avail.Sequence()); !errors.Is(err, surface.ErrFailed) {
		return fmt.Errorf("waiting for who is gone: %v", err)
	}
	fmt.Println("still whole")
	return nil
}
