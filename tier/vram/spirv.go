// SPDX-License-Identifier: Apache-2.0

package vram

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/memspan/memspan/internal/vk"
)

// ErrKernel: a kernel's code is not what the device can be given.
var ErrKernel = errors.New("vram: kernel refused")

// MaxKernel is the most bytes of code that a kernel may have.
const MaxKernel = 256 << 10

// The numbers of SPIR-V in use.
const (
	spirvMagic        = 0x07230203
	opEntryPoint      = 15 // OpEntryPoint
	opExecutionMode   = 16
	opCapability      = 17
	opDecorate        = 71
	modelCompute      = 5
	modeLocalSize     = 17
	decorateBinding   = 33
	decorateSet       = 34
	capabilityMatrix  = 0
	capabilityShader  = 1
	capabilityFloat64 = 10
	capabilityInt64   = 11
	capabilityInt16   = 22
)

// CheckKernel looks whether code is a SPIR-V module that NewKernel may accept
// on some device. The error matches ErrKernel. It is no validation: what a module
// says is taken for true by drivers, which is why they run in workers.
func CheckKernel(code []byte) error {
	_, err := parseKernel(code)
	return err
}

// A kernelInfo is what a module says of itself.
type kernelInfo struct {
	version    vk.Version // of SPIR-V
	group      uint32     // invocations of a work group, all in one dimension
	f64        bool       // what it needs
	i64, i16   bool
	entry      uint32
	entries    int
	sized      uint32 // entry whose size group is
	otherSizes [2]uint32
}

func kernelErrorf(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrKernel, fmt.Errorf(format, args...))
}

// parseKernel reads what the host must know of a module.
func parseKernel(code []byte) (info kernelInfo, err error) {
	const header = 5 // words
	switch {
	case len(code) > MaxKernel:
		return info, kernelErrorf("%d bytes; at most %d are allowed", len(code), MaxKernel)
	case len(code)%4 != 0 || len(code) < 4*header:
		return info, kernelErrorf("%d bytes are no SPIR-V module", len(code))
	}
	word := func(i int) uint32 { return binary.LittleEndian.Uint32(code[4*i:]) }
	if magic := word(0); magic != spirvMagic {
		return info, kernelErrorf("it begins with %#08x; SPIR-V, little-endian, begins with %#08x", magic, spirvMagic)
	}
	info.version = vk.MakeVersion(word(1)>>16&0xff, word(1)>>8&0xff)
	for at, end := header, len(code)/4; at < end; {
		op, n := word(at)&0xffff, int(word(at)>>16)
		if n == 0 || n > end-at {
			return info, kernelErrorf("the instruction at word %d has %d words, of %d that are left", at, n, end-at)
		}
		if err := info.note(op, code[4*at+4:4*(at+n)]); err != nil {
			return info, err
		}
		at += n
	}
	switch {
	case info.entries != 1:
		return info, kernelErrorf("it has %d entry points; one, main, is wanted", info.entries)
	case info.group == 0 || info.sized != info.entry:
		return info, kernelErrorf("it does not say its work group's size as numbers")
	case info.otherSizes != [2]uint32{1, 1}:
		return info, kernelErrorf("its work groups have sides of %d, %d and %d; the second and third must be 1", info.group, info.otherSizes[0], info.otherSizes[1])
	}
	return info, nil
}

// note reads one instruction's operands.
func (info *kernelInfo) note(op uint32, operands []byte) error {
	arg := func(i int) (uint32, bool) {
		if 4*i+4 > len(operands) {
			return 0, false
		}
		return binary.LittleEndian.Uint32(operands[4*i:]), true
	}
	switch op {
	case opCapability:
		c, ok := arg(0)
		switch {
		case !ok:
			return kernelErrorf("a capability without a number")
		case c == capabilityMatrix, c == capabilityShader:
		case c == capabilityFloat64:
			info.f64 = true
		case c == capabilityInt64:
			info.i64 = true
		case c == capabilityInt16:
			info.i16 = true
		default:
			return kernelErrorf("it needs SPIR-V's capability %d; kernels may use Shader, Float64, Int64 and Int16", c)
		}
	case opEntryPoint:
		model, _ := arg(0)
		id, ok := arg(1)
		if !ok || model != modelCompute || len(operands) < 16 || string(operands[8:13]) != "main\x00" {
			return kernelErrorf("its entry point is not that of a compute kernel called main")
		}
		info.entries++
		info.entry = id
	case opExecutionMode:
		id, _ := arg(0)
		if mode, _ := arg(1); mode != modeLocalSize {
			return nil
		}
		z, ok := arg(4)
		if !ok {
			return kernelErrorf("a work group's size without three numbers")
		}
		info.sized = id
		info.group, _ = arg(2)
		info.otherSizes[0], _ = arg(3)
		info.otherSizes[1] = z
	case opDecorate:
		what, _ := arg(1)
		if n, ok := arg(2); ok && n != 0 && (what == decorateBinding || what == decorateSet) {
			return kernelErrorf("it uses set or binding %d; a kernel has one buffer, binding 0 of set 0", n)
		}
	}
	return nil
}

// allowed reports why a device cannot run the kernel.
func (info *kernelInfo) allowed(d DeviceInfo) error {
	newest := vk.MakeVersion(1, 0)
	if d.API >= vk.MakeVersion(1, 2) {
		newest = vk.MakeVersion(1, 5)
	} else if d.API >= vk.MakeVersion(1, 1) {
		newest = vk.MakeVersion(1, 3)
	}
	lim := d.Kernels
	most := min(lim.Invocations, lim.GroupSize[0])
	const words = blockWords
	switch {
	case info.version > newest:
		return kernelErrorf("it is of SPIR-V %v; the device takes %v at most: compile it for an older version", info.version, newest)
	case info.f64 && !lim.Float64, info.i64 && !lim.Int64, info.i16 && !lim.Int16:
		return kernelErrorf("it computes with types that device %q has not", d.Name)
	case info.group > most:
		return kernelErrorf("its work groups have %d invocations; device %q allows %d", info.group, d.Name, most)
	case (words-1)/info.group+1 > lim.Groups:
		return kernelErrorf("its work groups have %d invocations; device %q wants %d at least", info.group, d.Name, (words-1)/lim.Groups+1)
	}
	return nil
}
