// SPDX-License-Identifier: Apache-2.0

package codec

import (
	"encoding/binary"
	"fmt"

	"github.com/memspan/memspan/vulkan/registry"
)

var little = binary.LittleEndian

// endOfChain follows the last structure of a pNext chain.
const endOfChain = ^uint32(0)

// An encoder appends a call. It reads the application's memory.
type encoder struct {
	dst  []byte
	x    *Codec
	env  *Env
	args *registry.Args
	pipe pipeline
}

func (e *encoder) call(p *program, from int) error {
	if p.words {
		e.words(p.call[from:])
		return nil
	}
	for i := from; i < len(p.call); i++ {
		st := &p.call[i]
		switch st.op {
		case opPlain:
			e.plain(st, e.args[i])
		case opHandle:
			e.handle(st, e.args[i])
		case opLocal:
		case opCount:
			e.count(st)
		default:
			ptr := uintptr(e.args[i])
			if ptr == 0 {
				e.dst = append(e.dst, 0)
				continue
			}
			e.dst = append(e.dst, 1)
			n := parameterCount(st, e.args)
			if st.length.Kind == registry.Strided {
				// The stride comes later.
				e.dst = little.AppendUint32(e.dst, uint32(min(n, ArenaLimit+1)))
			}
			if err := e.pointee(st, ptr, n); err != nil {
				return fmt.Errorf("%s: %w", st.name, err)
			}
		}
	}
	return nil
}

// words appends plain values and handles: most of what is recorded has only
// those.
func (e *encoder) words(steps []step) {
	dst, args := e.dst, e.args
	for i := range steps {
		st := &steps[i]
		v := args[st.at&(registry.ArgWords-1)]
		switch {
		case st.op == opHandle && st.dispatchable:
			dst = little.AppendUint64(dst, identity(v))
		case st.size == 8:
			dst = little.AppendUint64(dst, v)
		case st.size == 4:
			dst = little.AppendUint32(dst, uint32(v))
		case st.size == 2:
			dst = little.AppendUint16(dst, uint16(v))
		default:
			dst = append(dst, byte(v))
		}
	}
	e.dst = dst
}

func (e *encoder) plain(st *step, v uint64) {
	switch st.size {
	case 8:
		e.dst = little.AppendUint64(e.dst, v)
	case 4:
		e.dst = little.AppendUint32(e.dst, uint32(v))
	case 2:
		e.dst = little.AppendUint16(e.dst, uint16(v))
	default:
		e.dst = append(e.dst, byte(v))
	}
}

func (e *encoder) handle(st *step, v uint64) {
	if st.dispatchable {
		v = identity(v)
	}
	e.dst = little.AppendUint64(e.dst, v)
}

// count appends a count of the two-call idiom: how much room there is, which
// is nothing if there is no array, whatever the count says.
func (e *encoder) count(st *step) {
	ptr := uintptr(e.args[st.at])
	if ptr == 0 {
		e.dst = append(e.dst, 0)
		return
	}
	n := uint64(0)
	for i, m := 0, st.arrays; m != 0; i, m = i+1, m>>1 {
		if m&1 != 0 && e.args[i] != 0 {
			n = load(ptr, uint8(st.elem))
		}
	}
	e.dst = append(e.dst, 1)
	if st.elem == 8 {
		e.dst = little.AppendUint64(e.dst, n)
	} else {
		e.dst = little.AppendUint32(e.dst, uint32(n))
	}
}

// pointee appends n elements at p, which is not null.
func (e *encoder) pointee(st *step, p uintptr, n uint64) error {
	if st.elem != 0 && n > ArenaLimit/uint64(st.elem) {
		return ErrTooLarge
	}
	switch st.op {
	case opBytes, opCount:
		if !st.out || st.both {
			e.dst = append(e.dst, view(p, int(n)*int(st.elem))...)
		}
	case opHandles, opCreated:
		switch {
		case st.op == opHandles && st.out:
		case st.dispatchable:
			for i := range uintptr(n) {
				e.dst = little.AppendUint64(e.dst, identity(load64(p+8*i)))
			}
		default:
			e.dst = append(e.dst, view(p, int(n)*8)...)
		}
	case opStructs:
		if st.out {
			return e.shapes(st.of, p, n)
		}
		return e.structs(st.of, p, n)
	case opText:
		return e.text(p)
	case opTexts:
		if n > ArenaLimit/8 {
			return ErrTooLarge
		}
		for i := range uintptr(n) {
			s := loadPtr(p + 8*i)
			if s == 0 {
				e.dst = little.AppendUint32(e.dst, noText)
			} else if err := e.text(s); err != nil {
				return err
			}
		}
	case opPointers:
		for i := range uintptr(n) {
			s := loadPtr(p + 8*i)
			if s == 0 {
				e.dst = append(e.dst, 0)
				continue
			}
			e.dst = append(e.dst, 1)
			if err := e.structure(st.of, s); err != nil {
				return err
			}
		}
	case opTemplated:
		return e.template(p, e.args[st.length.Of])
	}
	return nil
}

// noText is the length of a null in an array of strings.
const noText = ^uint32(0)

func (e *encoder) text(p uintptr) error {
	n := cString(p, ArenaLimit)
	if n < 0 {
		return ErrTooLarge
	}
	e.dst = little.AppendUint32(e.dst, uint32(n))
	e.dst = append(e.dst, view(p, n)...)
	return nil
}

