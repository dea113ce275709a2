// SPDX-License-Identifier: Apache-2.0

package codec

import (
	"fmt"

	"github.com/memspan/memspan/vulkan/registry"
)

// formatNotSupported is VK_ERROR_FORMAT_NOT_SUPPORTED: the one error whose
// outputs are defined (the limits are zero).
const formatNotSupported = -11

// outputsFollow reports whether outputs other than handles follow result in a
// reply.
func outputsFollow(p *program, result uint64) bool {
	return p.returns != registry.Result || int32(result) >= 0 || int32(result) == formatNotSupported
}

// Both ends of a reply walk their own memory in the same order: the
// application's, and the worker's copy of it.

// A walker is what they have in common.
type walker struct {
	x      *Codec
	env    *Env
	args   *registry.Args
	client bool
	pipe   pipeline
}

// there reports whether a member's pointer means anything: on the worker, only
// those that do are there.
func (w *walker) there(st *step, p uintptr) bool {
	return loadPtr(p+uintptr(st.at)) != 0 &&
		(!w.client || st.rule == always || holds(st.rule, p, &w.pipe, w.env, w.args))
}

// following is the first structure of the chain from p on that was carried.
func (w *walker) following(p uintptr) (uintptr, *structure) {
	for ; p != 0; p = loadPtr(p + 8) {
		if s := w.x.bySType[load32(p)]; s != nil {
			return p, s
		}
	}
	return 0, nil
}

func (w *walker) enter(s *structure, p uintptr) {
	if s.pipeline && w.client {
		w.pipe = pipelineAt(p, w.env)
	}
}

func (w *walker) leave(s *structure) {
	if s.pipeline {
		w.pipe = pipeline{}
	}
}

// A replier appends a reply. It reads the worker's memory.
type replier struct {
	walker
	dst []byte
}

func (e *replier) reply(p *program, result uint64) {
	switch p.returns {
	case registry.Result:
		e.dst = little.AppendUint32(e.dst, uint32(result))
	case registry.Word:
		e.dst = little.AppendUint64(e.dst, result)
	}
	rest := outputsFollow(p, result)
	for i := range p.outputs {
		st := &p.outputs[i]
		ptr := uintptr(e.args[st.at])
		if ptr == 0 || !rest && (st.op != opCreated || st.length.Kind == registry.Pointed) {
			continue
		}
		switch {
		case st.op == opCount:
			e.dst = append(e.dst, view(ptr, int(st.elem))...)
			continue
		case !st.out:
			e.inputs(st, ptr, parameterCount(st, e.args))
			continue
		}
		n := capacityOf(st, ptr, parameterCount(st, e.args))
		if st.length.Kind == registry.Pointed {
			e.dst = little.AppendUint32(e.dst, uint32(n))
		}
		if st.op == opCreated {
			for j := range uintptr(n) {
				made := byte(1)
				if load64(ptr+8*j) == 0 {
					made = 0
				}
				e.dst = append(e.dst, made)
			}
			continue
		}
		e.outputs(st, ptr, n)
	}
}

// capacityOf is how many of returned elements there was room for in ptr's
// array.
func capacityOf(st *step, ptr uintptr, returned uint64) uint64 {
	return min(returned, capacity(ptr))
}

// outputs appends n elements that the driver filled.
func (e *replier) outputs(st *step, p uintptr, n uint64) {
	switch st.op {
	case opBytes:
		e.dst = append(e.dst, view(p, int(n)*int(st.elem))...)
	case opHandles:
		for i := range uintptr(n) {
			e.dst = little.AppendUint64(e.dst, e.env.ID(st.handle, load64(p+8*i)))
		}
	case opStructs:
		if s := st.of; len(s.members) == 0 && !s.next {
			e.dst = append(e.dst, view(p, int(n)*s.size)...)
			return
		}
		for i := range uintptr(n) {
			e.output(st.of, p+i*uintptr(st.of.size))
		}
	}
}

func (e *replier) output(s *structure, p uintptr) {
	if s.next {
		for q, t := e.following(loadPtr(p + 8)); t != nil; q, t = e.following(loadPtr(q + 8)) {
			e.dst = little.AppendUint32(e.dst, t.sType)
			e.content(t, q)
		}
	}
	e.content(s, p)
}

