// SPDX-License-Identifier: Apache-2.0

package vram

import (
	"context"
	"errors"
	"fmt"

	"github.com/memspan/memspan/tier"
)

const (
	// MaxPush is the most bytes of push constants that a kernel's run may have.
	MaxPush = maxPush
	maxPush = 128 // what every device has

	blockWords = tier.BlockSize / 4
)

// A Kernel is a compute kernel that the device has been given. It lasts until
// Close, or until the worker ends that has it: then its runs fail with
// [tier.ErrLost]. Its methods may be called concurrently, but for Close.
type Kernel struct {
	g     *generation
	id    uint32
	group uint32
}

// NewKernel gives the device a kernel: a SPIR-V module, little-endian, with one
// entry point, main, and a work group whose size is literal and has one
// dimension. The error matches ErrKernel if it is none that the device takes. A module
// that the driver cannot bear ends the worker, and what the tier holds with it:
// the error matches [tier.ErrLost]. Code that others may choose is for a tier that
// holds nothing else.
func (t *Tier) NewKernel(ctx context.Context, code []byte) (*Kernel, error) {
	info, err := parseKernel(code)
	if err != nil {
		return nil, err
	}
	g, err := t.generation()
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = info.allowed(t.Device())
	}
	if err != nil {
		return nil, fmt.Errorf("vram: new kernel: %w", err)
	}
	k := &Kernel{g: g, id: g.lastKernel.Add(1), group: info.group}
	_, err = g.do(request{op: opAddKernel, other: k.id}, code, nil)
	switch {
	case err == nil:
		return k, nil
	case errors.Is(err, tier.ErrLost), errors.Is(err, tier.ErrBudget):
		return nil, fmt.Errorf("vram: new kernel: %w", err)
	}
	return nil, kernelErrorf("the driver does not take it: %w", err)
}

// Run runs the kernel on the first n bytes of block b of a space of the tier, and
// up to three more that make whole words: an invocation for each word, and those
// that fill the last work group. To the kernel they are the storage buffer at
// binding 0 of set 0. Push, of at most MaxPush bytes and a multiple of 4, are its
// push constants. A kernel that takes longer than some seconds ends the worker:
// the error matches [tier.ErrLost].
func (k *Kernel) Run(ctx context.Context, s tier.Space, b int, n int64, push []byte) error {
	sp, ok := s.(*space)
	if !ok || sp.t != k.g.t {
		return errors.New("vram: run kernel: the space is not of this tier")
	}
	return sp.wrap(k.run(ctx, sp, b, n, push), "run kernel on", b, 0, n)
}

func (k *Kernel) run(ctx context.Context, s *space, b int, n int64, push []byte) error {
	if len(push) > maxPush || len(push)%4 != 0 {
		return fmt.Errorf("%d bytes of push constants; a multiple of 4 up to %d is wanted", len(push), maxPush)
	}
	g, sl, err := s.locate(ctx, b, 0, n)
	if err != nil || n == 0 {
		return err
	}
	if g != k.g {
		return fmt.Errorf("%w: the worker that had the kernel ended", tier.ErrLost)
	}
	words := (n + 3) / 4 // slots are longer than what is in them, or of whole words
	groups := (words-1)/int64(k.group) + 1
	_, err = g.do(request{op: opRun, other: k.id, arg: uint32(groups), slab: sl.slab, off: sl.off(), n: 4 * words}, push, nil)
	if err == nil {
		g.count.device.Add(n)
	}
	return err
}

// Lost reports whether the worker that had the kernel has ended.
func (k *Kernel) Lost() bool {
	select {
	case <-k.g.dead:
		return true
	default:
		return false
	}
}

// Close takes the kernel from the device.
func (k *Kernel) Close() {
	// An error means that the worker is dead, and the kernel with it.
	k.g.do(request{op: opRemoveKernel, other: k.id}, nil, nil)
}
