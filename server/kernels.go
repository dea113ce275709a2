// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/sharedbuf"
	"github.com/memspan/memspan/sharedbuf/host"
	"github.com/memspan/memspan/tier"
	"github.com/memspan/memspan/tier/vram"
)

const (
	// transforms is how many buffers are transformed at a time; others wait.
	transforms = 4
	// transformBlocks is how many blocks of one buffer are on the device: while
	// one is copied the kernel runs on another.
	transformBlocks = 4
)

// kernels run what guests send on a GPU. They have a worker of their own, which
// holds nothing but the blocks it works on: a kernel that crashes the driver, or
// does not end, costs no span. It is started for the first.
type kernels struct {
	config *vram.Config // nil: there is no GPU for them
	named  map[string][]byte
	slots  chan struct{} // one token for each transform under way

	mu     sync.Mutex
	gpu    *gpu          // nil: not started, or lost
	memory *memfd.Region // what is copied to and from the device; nil: nothing was
	pieces chan int64    // offsets in memory that are free
	closed bool
}

func newKernels(config *vram.Config, named map[string][]byte, log *slog.Logger) (*kernels, error) {
	for name, code := range named {
		if err := vram.CheckKernel(code); err != nil {
			return nil, fmt.Errorf("kernel %q: %w", name, err)
		}
	}
	k := &kernels{named: named, slots: make(chan struct{}, transforms), pieces: make(chan int64, transforms*transformBlocks)}
	if config != nil {
		own := *config
		own.Budget = 2 * transforms * transformBlocks * tier.BlockSize
		own.Lost = nil
		if own.Logger == nil {
			own.Logger = log
		}
		k.config = &own
	}
	return k, nil
}

// device returns what kernels run on, started if need be.
func (k *kernels) device(ctx context.Context) (*gpu, error) {
	if k.config == nil {
		return nil, &sharedbuf.Error{Code: sharedbuf.ErrUnsupported, Message: "this host runs no kernels: it was started without a VRAM tier"}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.closed:
		return nil, &sharedbuf.Error{Code: sharedbuf.ErrClosed, Message: "the host is stopping"}
	case k.gpu != nil:
		return k.gpu, nil
	}
	if k.memory == nil {
		memory, err := memfd.Create("transform", transforms*transformBlocks*tier.BlockSize)
		if err != nil {
			return nil, fmt.Errorf("memory for the device: %w", err)
		}
		k.memory = memory
		for off := int64(0); off < memory.Size(); off += tier.BlockSize {
			k.pieces <- off
		}
	}
	t, err := vram.Start(ctx, *k.config)
	if err != nil {
		return nil, err
	}
	k.gpu = newGPU(t)
	return k.gpu, nil
}

// failed says why a transform on g failed. If it was for its worker, the next
// transform starts another.
func (k *kernels) failed(g *gpu, err error) error {
	// Closed: by another transform, which was told first.
	if !errors.Is(err, tier.ErrLost) && !errors.Is(err, tier.ErrAbsent) && !errors.Is(err, os.ErrClosed) {
		return bufferError(err)
	}
	k.mu.Lock()
	current := k.gpu == g
	if current {
		k.gpu = nil
	}
	k.mu.Unlock()
	if current {
		err = errors.Join(err, g.Close())
	}
	return &sharedbuf.Error{Code: sharedbuf.ErrDeviceLost, Message: "the kernel's worker ended", Err: err}
}

// end ends the worker for good, and with it the transforms under way.
func (k *kernels) end() error {
	k.mu.Lock()
	g := k.gpu
	k.gpu, k.closed = nil, true
	k.mu.Unlock()
	if g == nil {
		return nil
	}
	return g.Close()
}

// close frees what is left after end. No transform may be under way.
func (k *kernels) close() error {
	if k.memory == nil {
		return nil
	}
	return k.memory.Close()
}

