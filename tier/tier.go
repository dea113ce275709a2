// SPDX-License-Identifier: Apache-2.0

// Package tier says what every place that holds bytes of spans can do. The
// places are its subpackages: host (memfd), vram (Vulkan device memory) and disk
// (crash-safe files).
//
// A tier moves bytes and counts them against its budget. It does not know
// which copy is current: that is package coherency's, carried out by package
// span.
package tier

import (
	"context"
	"errors"
	"fmt"

	"github.com/memspan/memspan/coherency"
	"github.com/memspan/memspan/internal/memfd"
)

// BlockSize is the unit of coherency, in bytes. A span's last block may be
// shorter.
const BlockSize = 1 << 20

// Errors that tiers return, wrapped with what was asked.
var (
	// ErrBudget: the tier's budget or the device's memory does not hold it.
	ErrBudget = errors.New("tier: budget exceeded")
	// ErrLost: the tier lost its contents (its worker died). Spaces opened
	// earlier are empty: every block must be reserved anew.
	ErrLost = errors.New("tier: contents lost")
	// ErrAbsent: this machine or this build has no such tier.
	ErrAbsent = errors.New("tier: absent")
	// ErrCorrupt: bytes on disk are not those that were written there. They
	// are never handed out.
	ErrCorrupt = errors.New("tier: corrupt")
)

// Memory is a piece of host memory that every tier can reach: bytes
// [Off, Off+Len) of a region, which a worker process can map too.
type Memory struct {
	Region   *memfd.Region
	Off, Len int64
}

// Bytes returns the memory itself.
func (m Memory) Bytes() []byte { return m.Region.Bytes()[m.Off : m.Off+m.Len : m.Off+m.Len] }

// Slice returns bytes [off, off+n) of m.
func (m Memory) Slice(off, n int64) Memory {
	if off < 0 || n < 0 || off > m.Len || n > m.Len-off {
		panic(fmt.Sprintf("tier: slice [%d, +%d) of %d bytes", off, n, m.Len))
	}
	return Memory{Region: m.Region, Off: m.Off + off, Len: n}
}

// Placement says which of a device's memories a span wants. Other tiers
// ignore it.
type Placement uint8

// The placements.
const (
	AnyMemory   Placement = iota // device-local, host-visible too if there is such
	HostVisible                  // memory the CPU can map: what the seed calls staging
	DeviceLocal                  // memory nearest to the GPU
)

// Usage says how much of a tier is taken, in bytes.
type Usage struct {
	Used   int64 // taken from the system or the device
	Held   int64 // of it, what cannot be given up to make room
	Budget int64 // the most that may be; 0 if only the machine limits it
}

// A Tier makes storage for spans. Its methods may be called concurrently.
type Tier interface {
	// Kind returns which tier it is.
	Kind() coherency.Tier
	// Open makes storage for a span of size bytes. No block is reserved.
	Open(ctx context.Context, name string, size int64, placement Placement) (Space, error)
	// Usage returns what is taken now.
	Usage() Usage
	// Close frees everything. Spaces must not be used afterwards.
	Close() error
}

// A Space is one span's storage on one tier: blocks numbered from 0, each of
// BlockSize bytes but for the last, which ends where the span ends. Offsets
// are within the block.
//
// A call that fails has changed nothing, unless its error is ErrLost: then the
// bytes it was to change may be damaged.
//
// Calls for different blocks may run concurrently; the caller sees to it that
// nobody writes a block while another call reads or writes it. A call that is
// cancelled may still be under way in a worker: it returns when it no longer
// touches the caller's memory.
type Space interface {
	// Reserve takes memory for block b; it is no error if b has it already.
	// The block's contents are undefined. It fails with ErrBudget.
	Reserve(ctx context.Context, b int) error
	// Read copies bytes [off, off+dst.Len) of block b to dst.
	Read(ctx context.Context, b int, off int64, dst Memory) error
	// Write copies src to bytes [off, off+src.Len) of block b.
	Write(ctx context.Context, b int, off int64, src Memory) error
	// Fill stores the bytes of pattern, little-endian and repeated, to bytes
	// [off, off+n) of block b. The first byte stored is the pattern's lowest,
	// whatever off is.
	Fill(ctx context.Context, b int, off, n int64, pattern uint32) error
	// Copy copies n bytes from offset soff of block sb of src, a space of the
	// same tier, to offset off of block b. The ranges do not overlap.
	Copy(ctx context.Context, b int, off int64, src Space, sb int, soff, n int64) error
	// Drop gives block b's memory back; its contents are gone.
	Drop(b int)
	// Close drops all blocks. It is idempotent.
	Close() error
}
