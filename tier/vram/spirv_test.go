// SPDX-License-Identifier: Apache-2.0

package vram

import (
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/memspan/memspan/internal/vk"
)

// module returns a SPIR-V module of the instructions, each of its opcode and
// operands.
func module(instructions ...[]uint32) []byte {
	words := []uint32{spirvMagic, 0x10000, 0, 100, 0}
	for _, in := range instructions {
		words = append(words, uint32(len(in))<<16|in[0])
		words = append(words, in[1:]...)
	}
	var b []byte
	for _, w := range words {
		b = binary.LittleEndian.AppendUint32(b, w)
	}
	return b
}

var (
	mainEntry = []uint32{opEntryPoint, modelCompute, 4, 0x6e69616d, 0} // "main"
	groupOf64 = []uint32{opExecutionMode, 4, modeLocalSize, 64, 1, 1}
)

func TestParseKernel(t *testing.T) {
	for name, tt := range map[string]struct {
		code []byte
		want string // in the error; empty: none
	}{
		"least":          {module(mainEntry, groupOf64), ""},
		"with types":     {module([]uint32{opCapability, 1}, []uint32{opCapability, 11}, mainEntry, groupOf64), ""},
		"empty":          {nil, "no SPIR-V module"},
		"odd":            {make([]byte, 21), "no SPIR-V module"},
		"zeros":          {make([]byte, 40), "begins with"},
		"long":           {make([]byte, MaxKernel+4), "at most"},
		"no entry":       {module(groupOf64), "0 entry points"},
		"two entries":    {module(mainEntry, mainEntry, groupOf64), "2 entry points"},
		"other entry":    {module([]uint32{opEntryPoint, modelCompute, 4, 0x6f69616d, 0}, groupOf64), "called main"},
		"fragment":       {module([]uint32{opEntryPoint, 4, 4, 0x6e69616d, 0}, groupOf64), "called main"},
		"short entry":    {module([]uint32{opEntryPoint, modelCompute, 4, 0x6e69616d}, groupOf64), "called main"},
		"no group":       {module(mainEntry), "size as numbers"},
		"group of other": {module(mainEntry, []uint32{opExecutionMode, 5, modeLocalSize, 64, 1, 1}), "size as numbers"},
		"flat group":     {module(mainEntry, []uint32{opExecutionMode, 4, modeLocalSize, 8, 8, 1}), "must be 1"},
		"empty group":    {module(mainEntry, []uint32{opExecutionMode, 4, modeLocalSize, 0, 1, 1}), "size as numbers"},
		"short group":    {module(mainEntry, []uint32{opExecutionMode, 4, modeLocalSize, 64}), "three numbers"},
		"capability":     {module([]uint32{opCapability, 5}, mainEntry, groupOf64), "capability 5"},
		"no capability":  {module([]uint32{opCapability}, mainEntry, groupOf64), "without a number"},
		"binding":        {module(mainEntry, groupOf64, []uint32{opDecorate, 7, decorateBinding, 1}), "binding 0 of set 0"},
		"set":            {module(mainEntry, groupOf64, []uint32{opDecorate, 7, decorateSet, 2}), "binding 0 of set 0"},
		"no length":      {append(module(mainEntry, groupOf64), 0, 0, 0, 0), "0 words"},
		"beyond":         {append(module(mainEntry, groupOf64), 0, 0, 9, 0), "9 words, of 1"},
	} {
		_, err := parseKernel(tt.code)
		switch {
		case tt.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case tt.want != "" && (!errors.Is(err, ErrKernel) || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s: error %v, want %q", name, err, tt.want)
		}
	}
}

// A device's limits are those of the kernels it is given.
func TestKernelAllowed(t *testing.T) {
	device := func(change func(*DeviceInfo)) DeviceInfo {
		d := DeviceInfo{API: vk.MakeVersion(1, 0), Kernels: vk.KernelLimits{Invocations: 128, GroupSize: [3]uint32{128, 128, 64}, Groups: 65535}}
		change(&d)
		return d
	}
	plain := device(func(*DeviceInfo) {})
	for name, tt := range map[string]struct {
		info kernelInfo
		on   DeviceInfo
		ok   bool
	}{
		"plain":         {kernelInfo{version: vk.MakeVersion(1, 0), group: 64}, plain, true},
		"large group":   {kernelInfo{group: 129}, plain, false},
		"narrow device": {kernelInfo{group: 128}, device(func(d *DeviceInfo) { d.Kernels.GroupSize[0] = 64 }), false},
		"small group":   {kernelInfo{group: 4}, plain, false},
		"just enough":   {kernelInfo{group: 5}, plain, true},
		"new":           {kernelInfo{version: vk.MakeVersion(1, 3), group: 64}, plain, false},
		"new on new":    {kernelInfo{version: vk.MakeVersion(1, 3), group: 64}, device(func(d *DeviceInfo) { d.API = vk.MakeVersion(1, 1) }), true},
		"newer":         {kernelInfo{version: vk.MakeVersion(1, 6), group: 64}, device(func(d *DeviceInfo) { d.API = vk.MakeVersion(1, 3) }), false},
		"int64":         {kernelInfo{i64: true, group: 64}, plain, false},
		"int64 there":   {kernelInfo{i64: true, group: 64}, device(func(d *DeviceInfo) { d.Kernels.Int64 = true }), true},
		"float64":       {kernelInfo{f64: true, group: 64}, plain, false},
		"int16":         {kernelInfo{i16: true, group: 64}, plain, false},
	} {
		if err := tt.info.allowed(tt.on); (err == nil) != tt.ok || err != nil && !errors.Is(err, ErrKernel) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParseKernel(f *testing.F) {
	for _, name := range []string{"affine", "beyond", "spin"} {
		code, err := os.ReadFile("testdata/" + name + ".spv")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(code)
	}
	f.Add(module(mainEntry, groupOf64, []uint32{opDecorate, 7, decorateSet, 0}))
	f.Add(module([]uint32{opCapability}, []uint32{opEntryPoint}, []uint32{opExecutionMode}, []uint32{opDecorate}))
	f.Fuzz(func(t *testing.T, code []byte) {
		info, err := parseKernel(code)
		if err != nil {
			if !errors.Is(err, ErrKernel) {
				t.Errorf("an error of another kind: %v", err)
			}
			return
		}
		if info.group == 0 || info.entries != 1 || len(code) > MaxKernel {
			t.Errorf("%+v was let through", info)
		}
	})
}