func (e *replier) content(s *structure, p uintptr) {
	for i := range s.members {
		st := &s.members[i]
		field := p + uintptr(st.at)
		switch st.op {
		case opLocal:
		case opHandle:
			for j := range uintptr(st.n) {
				real, id := load64(field+8*j), uint64(0)
				if real != 0 {
					id = e.env.ID(st.handle, real)
				}
				e.dst = little.AppendUint64(e.dst, id)
			}
		case opInline:
			for j := range uintptr(st.n) {
				e.output(st.of, field+j*uintptr(st.of.size))
			}
		default:
			if st.out && e.there(st, p) {
				e.behind(st, p)
			}
		}
	}
	for _, r := range s.plain {
		e.dst = append(e.dst, view(p+uintptr(r.from), int(r.to-r.from))...)
	}
}

// behind appends what the output pointer st of the structure at p points to.
func (e *replier) behind(st *step, p uintptr) {
	ptr := loadPtr(p + uintptr(st.at))
	n := capacityOf(st, ptr, memberCount(st, p))
	e.dst = little.AppendUint32(e.dst, uint32(n))
	e.outputs(st, ptr, n)
}

// inputs appends the outputs that n structures of the application's input lead
// to.
func (e *replier) inputs(st *step, p uintptr, n uint64) {
	for i := range uintptr(n) {
		q := p + i*uintptr(st.of.size)
		if st.op == opPointers {
			if q = loadPtr(p + 8*i); q == 0 {
				continue
			}
		}
		e.input(st.of, q)
	}
}

func (e *replier) input(s *structure, p uintptr) {
	if s.next {
		for q, t := e.following(loadPtr(p + 8)); t != nil; q, t = e.following(loadPtr(q + 8)) {
			e.inputMembers(t, q)
		}
	}
	e.inputMembers(s, p)
}

func (e *replier) inputMembers(s *structure, p uintptr) {
	for i := range s.touched {
		st := &s.touched[i]
		switch {
		case st.op == opInline:
			for j := range uintptr(st.n) {
				e.input(st.of, p+uintptr(st.at)+j*uintptr(st.of.size))
			}
		case st.op == opHandle || st.op == opLocal || !st.leads() || !e.there(st, p):
		case st.out:
			e.behind(st, p)
		default:
			e.inputs(st, loadPtr(p+uintptr(st.at)), memberCount(st, p))
		}
	}
}

// leads reports whether there may be outputs behind a pointer among inputs.
func (st *step) leads() bool { return st.out || st.of != nil && st.of.outputs }

// A receiver reads a reply and stores the outputs in the application's memory.
type receiver struct {
	walker
	src []byte
}

func (d *receiver) reply(p *program) (uint64, error) {
	var result uint64
	switch p.returns {
	case registry.Result:
		b, err := d.take(4)
		if err != nil {
			return 0, err
		}
		result = uint64(little.Uint32(b))
	case registry.Word:
		b, err := d.take(8)
		if err != nil {
			return 0, err
		}
		result = little.Uint64(b)
	}
	rest := outputsFollow(p, result)
	for i := range p.outputs {
		st := &p.outputs[i]
		ptr := uintptr(d.args[st.at])
		if ptr == 0 || !rest && (st.op != opCreated || st.length.Kind == registry.Pointed) {
			continue
		}
		if err := d.parameter(st, ptr); err != nil {
			return 0, fmt.Errorf("%s: %w", st.name, err)
		}
	}
	return result, nil
}

func (d *receiver) parameter(st *step, ptr uintptr) error {
	switch {
	case st.op == opCount:
		b, err := d.take(int(st.elem))
		if err != nil {
			return err
		}
		copy(view(ptr, int(st.elem)), b)
		return nil
	case !st.out:
		return d.inputs(st, ptr, parameterCount(st, d.args))
	}
	n := parameterCount(st, d.args)
	if st.length.Kind == registry.Pointed {
		var err error
		if n, err = d.number(n); err != nil {
			return err
		}
	}
	if st.op == opCreated {
		made, err := d.takeN(n, 1)
		if err != nil {
			return err
		}
		for i, m := range made {
			if m == 0 {
				store64(ptr+8*uintptr(i), 0)
			}
		}
		return nil
	}
	return d.outputs(st, ptr, n)
}

func (d *receiver) take(n int) ([]byte, error) {
	if n > len(d.src) {
		return nil, ErrMalformed
	}
	b := d.src[:n]
	d.src = d.src[n:]
	return b, nil
}

// takeN takes n elements.
func (d *receiver) takeN(n uint64, size int) ([]byte, error) {
	if n > uint64(len(d.src)/size) {
		return nil, ErrMalformed
	}
	return d.take(int(n) * size)
}

