// SPDX-License-Identifier: Apache-2.0

package codec

import (
	"fmt"

	"github.com/memspan/memspan/vulkan/registry"
)

// maxDepth bounds how deep structures may lie in structures. Vulkan's own need
// about five; chains inside of chains could go on for ever.
const maxDepth = 32

// A decoder reads a call and rebuilds its arguments in an Arena. What it reads
// may be hostile: every length is held against the bytes that are left or the
// arena's limit before anything is taken.
type decoder struct {
	src   []byte
	x     *Codec
	env   *Env
	args  *registry.Args
	arena *Arena
	depth int
	// updated is the client's id of the template among the parameters.
	updated uint64
	// strided is the length of the array that has a stride.
	strided uint64
}

func (d *decoder) call(p *program, from int) error {
	for i := from; i < len(p.call); i++ {
		st := &p.call[i]
		var err error
		switch st.op {
		case opPlain:
			d.args[i], err = d.word(uint8(st.size))
		case opHandle:
			var id uint64
			if id, err = d.word(8); err == nil {
				d.args[i], err = d.real(st.handle, id, st.lenient)
			}
			if id == 0 && err == nil && st.required {
				err = ErrMissing
			}
			if i == p.template {
				d.updated = id
			}
		case opLocal:
			d.args[i] = 0
		default:
			d.args[i], err = d.parameter(st)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", st.name, err)
		}
	}
	if p.strided >= 0 && d.strided < parameterCount(&p.call[p.strided], d.args) && d.args[p.strided] != 0 {
		return fmt.Errorf("%w: elements too far apart", ErrMalformed)
	}
	return nil
}

func (d *decoder) parameter(st *step) (uint64, error) {
	present, err := d.presence()
	if err != nil || !present {
		if err == nil && st.required && parameterCount(st, d.args) > 0 {
			err = ErrMissing
		}
		return 0, err
	}
	var n uint64
	if st.length.Kind == registry.Strided {
		if n, err = d.word(4); err != nil {
			return 0, err
		}
		d.strided = n
	} else {
		n = parameterCount(st, d.args)
	}
	p, err := d.pointee(st, n)
	return uint64(p), err
}

// bytes takes n bytes.
func (d *decoder) bytes(n int) ([]byte, error) {
	if n > len(d.src) {
		return nil, ErrMalformed
	}
	b := d.src[:n]
	d.src = d.src[n:]
	return b, nil
}

// word takes an integer of size bytes.
func (d *decoder) word(size uint8) (uint64, error) {
	if int(size) > len(d.src) {
		return 0, ErrMalformed
	}
	b := d.src
	d.src = b[size:]
	switch size {
	case 8:
		return little.Uint64(b), nil
	case 4:
		return uint64(little.Uint32(b)), nil
	case 2:
		return uint64(little.Uint16(b)), nil
	}
	return uint64(b[0]), nil
}

func (d *decoder) presence() (bool, error) {
	if len(d.src) == 0 || d.src[0] > 1 {
		return false, ErrMalformed
	}
	present := d.src[0] == 1
	d.src = d.src[1:]
	return present, nil
}

// real translates a client's id. A lenient one is of a handle that Vulkan may
// ignore, and that applications leave garbage in.
func (d *decoder) real(t registry.Index, id uint64, lenient bool) (uint64, error) {
	if id == 0 {
		return 0, nil
	}
	real, ok := d.env.Real(t, id)
	switch {
	case ok:
		return real, nil
	case lenient:
		return 0, nil
	}
	return 0, d.unknown(t, id)
}

func (d *decoder) unknown(t registry.Index, id uint64) error {
	name := "handle"
	if t >= 0 {
		name = d.x.handles[t].Name
	}
	return &HandleError{name, id}
}

// pointee reads the n elements that a pointer points to and returns where they
// are.
func (d *decoder) pointee(st *step, n uint64) (uintptr, error) {
	if st.elem != 0 && n > ArenaLimit/uint64(st.elem) {
		return 0, ErrTooLarge
	}
	switch st.op {
	case opBytes:
		size := int(n) * int(st.elem)
		if st.out {
			b, err := d.arena.room(size, n)
			if err == nil && st.both {
				var from []byte
				from, err = d.bytes(size)
				copy(b, from)
			}
			return address(b), err
		}
		return d.copied(size)
	case opCount:
		return d.copied(int(st.elem))
	case opHandles:
		if st.out {
			b, err := d.arena.room(8*int(n), n)
			return address(b), err
		}
		return d.handles(st, int(n))
	case opCreated:
		return d.created(st, int(n))
	case opStructs:
		if st.out {
			return d.shapes(st.of, n)
		}
		return d.structs(st.of, int(n))
	case opText:
		return d.text()
	case opTexts:
		return d.texts(n)
	case opPointers:
		return d.pointers(st.of, n)
	case opTemplated:
		return d.template(d.updated)
	}
	return 0, ErrUnsupported
}

