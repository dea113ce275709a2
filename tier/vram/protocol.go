// SPDX-License-Identifier: Apache-2.0

package vram

import (
	"encoding/binary"
	"fmt"
)

// The tier and its worker are one program, so their protocol has no versions:
// fixed-size little-endian requests and replies on a unix stream socket, some
// followed by a payload of JSON, text or bytes. Requests are answered in any order, by
// id. A region's descriptor travels with the request that adds it.

type op uint32

const (
	opOpen         op = iota + 1 // payload: openRequest -> openReply
	opProbe                      // -> []DeviceInfo
	opAddRegion                  // other: id, n: size, one file
	opRemoveRegion               // other: id
	opAddSlab                    // slab: id, arg: kind, n: size
	opRemoveSlab                 // slab: id
	opWrite                      // slab[off, +n) = region other[otherOff, +n)
	opRead                       // region other[otherOff, +n) = slab[off, +n)
	opCopy                       // slab[off, +n) = slab other[otherOff, +n)
	opFill                       // slab[off, +n) = arg, repeated
	opAddKernel                  // other: id, payload: SPIR-V
	opRemoveKernel               // other: id
	opRun                        // kernel other, in arg work groups, on slab[off, +n); payload: push constants
)

var opNames = [...]string{"", "open", "probe", "add region", "remove region", "add slab", "remove slab", "write", "read", "copy", "fill",
	"add kernel", "remove kernel", "run kernel"}

func (o op) String() string {
	if int(o) < len(opNames) {
		return opNames[o]
	}
	return fmt.Sprintf("op(%d)", uint32(o))
}

const (
	requestSize = 56
	replySize   = 32
	// maxPayload bounds what one side makes the other hold in memory.
	maxPayload = 1 << 20
)

type request struct {
	id       uint64
	op       op
	arg      uint32
	slab     uint32
	other    uint32
	off      int64
	otherOff int64
	n        int64
	payload  uint32 // length of what follows, in bytes
}

func (r *request) append(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint64(b, r.id)
	b = le.AppendUint32(b, uint32(r.op))
	b = le.AppendUint32(b, r.arg)
	b = le.AppendUint32(b, r.slab)
	b = le.AppendUint32(b, r.other)
	b = le.AppendUint64(b, uint64(r.off))
	b = le.AppendUint64(b, uint64(r.otherOff))
	b = le.AppendUint64(b, uint64(r.n))
	b = le.AppendUint32(b, r.payload)
	return le.AppendUint32(b, 0)
}

// parse decodes the first requestSize bytes of b.
func (r *request) parse(b []byte) error {
	le := binary.LittleEndian
	*r = request{
		id: le.Uint64(b), op: op(le.Uint32(b[8:])), arg: le.Uint32(b[12:]), slab: le.Uint32(b[16:]), other: le.Uint32(b[20:]),
		off: int64(le.Uint64(b[24:])), otherOff: int64(le.Uint64(b[32:])), n: int64(le.Uint64(b[40:])), payload: le.Uint32(b[48:]),
	}
	if r.payload > maxPayload {
		return fmt.Errorf("vram: request %v announces %d bytes, the limit is %d", r.op, r.payload, maxPayload)
	}
	return nil
}

type status uint32

const (
	statusOK     status = iota
	statusFailed        // the payload says why
	statusAbsent        // there is no Vulkan, or no such device
	statusFull          // the device's memory does not hold it
)

// A reply's counters are those of the worker's whole life.
type reply struct {
	id      uint64
	status  status
	payload uint32
	submits int64
	flushes int64
}

func (r *reply) append(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint64(b, r.id)
	b = le.AppendUint32(b, uint32(r.status))
	b = le.AppendUint32(b, r.payload)
	b = le.AppendUint64(b, uint64(r.submits))
	return le.AppendUint64(b, uint64(r.flushes))
}

// parse decodes the first replySize bytes of b.
func (r *reply) parse(b []byte) error {
	le := binary.LittleEndian
	*r = reply{
		id: le.Uint64(b), status: status(le.Uint32(b[8:])), payload: le.Uint32(b[12:]),
		submits: int64(le.Uint64(b[16:])), flushes: int64(le.Uint64(b[24:])),
	}
	if r.payload > maxPayload {
		return fmt.Errorf("vram: reply announces %d bytes, the limit is %d", r.payload, maxPayload)
	}
	if r.status > statusFull {
		return fmt.Errorf("vram: reply with unknown status %d", r.status)
	}
	return nil
}

// openRequest says which device the worker opens, and how.
type openRequest struct {
	Device           string
	HideHostVisible  bool
	HideHostCoherent bool
}

// openReply says what the worker opened.
type openReply struct {
	Device   DeviceInfo
	Kinds    []kind
	Place    [3]int // index into Kinds, by tier.Placement
	Confined string
	Full     bool // confined in every way that there is
}
