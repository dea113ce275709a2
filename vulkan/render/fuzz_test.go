// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"encoding/binary"
	"testing"

	"github.com/memspan/memspan/vulkan/stream"
)

// FuzzSpecial gives a worker with memory that is mapped any bytes as any message
// that is no command: nothing is written beside the memory, and nothing panics.
func FuzzSpecial(f *testing.F) {
	const size = 64 << 10
	c := begin(f, Config{Log: quiet})
	w, _ := c.shadowed(size, coherent)
	c.stopServing()
	r := c.r
	to := func(words ...uint64) (b []byte) {
		for _, v := range append([]uint64{w.memory}, words...) {
			b = binary.LittleEndian.AppendUint64(b, v)
		}
		return b
	}
	for _, m := range []stream.Message{
		{Op: stream.OpMemoryWrite, Body: append(to(size-4), 1, 2, 3, 4)},
		{Op: stream.OpMemoryWrite, Body: append(to(^uint64(0)), 1, 2, 3, 4)},
		{Op: stream.OpMemoryRuns, Body: append(stream.AppendRuns(nil, w.memory, []stream.Run{{Offset: 8, Length: 2}, {Offset: size - 1, Length: 1}}), 1, 2, 3)},
		{Op: stream.OpMemoryMap, Flags: stream.FlagReply, Body: to()},
		{Op: stream.OpMemoryImport, Flags: stream.FlagReply | stream.FlagFile, Body: to(4096, 0)},
		{Op: stream.OpPing},
		{Op: stream.OpRecord, Body: to()},
	} {
		f.Add(uint16(m.Op), uint16(m.Flags), m.Body)
	}
	f.Fuzz(func(t *testing.T, op, flags uint16, body []byte) {
		// The client is gone: what is answered goes nowhere, and errors mean
		// what they do on the stream.
		r.special(stream.Message{Op: stream.Op(op) | 0x8000, Flags: stream.Flags(flags) & 7, Serial: 1, Body: body})
	})
}