func (d *decoder) copied(n int) (uintptr, error) {
	from, err := d.bytes(n)
	if err != nil {
		return 0, err
	}
	to, err := d.arena.take(n)
	if err != nil {
		return 0, err
	}
	copy(to, from)
	return address(to), nil
}

func (d *decoder) handles(st *step, n int) (uintptr, error) {
	from, err := d.bytes(8 * n)
	if err != nil {
		return 0, err
	}
	to, err := d.arena.take(8 * n)
	if err != nil {
		return 0, err
	}
	for i := range n {
		real, err := d.real(st.handle, little.Uint64(from[8*i:]), st.lenient)
		if err != nil {
			return 0, err
		}
		little.PutUint64(to[8*i:], real)
	}
	return address(to), nil
}

func (d *decoder) created(st *step, n int) (uintptr, error) {
	from, err := d.bytes(8 * n)
	if err != nil {
		return 0, err
	}
	to, err := d.arena.room(8*n, uint64(n))
	if err != nil {
		return 0, err
	}
	r := d.arena
	for i := range n {
		r.ids = append(r.ids, little.Uint64(from[8*i:]))
	}
	r.reals = to
	if st.length.Kind == registry.Pointed {
		r.count, r.size = uintptr(d.args[st.length.Of]), st.length.Size
	}
	return address(to), nil
}

func (d *decoder) text() (uintptr, error) {
	n, err := d.word(4)
	if err != nil {
		return 0, err
	}
	return d.terminated(n)
}

func (d *decoder) terminated(n uint64) (uintptr, error) {
	if n > uint64(len(d.src)) {
		return 0, ErrMalformed
	}
	to, err := d.arena.take(int(n) + 1)
	if err != nil {
		return 0, err
	}
	copy(to, d.src[:n])
	to[n] = 0
	d.src = d.src[n:]
	return address(to), nil
}

func (d *decoder) texts(n uint64) (uintptr, error) {
	if n > uint64(len(d.src)/4) {
		return 0, ErrMalformed
	}
	to, err := d.arena.zeroed(8 * int(n))
	if err != nil {
		return 0, err
	}
	for i := range n {
		length, err := d.word(4)
		if err != nil {
			return 0, err
		}
		if length == uint64(noText) {
			return 0, ErrMissing
		}
		p, err := d.terminated(length)
		if err != nil {
			return 0, err
		}
		putPtr(to[8*i:], p)
	}
	return address(to), nil
}

func (d *decoder) pointers(s *structure, n uint64) (uintptr, error) {
	if n > uint64(len(d.src)) {
		return 0, ErrMalformed
	}
	to, err := d.arena.zeroed(8 * int(n))
	if err != nil {
		return 0, err
	}
	for i := range n {
		present, err := d.presence()
		if err != nil {
			return 0, err
		}
		if !present {
			continue
		}
		p, err := d.structs(s, 1)
		if err != nil {
			return 0, err
		}
		putPtr(to[8*i:], p)
	}
	return address(to), nil
}

// structs reads n structures. Each takes at least its own bytes.
func (d *decoder) structs(s *structure, n int) (uintptr, error) {
	if n > len(d.src)/s.size {
		return 0, ErrMalformed
	}
	to, err := d.arena.take(n * s.size)
	if err != nil {
		return 0, err
	}
	if len(s.members) == 0 && !s.next {
		copy(to, d.src)
		d.src = d.src[len(to):]
		return address(to), nil
	}
	if d.depth++; d.depth > maxDepth {
		return 0, fmt.Errorf("%w: structures too deep", ErrMalformed)
	}
	for i := range n {
		b := to[i*s.size : (i+1)*s.size]
		from, err := d.bytes(s.size)
		if err != nil {
			return 0, err
		}
		copy(b, from)
		if err := d.inside(s, b); err != nil {
			return 0, err
		}
	}
	d.depth--
	return address(to), nil
}

// inside makes real what b, a structure's bytes as they came, leads to.
func (d *decoder) inside(s *structure, b []byte) error {
	if s.next {
		// A driver that meets another sType here could take the structure for
		// a longer one.
		little.PutUint32(b, s.sType)
		if err := d.chain(b); err != nil {
			return err
		}
	}
	return d.members(s, b)
}

