// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto/sha256"
	"os"
	"sync"

	"github.com/memspan/memspan/tier/vram"
)

// keptKernels is how many kernels a device keeps that nobody runs: to compile one
// takes longer than most runs.
const keptKernels = 16

// A gpu is the tier that kernels run on, with those that it has.
type gpu struct {
	*vram.Tier
	compiling chan struct{} // one token for each kernel that the driver compiles

	mu     sync.Mutex
	has    map[[sha256.Size]byte]*compiled // by their code
	clock  uint64                          // counts uses
	work   sync.WaitGroup                  // compilations
	closed bool                            // none begins any more
}

func newGPU(t *vram.Tier) *gpu {
	return &gpu{Tier: t, compiling: make(chan struct{}, transforms), has: make(map[[sha256.Size]byte]*compiled)}
}

// Close ends the worker, and with it the compilations under way, for which it
// waits. It is idempotent.
func (g *gpu) Close() error {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	err := g.Tier.Close()
	g.work.Wait()
	return err
}

// A compiled is a kernel that a gpu has, or will when ready is closed.
type compiled struct {
	ready  chan struct{}
	kernel *vram.Kernel // nil: err
	err    error

	users int    // guarded, as used, by the gpu's mu; who compiles it is one
	used  uint64 // last
}

// kernel returns the kernel of some code, compiled unless the device has it. The
// caller calls release when he has run it. The driver cannot be told to give up:
// when ctx ends it goes on, for whoever asks next, but nobody waits for it.
func (g *gpu) kernel(ctx context.Context, code []byte) (_ *vram.Kernel, release func(), err error) {
	key := sha256.Sum256(code)
	g.mu.Lock()
	c := g.use(key)
	g.mu.Unlock()
	if c == nil {
		select {
		case g.compiling <- struct{}{}:
			c, err = g.compile(key, code)
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	if err != nil {
		return nil, nil, err
	}
	select {
	case <-c.ready:
		err = c.err
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		g.release(key, c)
		return nil, nil, err
	}
	return c.kernel, func() { g.release(key, c) }, nil
}

// use returns a kernel that the device has or soon will to one more user; nil if
// there is none. g.mu is held.
func (g *gpu) use(key [sha256.Size]byte) *compiled {
	c := g.has[key]
	if c == nil || c.gone() {
		return nil
	}
	c.users++
	return c
}

// compile has a kernel compiled, unless somebody else has done so meanwhile, and
// returns it as use does. The caller's token of compiling goes with it.
func (g *gpu) compile(key [sha256.Size]byte, code []byte) (*compiled, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c := g.use(key); c != nil {
		<-g.compiling
		return c, nil
	}
	if g.closed {
		<-g.compiling
		return nil, os.ErrClosed
	}
	c := &compiled{ready: make(chan struct{}), users: 2}
	g.has[key] = c
	g.work.Go(func() {
		c.kernel, c.err = g.NewKernel(context.Background(), code)
		close(c.ready)
		<-g.compiling
		g.release(key, c)
	})
	return c, nil
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