// code returns the kernel that is asked for.
func (k *kernels) code(a sharedbuf.TransformArguments) ([]byte, error) {
	invalid := func(format string, args ...any) ([]byte, error) {
		return nil, &sharedbuf.Error{Code: sharedbuf.ErrInvalid, Message: fmt.Sprintf(format, args...)}
	}
	switch {
	case len(a.Push) > sharedbuf.MaxTransformPush:
		return invalid("%d push constants; at most %d are allowed", len(a.Push), sharedbuf.MaxTransformPush)
	case (a.Kernel == "") == (len(a.SPIRV) == 0):
		return invalid(`the operation takes {"kernel": the name of one that the host has} or {"spirv": one's code, in base64}`)
	case a.Kernel == "":
		return a.SPIRV, nil
	}
	code, ok := k.named[a.Kernel]
	if !ok {
		return nil, &sharedbuf.Error{Code: sharedbuf.ErrNotFound, Message: fmt.Sprintf("this host has no kernel %q", a.Kernel)}
	}
	return code, nil
}

// transform runs a kernel on a buffer, block by block.
func (k *kernels) transform(c *host.Call) (any, error) {
	var a sharedbuf.TransformArguments
	if err := c.Arguments(&a); err != nil {
		return nil, err
	}
	code, err := k.code(a)
	if err != nil {
		return nil, err
	}
	ctx := c.Context()
	select {
	case k.slots <- struct{}{}:
		defer func() { <-k.slots }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	gpu, err := k.device(ctx)
	if err != nil {
		return nil, bufferError(err)
	}
	if err := k.transformOn(ctx, gpu, c, code, a.Push); err != nil {
		return nil, k.failed(gpu, err)
	}
	return nil, nil
}

func (k *kernels) transformOn(ctx context.Context, gpu *gpu, c *host.Call, code []byte, push []sharedbuf.U32) error {
	kernel, release, err := gpu.kernel(ctx, code)
	if err != nil {
		return err
	}
	defer release()
	blocks := min(transformBlocks, (c.Size()-1)/tier.BlockSize+1)
	space, err := gpu.Open(ctx, "transform", blocks*tier.BlockSize, tier.AnyMemory)
	if err != nil {
		return err
	}
	defer space.Close() // its error is always nil
	g, ctx := errgroup.WithContext(ctx)
	for b := range blocks {
		g.Go(func() error {
			w := transformer{k: k, c: c, kernel: kernel, space: space, block: int(b), push: push}
			return w.run(ctx, b*tier.BlockSize, blocks*tier.BlockSize)
		})
	}
	return g.Wait()
}

// A transformer runs a kernel on every so many blocks of a buffer, in one block
// of device memory.
type transformer struct {
	k      *kernels
	c      *host.Call
	kernel *vram.Kernel
	space  tier.Space
	block  int
	push   []sharedbuf.U32
}

// run transforms the buffer's blocks at off and every step bytes from there.
func (w *transformer) run(ctx context.Context, off, step int64) error {
	at := <-w.k.pieces // there is one for each that may run
	defer func() { w.k.pieces <- at }()
	if err := w.space.Reserve(ctx, w.block); err != nil {
		return err
	}
	for ; off < w.c.Size(); off += step {
		n := min(tier.BlockSize, w.c.Size()-off)
		if err := w.one(ctx, tier.Memory{Region: w.k.memory, Off: at, Len: (n + 3) / 4 * 4}, off, n); err != nil {
			return err
		}
		w.c.Processed(n)
	}
	return nil
}

// one transforms a block: the n bytes at off, and up to three zeros that make
// whole words.
func (w *transformer) one(ctx context.Context, m tier.Memory, off, n int64) error {
	p := m.Bytes()
	clear(p[n:])
	if _, err := w.c.ReadAt(p[:n], off); err != nil {
		return err
	}
	le := binary.LittleEndian
	push := le.AppendUint64(make([]byte, 0, vram.MaxPush), uint64(off))
	push = le.AppendUint64(push, uint64(n))
	for _, word := range w.push {
		push = le.AppendUint32(push, uint32(word))
	}
	if err := w.space.Write(ctx, w.block, 0, m); err != nil {
		return err
	}
	if err := w.kernel.Run(ctx, w.space, w.block, n, push); err != nil {
		return err
	}
	if err := w.space.Read(ctx, w.block, 0, m); err != nil {
		return err
	}
	_, err := w.c.WriteAt(p[:n], off)
	return err
}
