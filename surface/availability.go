// SPDX-License-Identifier: Apache-2.0

package surface

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/memspan/memspan/internal/bell"
	"github.com/memspan/memspan/internal/memfd"
)

// An Availability is a puller's view of a surface's availability page, on the
// machine that the surface is on. It changes as chunks come.
//
// Its methods may be called concurrently; Close must come last.
type Availability struct {
	mem []byte
	words
}

// OpenAvailability maps the page whose descriptor came from a store. It refuses what is
// none, or could be taken away. file stays the caller's.
func OpenAvailability(file *os.File) (*Availability, error) {
	size, err := memfd.Size(file)
	if err != nil {
		return nil, fmt.Errorf("availability page: %w", err)
	}
	if size < pageBitmap || size%8 != 0 || size > bitmapSize(MaxSize/MinChunk) {
		return nil, fmt.Errorf("availability page of %d bytes: %w", size, ErrFormat)
	}
	mem, err := memfd.MapRange(file, 0, size, false)
	if err != nil {
		return nil, fmt.Errorf("availability page: %w", err)
	}
	if version := binary.LittleEndian.Uint32(mem[8:]); string(mem[:8]) != pageMagic || version != pageVersion {
		memfd.Unmap(mem)
		return nil, fmt.Errorf("availability page that does not begin as one of version %d: %w", pageVersion, ErrFormat)
	}
	return &Availability{mem, wordsOf(mem)}, nil
}

// Has reports whether chunk i is there.
func (a *Availability) Has(i int64) bool { return a.has(i) }

// State returns what the surface has come to.
func (a *Availability) State() State { return State(a.state.Load()) }

// Size returns the bytes of content and the number of chunks: of a surface that is
// not sealed those that are known of so far.
func (a *Availability) Size() (size, chunks int64) {
	return int64(a.size.Load()), int64(a.chunks.Load())
}

// Runs returns the runs of chunks that are there from chunk from on, in order, at most limit.
func (a *Availability) Runs(from int64, limit int) []Run {
	runs, _ := a.runs(from, int64(min(a.chunks.Load(), uint64(len(a.bitmap)*64))), limit)
	return runs
}

// Sequence returns a number that is another after each change of what the
// other methods return. Read it before them.
func (a *Availability) Sequence() uint32 { return a.sequence.Load() }

// WaitChange waits, without polling, until the sequence is not seen any more. It
// fails when ctx ends, and with ErrFailed where the exposer's process is known to be
// gone: on Windows, to who begins to wait then.
func (a *Availability) WaitChange(ctx context.Context, seen uint32) error {
	err := bell.Wait(ctx, a.sequence, a.mem[pageBell:], seen)
	if errors.Is(err, bell.ErrGone) {
		err = fmt.Errorf("%w: its exposer is gone (%w)", ErrFailed, err)
	}
	if err != nil {
		return fmt.Errorf("wait for a surface: %w", err)
	}
	return nil
}

// Wait waits until chunk i is there. It fails with ErrFailed or ErrRevoked if it
// will not come, with ErrRange if the surface is sealed and has no such chunk, and when
// ctx ends. An exposer whose server dies tells nobody: watch the connection that
// the page came by, and end ctx with it.
func (a *Availability) Wait(ctx context.Context, i int64) error {
	for {
		seen, state := a.Sequence(), a.State()
		if a.Has(i) {
			return nil
		}
		switch _, chunks := a.Size(); {
		case state == Failed:
			return fmt.Errorf("wait for chunk %d: %w", i, ErrFailed)
		case state == Revoked:
			return fmt.Errorf("wait for chunk %d: %w", i, ErrRevoked)
		case state == Sealed && (i < 0 || i >= chunks):
			return fmt.Errorf("wait for chunk %d of %d: %w", i, chunks, ErrRange)
		}
		if err := a.WaitChange(ctx, seen); err != nil {
			return err
		}
	}
}

// Close unmaps the page.
func (a *Availability) Close() error { return memfd.Unmap(a.mem) }
