// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto/sha256"
	"sync"

	"github.com/memspan/memspan/tier/vram"
)

// keptKernels is how many kernels a device keeps that nobody runs: to compile one
// takes longer than most runs.
const keptKernels = 16

// A gpu is the tier that kernels run on, with those that it has.
type gpu struct {
	*vram.Tier

	mu    sync.Mutex
	has   map[[sha256.Size]byte]*compiled // by their code
	clock uint64                          // counts uses
}

// A compiled is a kernel that a gpu has, or will when ready is closed.
type compiled struct {
	ready  chan struct{}
	kernel *vram.Kernel // nil: err
	err    error

	users int    // guarded, as used, by the gpu's mu
	used  uint64 // last
}

// kernel returns the kernel of some code, compiled unless the device has it. The
// caller calls release when he has run it.
func (g *gpu) kernel(ctx context.Context, code []byte) (_ *vram.Kernel, release func(), err error) {
	key := sha256.Sum256(code)
	g.mu.Lock()
	c := g.has[key]
	first := c == nil || c.gone()
	if first {
		c = &compiled{ready: make(chan struct{})}
		g.has[key] = c
	}
	c.users++
	g.mu.Unlock()
	release = func() { g.release(key, c) }
	if first {
		c.kernel, c.err = g.NewKernel(context.WithoutCancel(ctx), code) // others wait for it, too
		close(c.ready)
	}
	<-c.ready
	if c.err != nil {
		release()
		return nil, nil, c.err
	}
	return c.kernel, release, nil
}

// gone reports whether the kernel went with the worker that had it.
func (c *compiled) gone() bool {
	select {
	case <-c.ready:
		return c.err != nil || c.kernel.Lost()
	default:
		return false
	}
}

// release gives a kernel back, and takes from the device the one that nobody has
// run for longest if there are too many.
func (g *gpu) release(key [sha256.Size]byte, c *compiled) {
	g.mu.Lock()
	c.users--
	g.clock++
	c.used = g.clock
	if c.gone() && g.has[key] == c {
		delete(g.has, key)
	}
	var oldest *compiled
	var at [sha256.Size]byte
	for key, other := range g.has {
		if other.users == 0 && (oldest == nil || other.used < oldest.used) {
			oldest, at = other, key
		}
	}
	if len(g.has) <= keptKernels {
		oldest = nil
	}
	if oldest != nil {
		delete(g.has, at)
	}
	g.mu.Unlock()
	if oldest != nil {
		oldest.kernel.Close()
	}
}
