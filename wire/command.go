// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/binary"
	"fmt"
)

// The memory commands: the first four bytes of a Transfer's and a Read's
// payload (seeds/000, "Custom Command IDs").
const (
	TransferMemoryData = 0x10000000
	ReadMemoryData     = 0x10000001
)

// commandSize is the length of a memory command on the wire, in bytes.
const commandSize = 4 + 3*8

// MemoryCommand is the prefix of a Transfer and of a Read: 28 bytes {u32
// command, u64 memory, u64 offset, u64 size} (seeds/000, "Message Format").
type MemoryCommand struct {
	Memory uint64 // the span's handle in this session
	Offset uint64 // of the first byte in the span
	Size   uint64 // bytes; at most MaxData
}

// AppendTransfer appends the prefix of a Transfer to dst. Size bytes of data
// follow it.
func AppendTransfer(dst []byte, m MemoryCommand) []byte {
	return appendCommand(dst, TransferMemoryData, m)
}

// AppendRead appends the payload of a Read to dst.
func AppendRead(dst []byte, m MemoryCommand) []byte {
	return appendCommand(dst, ReadMemoryData, m)
}

// ParseTransfer reads the prefix of a Transfer. It fails with ErrMalformed, or
// with ErrTooLarge if Size is over MaxData. It cannot know whether Offset and
// Size lie inside the span, nor whether their sum overflows, nor whether as
// much data follows as Size says.
func ParseTransfer(prefix []byte) (MemoryCommand, error) {
	return parseCommand(prefix, TransferMemoryData)
}

// ParseRead reads the payload of a Read, as ParseTransfer does.
func ParseRead(prefix []byte) (MemoryCommand, error) {
	return parseCommand(prefix, ReadMemoryData)
}

func appendCommand(dst []byte, command uint32, m MemoryCommand) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, command)
	dst = binary.LittleEndian.AppendUint64(dst, m.Memory)
	dst = binary.LittleEndian.AppendUint64(dst, m.Offset)
	return binary.LittleEndian.AppendUint64(dst, m.Size)
}

func parseCommand(b []byte, command uint32) (MemoryCommand, error) {
	if len(b) != commandSize {
		return MemoryCommand{}, fmt.Errorf("%w: memory command of %d bytes, want %d", ErrMalformed, len(b), commandSize)
	}
	if got := binary.LittleEndian.Uint32(b); got != command {
		return MemoryCommand{}, fmt.Errorf("%w: memory command %#x, want %#x", ErrMalformed, got, command)
	}
	m := MemoryCommand{
		Memory: binary.LittleEndian.Uint64(b[4:]),
		Offset: binary.LittleEndian.Uint64(b[12:]),
		Size:   binary.LittleEndian.Uint64(b[20:]),
	}
	if m.Size > MaxData {
		return m, fmt.Errorf("%w: memory command for %d bytes, at most %d at once", ErrTooLarge, m.Size, MaxData)
	}
	return m, nil
}

// AppendResult appends a VkResult to dst: the whole reply to a Transfer, and
// the prefix of the replies to a Read and of errors to Transfer, Read and
// Flush. 0 is VK_SUCCESS.
func AppendResult(dst []byte, vkResult int32) []byte {
	return binary.LittleEndian.AppendUint32(dst, uint32(vkResult))
}

// ParseResult reads what AppendResult wrote. It fails with ErrMalformed.
func ParseResult(prefix []byte) (int32, error) {
	if len(prefix) != 4 {
		return 0, fmt.Errorf("%w: result of %d bytes, want 4", ErrMalformed, len(prefix))
	}
	return int32(binary.LittleEndian.Uint32(prefix)), nil
}
