// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"encoding/binary"
	"sync"

	"github.com/memspan/memspan/vulkan/registry"
	"github.com/memspan/memspan/vulkan/stream"
)

// recordAt is how much is recorded before it is sent.
const recordAt = 64 << 10

// recordings holds the memory of recordings that were sent.
var recordings = sync.Pool{New: func() any {
	b := make([]byte, 0, recordAt+recordAt/8)
	return &b
}}

// A commandBuffer is what was recorded and not sent yet. Vulkan's rules let one
// thread at a time use it.
type commandBuffer struct {
	secondary bool
	recorded  *[]byte // nil: nothing
	err       error   // why it is not complete
}

// forget drops what was recorded.
func (b *commandBuffer) forget() {
	b.err = nil
	if b.recorded != nil {
		*b.recorded = (*b.recorded)[:0]
		recordings.Put(b.recorded)
		b.recorded = nil
	}
}

func (b *commandBuffer) dropped() { b.forget() }

// secondary implements codec.Env.
func (d *Driver) secondary(id uint64) bool {
	if o := d.objects.get(id); o != nil {
		b, ok := o.state.(*commandBuffer)
		return ok && b.secondary
	}
	return false
}

// record appends a command (commandBuffer, …) to its command buffer.
func (d *Driver) record(cmd registry.Index, a *registry.Args) uint64 {
	o := d.objects.get(idAt(a[0]))
	if o == nil {
		return 0
	}
	if b, ok := o.state.(*commandBuffer); ok {
		d.append(o, b, cmd, a)
	}
	return success
}

func (d *Driver) append(o *object, b *commandBuffer, cmd registry.Index, a *registry.Args) {
	if b.recorded == nil {
		b.recorded = recordings.Get().(*[]byte)
	}
	start := len(*b.recorded)
	buf, err := d.codec.AppendParams(stream.AppendRecord(*b.recorded, uint16(cmd)), &registry.Commands[cmd], a, &d.env)
	if err != nil {
		if b.err == nil {
			b.err = err
		}
		return
	}
	stream.EndRecord(buf, start)
	*b.recorded = buf
	if len(buf) > recordAt {
		d.sendRecorded(o, b)
	}
}

// sendRecorded sends what was recorded.
func (d *Driver) sendRecorded(o *object, b *commandBuffer) {
	if b.recorded == nil {
		return
	}
	var head [8]byte
	binary.LittleEndian.PutUint64(head[:], o.id)
	err := b.err
	if len(*b.recorded) > 0 && err == nil {
		err = o.link.write(stream.OpRecord, head[:], *b.recorded)
	}
	b.forget()
	b.err = err
}

// commandBufferOf returns the command buffer of a handle.
func (d *Driver) commandBufferOf(handle uint64) (*object, *commandBuffer) {
	o := d.objects.dispatchable(handle)
	if o == nil {
		return nil, nil
	}
	b, _ := o.state.(*commandBuffer)
	return o, b
}

// beginCommandBuffer carries out vkBeginCommandBuffer(commandBuffer, pInfo).
func (d *Driver) beginCommandBuffer(cmd registry.Index, a *registry.Args) uint64 {
	o, b := d.commandBufferOf(a[0])
	if b == nil {
		return vkResult(deviceLost)
	}
	b.forget()
	d.append(o, b, cmd, a)
	return d.recordResult(o, b, cmd)
}

// endCommandBuffer carries out vkEndCommandBuffer(commandBuffer): everything
// recorded is sent.
func (d *Driver) endCommandBuffer(cmd registry.Index, a *registry.Args) uint64 {
	o, b := d.commandBufferOf(a[0])
	if b == nil {
		return vkResult(deviceLost)
	}
	d.append(o, b, cmd, a)
	d.sendRecorded(o, b)
	return d.recordResult(o, b, cmd)
}

func (d *Driver) recordResult(o *object, b *commandBuffer, cmd registry.Index) uint64 {
	err := b.err
	if err == nil {
		err = o.link.lost()
	}
	if err != nil {
		return d.failure(cmd, err)
	}
	return success
}

// resetCommandBuffer carries out vkResetCommandBuffer(commandBuffer, flags).
func (d *Driver) resetCommandBuffer(cmd registry.Index, a *registry.Args) uint64 {
	if _, b := d.commandBufferOf(a[0]); b != nil {
		b.forget()
	}
	return d.sendResult(cmd, a)
}

// resetCommandPool carries out vkResetCommandPool(device, commandPool, flags).
func (d *Driver) resetCommandPool(cmd registry.Index, a *registry.Args) uint64 {
	if pool := d.objects.of(registry.VkCommandPool, a[1]); pool != nil {
		for _, o := range d.objects.children(pool) {
			o.state.(*commandBuffer).forget()
		}
	}
	return d.sendResult(cmd, a)
}

// allocateCommandBuffers carries out vkAllocateCommandBuffers(device, pInfo,
// pCommandBuffers).
func (d *Driver) allocateCommandBuffers(cmd registry.Index, a *registry.Args) uint64 {
	// {sType, pNext, commandPool, level, commandBufferCount}
	pool := d.objects.of(registry.VkCommandPool, load64(a[1]+16))
	secondary := load32(a[1]+24) == 1
	return d.allocate(cmd, a, pool, load32(a[1]+28), func(int) any { return &commandBuffer{secondary: secondary} })
}

// freeCommandBuffers carries out vkFreeCommandBuffers(device, commandPool,
// count, pCommandBuffers).
func (d *Driver) freeCommandBuffers(cmd registry.Index, a *registry.Args) uint64 {
	result := d.sendResult(cmd, a)
	for i := range uint64(uint32(a[2])) {
		d.objects.drop(d.objects.of(registry.VkCommandBuffer, load64(a[3]+8*i)))
	}
	return result
}