// chain reads the chain of the structure whose bytes b start with.
func (d *decoder) chain(b []byte) error {
	switch little.Uint64(b[8:]) {
	case 0:
		return nil
	case 1:
	default:
		return ErrMalformed
	}
	for {
		if len(d.src) < 4 {
			return ErrMalformed
		}
		sType := little.Uint32(d.src)
		if sType == endOfChain {
			d.src = d.src[4:]
			little.PutUint64(b[8:], 0)
			return nil
		}
		s := d.x.bySType[sType]
		if s == nil {
			return fmt.Errorf("%w: sType %d", ErrMalformed, sType)
		}
		from, err := d.bytes(s.size)
		if err != nil {
			return err
		}
		to, err := d.arena.take(s.size)
		if err != nil {
			return err
		}
		copy(to, from)
		putPtr(b[8:], address(to))
		b = to
		if err := d.members(s, to); err != nil {
			return err
		}
	}
}

func (d *decoder) members(s *structure, b []byte) error {
	for i := range s.members {
		st := &s.members[i]
		field := b[st.at:]
		var err error
		switch st.op {
		case opLocal:
			clear(field[:st.size])
		case opHandle:
			for j := range int(st.n) {
				if err = d.translate(field[8*j:], st.handle, st.lenient); err != nil {
					break
				}
			}
		case opInline:
			for j := range int(st.n) {
				if err = d.inside(st.of, field[j*st.of.size:(j+1)*st.of.size]); err != nil {
					break
				}
			}
		default:
			switch little.Uint64(field) {
			case 0:
				if st.required && memberCount(st, address(b)) > 0 {
					err = ErrMissing
				}
			case 1:
				var p uintptr
				p, err = d.pointee(st, memberCount(st, address(b)))
				putPtr(field, p)
			default:
				err = ErrMalformed
			}
		}
		if err != nil {
			return fmt.Errorf("%s.%s: %w", s.name, st.name, err)
		}
	}
	return nil
}

// shapes makes room for n structures that the driver fills.
func (d *decoder) shapes(s *structure, n uint64) (uintptr, error) {
	b, err := d.arena.room(int(n)*s.size, n)
	if err != nil {
		return 0, err
	}
	if s.flat() {
		return address(b), nil
	}
	if n > uint64(len(d.src)) {
		return 0, ErrMalformed
	}
	if d.depth++; d.depth > maxDepth {
		return 0, fmt.Errorf("%w: structures too deep", ErrMalformed)
	}
	for i := range int(n) {
		if err := d.shape(s, b[i*s.size:(i+1)*s.size]); err != nil {
			return 0, err
		}
	}
	d.depth--
	return address(b), nil
}

func (d *decoder) shape(s *structure, b []byte) error {
	if s.next {
		little.PutUint32(b, s.sType)
		present, err := d.presence()
		if err != nil {
			return err
		}
		if present {
			if err := d.chainShape(b); err != nil {
				return err
			}
		}
	}
	return d.shapeOfMembers(s, b)
}

func (d *decoder) chainShape(b []byte) error {
	for {
		sType, err := d.word(4)
		if err != nil {
			return err
		}
		if uint32(sType) == endOfChain {
			return nil
		}
		s := d.x.bySType[uint32(sType)]
		if s == nil {
			return fmt.Errorf("%w: sType %d", ErrMalformed, sType)
		}
		to, err := d.arena.zeroed(s.size)
		if err != nil {
			return err
		}
		little.PutUint32(to, s.sType)
		putPtr(b[8:], address(to))
		b = to
		if err := d.shapeOfMembers(s, to); err != nil {
			return err
		}
	}
}

func (d *decoder) shapeOfMembers(s *structure, b []byte) error {
	for i := range s.touched {
		st := &s.touched[i]
		field := b[st.at:]
		var err error
		switch st.op {
		case opLocal, opHandle:
		case opInline:
			for j := range int(st.n) {
				if err = d.shape(st.of, field[j*st.of.size:(j+1)*st.of.size]); err != nil {
					break
				}
			}
		default:
			var present bool
			if present, err = d.presence(); !present {
				break
			}
			if l := &st.length; counts(l) {
				var from []byte
				if from, err = d.bytes(int(l.Size)); err != nil {
					break
				}
				copy(b[l.Of:], from)
			}
			var p uintptr
			p, err = d.pointee(st, memberCount(st, address(b)))
			putPtr(field, p)
		}
		if err != nil {
			return fmt.Errorf("%s.%s: %w", s.name, st.name, err)
		}
	}
	return nil
}