// number takes a number of elements that are returned where there is room for
// the number given.
func (d *receiver) number(room uint64) (uint64, error) {
	b, err := d.take(4)
	if err != nil {
		return 0, err
	}
	n := uint64(little.Uint32(b))
	if n > room {
		return 0, fmt.Errorf("%w: %d elements for %d", ErrMalformed, n, room)
	}
	return n, nil
}

func (d *receiver) outputs(st *step, p uintptr, n uint64) error {
	switch st.op {
	case opBytes:
		b, err := d.takeN(n, int(st.elem))
		copy(view(p, len(b)), b)
		return err
	case opHandles:
		b, err := d.takeN(n, 8)
		if err != nil {
			return err
		}
		for i := range uintptr(n) {
			store64(p+8*i, d.object(st, little.Uint64(b[8*i:])))
		}
	case opStructs:
		if s := st.of; len(s.members) == 0 && !s.next {
			b, err := d.takeN(n, s.size)
			copy(view(p, len(b)), b)
			return err
		}
		for i := range uintptr(n) {
			if err := d.output(st.of, p+i*uintptr(st.of.size)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d *receiver) object(st *step, id uint64) uint64 {
	if id == 0 {
		return 0
	}
	return d.env.Object(st.handle, id)
}

func (d *receiver) output(s *structure, p uintptr) error {
	if s.next {
		for q, t := d.following(loadPtr(p + 8)); t != nil; q, t = d.following(loadPtr(q + 8)) {
			b, err := d.take(4)
			if err != nil {
				return err
			}
			if sType := little.Uint32(b); sType != t.sType {
				return fmt.Errorf("%w: sType %d instead of %d", ErrMalformed, sType, t.sType)
			}
			if err := d.content(t, q); err != nil {
				return err
			}
		}
	}
	return d.content(s, p)
}

// content stores a structure's content. What its members point to comes before
// its plain bytes, which hold the counts.
func (d *receiver) content(s *structure, p uintptr) error {
	for i := range s.members {
		st := &s.members[i]
		field := p + uintptr(st.at)
		switch st.op {
		case opLocal:
		case opHandle:
			b, err := d.take(8 * int(st.n))
			if err != nil {
				return err
			}
			for j := range uintptr(st.n) {
				store64(field+8*j, d.object(st, little.Uint64(b[8*j:])))
			}
		case opInline:
			for j := range uintptr(st.n) {
				if err := d.output(st.of, field+j*uintptr(st.of.size)); err != nil {
					return err
				}
			}
		default:
			if st.out && d.there(st, p) {
				if err := d.behind(st, p); err != nil {
					return err
				}
			}
		}
	}
	for _, r := range s.plain {
		b, err := d.take(int(r.to - r.from))
		if err != nil {
			return err
		}
		copy(view(p+uintptr(r.from), len(b)), b)
	}
	return nil
}

func (d *receiver) behind(st *step, p uintptr) error {
	n, err := d.number(memberCount(st, p))
	if err != nil {
		return err
	}
	return d.outputs(st, loadPtr(p+uintptr(st.at)), n)
}

func (d *receiver) inputs(st *step, p uintptr, n uint64) error {
	for i := range uintptr(n) {
		q := p + i*uintptr(st.of.size)
		if st.op == opPointers {
			if q = loadPtr(p + 8*i); q == 0 {
				continue
			}
		}
		if err := d.input(st.of, q); err != nil {
			return err
		}
	}
	return nil
}

func (d *receiver) input(s *structure, p uintptr) error {
	d.enter(s, p)
	defer d.leave(s)
	if s.next {
		for q, t := d.following(loadPtr(p + 8)); t != nil; q, t = d.following(loadPtr(q + 8)) {
			if err := d.inputMembers(t, q); err != nil {
				return err
			}
		}
	}
	return d.inputMembers(s, p)
}

func (d *receiver) inputMembers(s *structure, p uintptr) error {
	for i := range s.touched {
		st := &s.touched[i]
		var err error
		switch {
		case st.op == opInline:
			for j := range uintptr(st.n) {
				if err = d.input(st.of, p+uintptr(st.at)+j*uintptr(st.of.size)); err != nil {
					break
				}
			}
		case st.op == opHandle || st.op == opLocal || !st.leads() || !d.there(st, p):
		case st.out:
			err = d.behind(st, p)
		default:
			err = d.inputs(st, loadPtr(p+uintptr(st.at)), memberCount(st, p))
		}
		if err != nil {
			return err
		}
	}
	return nil
}
