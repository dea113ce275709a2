// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/internal/vk"
)

// benchTimeout bounds one wait for the device.
const benchTimeout = time.Minute

// A benchApp is a Vulkan application that measures what it does.
type benchApp struct {
	info  vk.DeviceInfo
	d     *vk.Device
	c     *vk.Commands
	found []measured
}

// measureVulkan is the application: staging copies, verified, of each size, and
// what an application does all the time.
func measureVulkan(ctx context.Context, sizes []int64) ([]measured, error) {
	begin := time.Now()
	i, err := vk.Open()
	if err != nil {
		return nil, err
	}
	defer i.Close()
	devices := i.Devices()
	if len(devices) == 0 {
		return nil, errors.New("there is no Vulkan device")
	}
	a := &benchApp{info: devices[0]}
	if a.d, err = i.OpenDevice(0, 0); err != nil {
		return nil, err
	}
	defer a.d.Close()
	if a.c, err = a.d.NewCommands(); err != nil {
		return nil, err
	}
	defer a.c.Close()
	a.add("start: instance and device", "ms", milliseconds(time.Since(begin)))
	if err := a.small(); err != nil {
		return nil, err
	}
	if err := a.frames(); err != nil {
		return nil, err
	}
	for _, n := range sizes {
		for _, mode := range []string{"mapped anew", "kept mapped"} {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			if err := a.staging(n, mode == "kept mapped", mode); err != nil {
				return nil, fmt.Errorf("staging %s, %s: %w", humanSize(n), mode, err)
			}
		}
	}
	return a.found, nil
}

func (a *benchApp) add(name, unit string, value float64) {
	a.found = append(a.found, measured{name, value, unit})
}

// times returns the median time of n calls of f.
func times(n int, f func() error) (time.Duration, error) {
	var all []float64
	for range n {
		begin := time.Now()
		if err := f(); err != nil {
			return 0, err
		}
		all = append(all, float64(time.Since(begin)))
	}
	return time.Duration(median(all)), nil
}