func (e *encoder) structs(s *structure, p uintptr, n uint64) error {
	if s.flat() {
		e.dst = append(e.dst, view(p, int(n)*s.size)...)
		return nil
	}
	for i := range uintptr(n) {
		if err := e.structure(s, p+i*uintptr(s.size)); err != nil {
			return err
		}
	}
	return nil
}

func (e *encoder) structure(s *structure, p uintptr) error {
	base := len(e.dst)
	e.dst = append(e.dst, view(p, s.size)...)
	return e.inside(s, p, base)
}

// inside appends what the structure at p leads to; its bytes have been appended
// at base and are put right.
func (e *encoder) inside(s *structure, p uintptr, base int) error {
	if s.pipeline {
		e.pipe = pipelineAt(p, e.env)
	}
	if s.next {
		if err := e.chain(loadPtr(p+8), base+8); err != nil {
			return err
		}
	}
	err := e.members(s, p, base)
	if s.pipeline { // no pipeline is in another
		e.pipe = pipeline{}
	}
	return err
}

// chain appends the structures of the chain that starts at p. At flag are the
// bytes of the pNext that holds it.
func (e *encoder) chain(p uintptr, flag int) error {
	little.PutUint64(e.dst[flag:], 0)
	if p == 0 {
		return nil
	}
	any := false
	for ; p != 0; p = loadPtr(p + 8) {
		s := e.x.bySType[load32(p)]
		if s == nil {
			continue
		}
		any = true
		base := len(e.dst)
		e.dst = append(e.dst, view(p, s.size)...)
		little.PutUint64(e.dst[base+8:], 0)
		if err := e.members(s, p, base); err != nil {
			return err
		}
	}
	if any {
		e.dst[flag] = 1
		e.dst = little.AppendUint32(e.dst, endOfChain)
	}
	return nil
}

func (e *encoder) members(s *structure, p uintptr, base int) error {
	for i := range s.touched {
		st := &s.touched[i]
		field, slot := p+uintptr(st.at), base+int(st.at)
		switch st.op {
		case opLocal:
			clear(e.dst[slot : slot+int(st.size)])
		case opHandle: // dispatchable
			for j := range int(st.n) {
				little.PutUint64(e.dst[slot+8*j:], identity(load64(field+uintptr(8*j))))
			}
		case opInline:
			for j := range int(st.n) {
				if err := e.inside(st.of, field+uintptr(j*st.of.size), slot+j*st.of.size); err != nil {
					return err
				}
			}
		default:
			ptr := loadPtr(field)
			if ptr == 0 {
				continue
			}
			little.PutUint64(e.dst[slot:], 0)
			if st.rule != always && !e.holds(st.rule, p) {
				continue
			}
			e.dst[slot] = 1
			if err := e.pointee(st, ptr, memberCount(st, p)); err != nil {
				return fmt.Errorf("%s.%s: %w", s.name, st.name, err)
			}
		}
	}
	return nil
}

// shapes appends what the driver must know of n structures that it fills.
func (e *encoder) shapes(s *structure, p uintptr, n uint64) error {
	if s.flat() {
		return nil
	}
	for i := range uintptr(n) {
		if err := e.shape(s, p+i*uintptr(s.size)); err != nil {
			return err
		}
	}
	return nil
}

func (e *encoder) shape(s *structure, p uintptr) error {
	if s.next {
		if err := e.chainShape(loadPtr(p + 8)); err != nil {
			return err
		}
	}
	return e.shapeOfMembers(s, p)
}

func (e *encoder) chainShape(p uintptr) error {
	flag := len(e.dst)
	e.dst = append(e.dst, 0)
	for ; p != 0; p = loadPtr(p + 8) {
		s := e.x.bySType[load32(p)]
		if s == nil {
			continue
		}
		e.dst[flag] = 1
		e.dst = little.AppendUint32(e.dst, s.sType)
		if err := e.shapeOfMembers(s, p); err != nil {
			return err
		}
	}
	if e.dst[flag] != 0 {
		e.dst = little.AppendUint32(e.dst, endOfChain)
	}
	return nil
}

func (e *encoder) shapeOfMembers(s *structure, p uintptr) error {
	for i := range s.touched {
		st := &s.touched[i]
		field := p + uintptr(st.at)
		switch st.op {
		case opLocal, opHandle:
		case opInline:
			for j := range uintptr(st.n) {
				if err := e.shape(st.of, field+j*uintptr(st.of.size)); err != nil {
					return err
				}
			}
		default:
			ptr := loadPtr(field)
			if ptr == 0 || st.rule != always && !e.holds(st.rule, p) {
				e.dst = append(e.dst, 0)
				continue
			}
			e.dst = append(e.dst, 1)
			if l := &st.length; counts(l) {
				e.dst = append(e.dst, view(p+uintptr(l.Of), int(l.Size))...)
			}
			if err := e.pointee(st, ptr, memberCount(st, p)); err != nil {
				return fmt.Errorf("%s.%s: %w", s.name, st.name, err)
			}
		}
	}
	return nil
}

func (e *encoder) holds(r rule, p uintptr) bool { return holds(r, p, &e.pipe, e.env, e.args) }
