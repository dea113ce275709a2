// SPDX-License-Identifier: Apache-2.0

package codec

import (
	"unsafe"

	"github.com/memspan/memspan/vulkan/registry"
)

// A Template says how a descriptor update template's data lies in memory. It
// is immutable.
type Template struct {
	entries []templateEntry
}

// templateEntry is a VkDescriptorUpdateTemplateEntry.
type templateEntry struct {
	binding, first uint32
	count          uint32
	descriptorType uint32
	offset, stride uint64
}

type templateCreateInfo struct {
	base
	flags, count uint32
	entries      uintptr
	templateType uint32
	layout       uint64
	bindPoint    uint32
	pipeline     uint64
	set          uint32
}

// TemplateAt describes the template that the VkDescriptorUpdateTemplateCreateInfo
// at address makes: parameter 1 of vkCreateDescriptorUpdateTemplate, on either
// side.
func TemplateAt(info uint64) *Template {
	create := (*templateCreateInfo)(at(uintptr(info)))
	t := &Template{entries: make([]templateEntry, create.count)}
	if create.count > 0 {
		copy(t.entries, unsafe.Slice((*templateEntry)(at(create.entries)), create.count))
	}
	return t
}

// element says what a descriptor's type takes from memory.
type element uint8

const (
	noElement        element = iota
	imageElement             // a VkDescriptorImageInfo
	bufferElement            // a VkDescriptorBufferInfo
	texelElement             // a VkBufferView
	inlineElement            // bytes
	structureElement         // a VkAccelerationStructureKHR
)

// elementOf is that of a VkDescriptorType.
func elementOf(descriptorType uint32) element {
	switch descriptorType {
	case 0, 1, 2, 3, 10: // SAMPLER, COMBINED_IMAGE_SAMPLER, SAMPLED_IMAGE, STORAGE_IMAGE, INPUT_ATTACHMENT
		return imageElement
	case 4, 5: // UNIFORM_TEXEL_BUFFER, STORAGE_TEXEL_BUFFER
		return texelElement
	case 6, 7, 8, 9: // UNIFORM_BUFFER, STORAGE_BUFFER, and these DYNAMIC
		return bufferElement
	case 1000138000: // INLINE_UNIFORM_BLOCK
		return inlineElement
	case 1000150000: // ACCELERATION_STRUCTURE_KHR
		return structureElement
	}
	return noElement
}

// Bytes of an element in memory. A VkDescriptorImageInfo ends with padding,
// which does not travel.
const (
	imageSize  = 24
	imageSent  = 20
	bufferSize = 24
	handleSize = 8
)

// run is how the elements of an entry lie: number of pieces of size bytes,
// stride apart.
func (t *templateEntry) run() (kind element, number, size, stride uint64) {
	kind = elementOf(t.descriptorType)
	number, stride = uint64(t.count), t.stride
	switch kind {
	case imageElement:
		size = imageSize
	case bufferElement:
		size = bufferSize
	case texelElement, structureElement:
		size = handleSize
	case inlineElement: // the count is of bytes, the stride ignored
		number, size = min(number, 1), number
	}
	return kind, number, size, stride
}

// template appends what lies at p by the template with the handle given.
func (e *encoder) template(p uintptr, template uint64) error {
	t := e.env.template(template)
	if t == nil {
		return &HandleError{"VkDescriptorUpdateTemplate", template}
	}
	for i := range t.entries {
		entry := &t.entries[i]
		kind, number, size, stride := entry.run()
		if kind == noElement {
			return ErrUnsupported
		}
		if kind == imageElement {
			size = imageSent
		}
		for j := range number {
			e.dst = append(e.dst, view(p+uintptr(entry.offset+j*stride), int(size))...)
		}
	}
	return nil
}

func (env *Env) template(id uint64) *Template {
	if env.Template == nil {
		return nil
	}
	return env.Template(id)
}

// template lays out, as the template with the client's id given wants it, what
// the encoder's appended.
func (d *decoder) template(id uint64) (uintptr, error) {
	t := d.env.template(id)
	if t == nil {
		return 0, &HandleError{"VkDescriptorUpdateTemplate", id}
	}
	extent := uint64(0)
	for i := range t.entries {
		entry := &t.entries[i]
		kind, number, size, stride := entry.run()
		if kind == noElement {
			return 0, ErrUnsupported
		}
		if number == 0 {
			continue
		}
		const most = ArenaLimit
		if entry.offset > most || size > most || number > 1 && stride > most/(number-1) {
			return 0, ErrTooLarge
		}
		extent = max(extent, entry.offset+(number-1)*stride+size)
	}
	if extent > ArenaLimit {
		return 0, ErrTooLarge
	}
	memory, err := d.arena.zeroed(int(extent))
	if err != nil {
		return 0, err
	}
	for i := range t.entries {
		entry := &t.entries[i]
		kind, number, size, stride := entry.run()
		if kind == imageElement {
			size = imageSent
		}
		for j := range number {
			from, err := d.bytes(int(size))
			if err != nil {
				return 0, err
			}
			to := memory[entry.offset+j*stride:]
			copy(to, from)
			switch kind {
			case imageElement:
				// Which of the two means anything depends on the layout.
				err = d.translate(to, d.x.sampler, true)
				if err == nil {
					err = d.translate(to[8:], d.x.imageView, true)
				}
			case bufferElement:
				err = d.translate(to, d.x.buffer, false)
			case texelElement:
				err = d.translate(to, d.x.bufferView, false)
			case structureElement:
				err = d.translate(to, d.x.accelerationStructure, false)
			}
			if err != nil {
				return 0, err
			}
		}
	}
	return address(memory), nil
}

// translate replaces the id at the start of b by the worker's handle of type t.
func (d *decoder) translate(b []byte, t registry.Index, lenient bool) error {
	real, err := d.real(t, little.Uint64(b), lenient)
	if err != nil {
		return err
	}
	little.PutUint64(b, real)
	return nil
}
