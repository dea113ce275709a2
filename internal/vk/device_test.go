// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package vk

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

// open opens Vulkan and a device. It fails the test where there is none, unless
// the environment says so.
func open(t *testing.T) (*Instance, *Device) {
	t.Helper()
	i, err := Open()
	if err != nil && os.Getenv("MEMSPAN_TEST_NO_VULKAN") == "1" {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(i.Close)
	d, err := i.OpenDevice(0, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return i, d
}

func TestDevices(t *testing.T) {
	open(t)
	devices, err := Devices()
	if err != nil {
		t.Fatal(err)
	}
	for i, d := range devices {
		if d.Index != i || d.Name == "" || d.API < MakeVersion(1, 0) || len(d.Heaps) == 0 || len(d.Types) == 0 || len(d.Queues) == 0 || d.MaxAllocations < 4096 {
			t.Errorf("%+v", d)
		}
		if d.NonCoherentAtom < 1 || d.NonCoherentAtom > 256 {
			t.Errorf("non-coherent atom of %d bytes", d.NonCoherentAtom)
		}
		if d.API >= MakeVersion(1, 1) && len(d.UUID) != 32 || d.API >= MakeVersion(1, 2) && d.Driver == "" {
			t.Errorf("%+v", d)
		}
		local := false
		for _, h := range d.Heaps {
			local = local || h.DeviceLocal
			if h.Size <= 0 {
				t.Errorf("heap %+v", h)
			}
		}
		if !local { // the specification requires one
			t.Errorf("no heap is device-local: %+v", d.Heaps)
		}
		for _, m := range d.Types {
			if m.Heap >= len(d.Heaps) {
				t.Errorf("type %+v", m)
			}
		}
	}
}

// TestCommands copies and fills on the device and looks at every byte.
func TestCommands(t *testing.T) {
	i, d := open(t)
	const size = 1 << 20
	memoryType := -1
	for n, m := range i.Devices()[0].Types {
		if m.Flags.Has(HostVisible | HostCoherent) {
			memoryType = n
			break
		}
	}
	if memoryType < 0 { // the specification requires one
		t.Fatal("no coherent memory")
	}
	var buffers [2]Buffer
	var mapped [2][]byte
	for n := range buffers {
		b, needs, err := d.CreateBuffer(size)
		if err != nil || needs.Size < size || !needs.Allows(memoryType) {
			t.Fatalf("%+v, %v", needs, err)
		}
		m, err := d.Allocate(needs.Size, memoryType)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Free(m)
		defer d.DestroyBuffer(b)
		if err := d.Bind(b, m); err != nil {
			t.Fatal(err)
		}
		if mapped[n], err = d.Map(m, size); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(d.Invalidate(m, 0, size), d.Flush(m, 0, size)); err != nil {
			t.Error(err)
		}
		buffers[n] = b
	}
	cmds, err := d.NewCommands()
	if err != nil {
		t.Fatal(err)
	}
	defer cmds.Close()
	want := make([]byte, size)
	for round := range 3 { // a list can be used again
		for n := range mapped[0] {
			mapped[0][n] = byte(n>>8) ^ byte(n+round)
			mapped[1][n] = 0xee
			want[n] = 0xee
		}
		copy(want[5:], mapped[0][1000:1777])
		copy(want[9001:], mapped[0][:3])
		copy(want[20000:], bytes.Repeat([]byte{0x78, 0x56, 0x34, 0x12}, 100))
		if err := cmds.Begin(); err != nil {
			t.Fatal(err)
		}
		cmds.Copy(buffers[1], buffers[0], BufferCopy{Src: 1000, Dst: 5, Size: 777}, BufferCopy{Src: 0, Dst: 9001, Size: 3})
		cmds.Fill(buffers[1], 20000, 400, 0x12345678)
		if err := errors.Join(cmds.Submit(), cmds.Wait(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(mapped[1], want) {
			t.Fatalf("round %d: the destination is not as it should be", round)
		}
	}
}

func TestOutOfMemory(t *testing.T) {
	_, d := open(t)
	if m, err := d.Allocate(1<<50, 0); err == nil {
		d.Free(m)
		t.Error("a PiB was allocated")
	} else if !errors.Is(err, ErrOutOfDeviceMemory) && !errors.Is(err, ErrOutOfHostMemory) || !strings.Contains(err.Error(), "vkAllocateMemory") {
		t.Errorf("a PiB: %v", err)
	}
}