// small measures what has nothing to do with bytes.
func (a *benchApp) small() error {
	empty := func() error {
		if err := a.c.Begin(); err != nil {
			return err
		}
		if err := a.c.Submit(); err != nil {
			return err
		}
		return a.c.Wait(benchTimeout)
	}
	took, err := times(300, empty)
	if err != nil {
		return err
	}
	a.add("empty submit and wait", "µs", milliseconds(took)*1e3)

	const polls = 1000
	took, err = times(5, func() error {
		for range polls {
			if _, err := a.c.Done(); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	a.add("fence status", "µs", milliseconds(took)*1e3/polls)

	b, m, err := a.buffer(4096, vk.HostVisible|vk.HostCoherent)
	if err != nil {
		return err
	}
	defer a.free(b, m)
	const commands = 1000
	var recording []float64
	for range 9 {
		if err := a.c.Begin(); err != nil {
			return err
		}
		begin := time.Now()
		for range commands {
			a.c.Fill(b, 0, 4096, 7)
		}
		recording = append(recording, float64(time.Since(begin)))
		if err := a.c.Submit(); err != nil {
			return err
		}
		if err := a.c.Wait(benchTimeout); err != nil {
			return err
		}
	}
	a.add("record a command", "µs", median(recording)/1e3/commands)
	return nil
}

// frames measures one changed page a frame in a large mapping.
func (a *benchApp) frames() error {
	const n, page = 16 << 20, 4096
	b, m, err := a.buffer(n, vk.HostVisible|vk.HostCoherent)
	if err != nil {
		return err
	}
	defer a.free(b, m)
	out, outMemory, err := a.buffer(page, vk.HostVisible|vk.HostCoherent)
	if err != nil {
		return err
	}
	defer a.free(out, outMemory)
	mem, err := a.d.Map(m, n)
	if err != nil {
		return err
	}
	seen, err := a.d.Map(outMemory, page)
	if err != nil {
		return err
	}
	frame := 0
	took, err := times(200, func() error {
		frame++
		at := int64(frame) * 37 % (n / page) * page
		for i := range page / 8 {
			binary.NativeEndian.PutUint64(mem[at+8*int64(i):], uint64(frame))
		}
		if err := a.copy(out, b, vk.BufferCopy{Src: uint64(at), Size: page}); err != nil {
			return err
		}
		if got := binary.NativeEndian.Uint64(seen[page-8:]); got != uint64(frame) {
			return fmt.Errorf("frame %d came back as %d", frame, got)
		}
		return nil
	})
	a.add("a frame with one page of 16 MiB changed", "µs", milliseconds(took)*1e3)
	return err
}

// staging measures what the application stores until the device has it, and
// what the device has until the application has read it.
func (a *benchApp) staging(n int64, kept bool, mode string) error {
	const coherent = vk.HostVisible | vk.HostCoherent
	up, upMemory, err := a.buffer(n, coherent)
	if err != nil {
		return err
	}
	defer a.free(up, upMemory)
	down, downMemory, err := a.buffer(n, coherent)
	if err != nil {
		return err
	}
	defer a.free(down, downMemory)
	device, deviceMemory, err := a.buffer(n, vk.DeviceLocal)
	if err != nil {
		return err
	}
	defer a.free(device, deviceMemory)
	var in, out []byte
	if kept {
		if in, err = a.d.Map(upMemory, n); err == nil {
			out, err = a.d.Map(downMemory, n)
		}
		if err != nil {
			return err
		}
	}
	src, dst := make([]byte, n), make([]byte, n)
	write := func() error {
		if !kept {
			if in, err = a.d.Map(upMemory, n); err != nil {
				return err
			}
		}
		memfd.Copy(in, src)
		if !kept {
			a.d.Unmap(upMemory)
		}
		return a.copy(device, up, vk.BufferCopy{Size: uint64(n)})
	}
	read := func() error {
		if err := a.copy(down, device, vk.BufferCopy{Size: uint64(n)}); err != nil {
			return err
		}
		if !kept {
			if out, err = a.d.Map(downMemory, n); err != nil {
				return err
			}
		}
		memfd.Copy(dst, out)
		if !kept {
			a.d.Unmap(downMemory)
		}
		return nil
	}
	rounds := int(min(max(200<<20/n/4, 3), 50))
	var writes, reads []float64
	for round := range rounds + 1 { // the first warms up
		for i := range n / 4 {
			binary.NativeEndian.PutUint32(src[4*i:], uint32(i)*2654435761^uint32(round+77)*0x9e3779b9)
		}
		took, err := times(1, write)
		if err != nil {
			return err
		}
		writes = append(writes, float64(n)/1e6/took.Seconds())
		if took, err = times(1, read); err != nil {
			return err
		}
		reads = append(reads, float64(n)/1e6/took.Seconds())
		if !bytes.Equal(src, dst) {
			return fmt.Errorf("round %d: what came back is not what was sent", round)
		}
	}
	a.add("write "+humanSize(n)+", "+mode, "MB/s", median(writes[1:]))
	a.add("read "+humanSize(n)+", "+mode, "MB/s", median(reads[1:]))
	return nil
}

// copy copies on the device and waits.
func (a *benchApp) copy(dst, src vk.Buffer, ranges vk.BufferCopy) error {
	if err := a.c.Begin(); err != nil {
		return err
	}
	a.c.Copy(dst, src, ranges)
	if err := a.c.Submit(); err != nil {
		return err
	}
	return a.c.Wait(benchTimeout)
}

// buffer makes a buffer with memory of its own, of the first type that has the
// properties.
func (a *benchApp) buffer(n int64, want vk.MemoryFlags) (vk.Buffer, vk.Memory, error) {
	b, need, err := a.d.CreateBuffer(n)
	if err != nil {
		return 0, 0, err
	}
	for i, kind := range a.info.Types {
		if !kind.Flags.Has(want) || !need.Allows(i) {
			continue
		}
		m, err := a.d.Allocate(need.Size, i)
		if err == nil {
			err = a.d.Bind(b, m)
		}
		return b, m, err
	}
	return 0, 0, fmt.Errorf("there is no memory that is %v for a buffer", want)
}

func (a *benchApp) free(b vk.Buffer, m vk.Memory) {
	a.d.DestroyBuffer(b)
	a.d.Free(m)
}
