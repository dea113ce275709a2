// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package vram

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/memspan/memspan/internal/vk"
)

// bindingCount is how many kernels may run at a time.
const bindingCount = 16

// A kernel is one that the device has.
type kernel struct {
	use  sync.RWMutex // held for reading while in use
	gone bool
	made vk.Kernel
}

// shared returns what kernels have in common.
func (e *engine) shared() (*vk.Kernels, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.compute != nil {
		return e.compute, nil
	}
	compute, bindings, err := e.dev.NewKernels(maxPush, bindingCount)
	if err != nil {
		return nil, err
	}
	e.compute, e.bindings = compute, make(chan vk.Binding, len(bindings))
	for _, b := range bindings {
		e.bindings <- b
	}
	return compute, nil
}

// addKernel compiles a kernel.
func (e *engine) addKernel(id uint32, code []byte) error {
	compute, err := e.shared()
	if err != nil {
		return err
	}
	words := make([]uint32, len(code)/4)
	for i := range words {
		words[i] = binary.LittleEndian.Uint32(code[4*i:])
	}
	if len(words) == 0 {
		return errors.New("a kernel without code")
	}
	made, err := compute.Create(words)
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.kernels[id] != nil {
		compute.Destroy(made)
		return fmt.Errorf("there is a kernel %d already", id)
	}
	e.kernels[id] = &kernel{made: made}
	return nil
}

// removeKernel destroys a kernel, when nobody runs it any more.
func (e *engine) removeKernel(id uint32) {
	e.mu.Lock()
	k := e.kernels[id]
	delete(e.kernels, id)
	e.mu.Unlock()
	if k == nil {
		return
	}
	k.use.Lock()
	defer k.use.Unlock()
	k.gone = true
	e.compute.Destroy(k.made)
}

// run runs a kernel on bytes of a slab.
func (e *engine) run(q *request, push []byte) error {
	m, release, err := e.slab(q.slab, q.off, q.n)
	if err != nil {
		return err
	}
	defer release()
	e.mu.Lock()
	k := e.kernels[q.other]
	e.mu.Unlock()
	if k == nil {
		return fmt.Errorf("no kernel %d", q.other)
	}
	k.use.RLock()
	defer k.use.RUnlock()
	switch {
	case k.gone:
		return fmt.Errorf("no kernel %d", q.other)
	case q.off%slotMin != 0 || q.n%4 != 0 || len(push) > maxPush || len(push)%4 != 0 || q.arg > e.info.Kernels.Groups:
		return fmt.Errorf("a kernel's run on [%d, +%d) in %d work groups with %d bytes of constants", q.off, q.n, q.arg, len(push))
	}
	on := <-e.bindings
	defer func() { e.bindings <- on }()
	e.compute.Bind(on, m.buffer, q.off, q.n)
	return e.queue.doLong(func(cmds *vk.Commands) { cmds.Dispatch(e.compute, k.made, on, push, int(q.arg)) })
}

// closeKernels destroys all kernels. None may be in use.
func (e *engine) closeKernels() {
	if e.compute == nil {
		return
	}
	for _, k := range e.kernels {
		e.compute.Destroy(k.made)
	}
	e.compute.Close()
}
