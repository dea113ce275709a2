// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// What the stream fixes.
const (
	HeaderSize = 16        // bytes of a message before its body
	MaxBody    = 64 << 20  // bytes of a body
	MaxFrame   = 256 << 10 // bytes of stream in one frame
	FlushAt    = 64 << 10  // bytes that wait at most
	MaxText    = 1 << 10   // bytes of a name or a text
)

// ErrMalformed is a message, or a frame, that breaks the stream's rules. The
// connection is of no further use.
var ErrMalformed = errors.New("stream: malformed message")

// Op says what a message is about: an index in registry.Commands, or one of
// the constants.
type Op uint16

// The special operations, c a client's and w a worker's.
const (
	OpHello         Op = 0x8000 // c to w, the first message, a Hello; reply: a Welcome
	OpRecord        Op = 0x8001 // c to w: commands of a command buffer, see AppendRecord
	OpMemoryWrite   Op = 0x8010 // c to w: {u64 memory, u64 offset, data}
	OpMemoryRuns    Op = 0x8011 // c to w: Runs
	OpMemoryChanged Op = 0x8012 // w to c: Runs that the device wrote
	OpMemoryMap     Op = 0x8013 // c to w: {u64 memory} is mapped from now on; reply, if wanted: {i32 VkResult}
	OpMemoryImport  Op = 0x8014 // c to w: {u64 size, u32 0, the call of vkAllocateMemory} with a file; reply: {i32 VkResult, u8 imported}
	OpSignal        Op = 0x8020 // w to c: one or several Signals
	OpAddress       Op = 0x8021 // w to c: {u64 buffer, u64 address}
	OpLost          Op = 0x8022 // w to c: a Lost; nothing after it means anything
	OpPing          Op = 0x8030 // both; reply: the same, empty
	OpUnderWay      Op = 0x8031 // c to w: {u64 queue}; reply: {u32 submissions of it under way}
)

// Special reports whether the operation is none of a command.
func (op Op) Special() bool { return op >= OpHello }

// Flags qualify a message.
type Flags uint16

// The flags. The other bits are zero.
const (
	// FlagReply in a request: a reply is wanted; in an answer: this is it.
	FlagReply Flags = 1 << iota
	// FlagFile: a descriptor came with the message. EndFile sets it.
	FlagFile
	// FlagFailed in an answer: the command was not executed. The body is {i32
	// VkResult, text}.
	FlagFailed

	knownFlags = FlagReply | FlagFile | FlagFailed
)

// A Message is what Read returns.
type Message struct {
	Op     Op
	Flags  Flags
	Serial uint64 // of the request that this is or answers; 0 where no reply is wanted
	Body   []byte // valid until the next Read
}

// Has reports whether all of the given flags are set.
func (m Message) Has(f Flags) bool { return m.Flags&f == f }

// A Hello is the client's first message.
type Hello struct {
	Fingerprint uint64 // of the registry's tables
	Flags       HelloFlags
	PID         uint32 // the client's, for logs
	Name        string // the application's, for logs and lists; at most MaxText bytes
}

// HelloFlags say what the two ends can do.
type HelloFlags uint32

// SameMachine says that both ends are on one machine and files pass.
const SameMachine HelloFlags = 1

// Append appends the message's body to dst: {u64 fingerprint, u32 flags, u32
// pid, name}.
func (h Hello) Append(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, h.Fingerprint)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(h.Flags))
	dst = binary.LittleEndian.AppendUint32(dst, h.PID)
	return append(dst, h.Name[:min(len(h.Name), MaxText)]...)
}

// ParseHello reads a Hello's body. It fails with ErrMalformed.
func ParseHello(b []byte) (Hello, error) {
	if len(b) < 16 || len(b) > 16+MaxText {
		return Hello{}, fmt.Errorf("%w: hello of %d bytes", ErrMalformed, len(b))
	}
	return Hello{
		Fingerprint: binary.LittleEndian.Uint64(b),
		Flags:       HelloFlags(binary.LittleEndian.Uint32(b[8:])),
		PID:         binary.LittleEndian.Uint32(b[12:]),
		Name:        string(b[16:]),
	}, nil
}

// A Welcome answers a Hello. A worker whose fingerprint is another's sends it
// all the same, and closes the connection.
type Welcome struct {
	Fingerprint uint64
	Flags       HelloFlags // those of the Hello that hold
	PID         uint32     // the worker's
	Objects     uint32     // how many handles the worker keeps at most; 0: it does not say
	Depth       uint32     // how many submissions of one queue are under way at most; 0: it does not say
	Text        string     // what it is, or why it refuses; at most MaxText bytes
}

// Append appends the message's body to dst: {u64 fingerprint, u32 flags, u32
// pid, u32 objects, u32 depth, text}.
func (w Welcome) Append(dst []byte) []byte {
	dst = Hello{w.Fingerprint, w.Flags, w.PID, ""}.Append(dst)
	dst = binary.LittleEndian.AppendUint32(dst, w.Objects)
	dst = binary.LittleEndian.AppendUint32(dst, w.Depth)
	return append(dst, w.Text[:min(len(w.Text), MaxText)]...)
}

// ParseWelcome reads a Welcome's body. It fails with ErrMalformed.
func ParseWelcome(b []byte) (Welcome, error) {
	if len(b) < 24 || len(b) > 24+MaxText {
		return Welcome{}, fmt.Errorf("%w: welcome of %d bytes", ErrMalformed, len(b))
	}
	return Welcome{
		Fingerprint: binary.LittleEndian.Uint64(b),
		Flags:       HelloFlags(binary.LittleEndian.Uint32(b[8:])),
		PID:         binary.LittleEndian.Uint32(b[12:]),
		Objects:     binary.LittleEndian.Uint32(b[16:]),
		Depth:       binary.LittleEndian.Uint32(b[20:]),
		Text:        string(b[24:]),
	}, nil
}

// SignalKind says what a Signal is about.
type SignalKind uint8

// The kinds of signals.
const (
	SignalFence     SignalKind = 1 + iota // signalled; the value says how many times it had been submitted
	SignalSemaphore                       // a timeline semaphore reached the value
	SignalEvent                           // an event; the value is how often the application has changed it, times 2, and 1 more if it is set
)

// A Signal tells of a fence, semaphore or event that changed. Both sides count
// a fence's submissions from 1, so that a signal that comes after the fence was
// reset is not taken for that of a later submission.
type Signal struct {
	Kind  SignalKind
	ID    uint64
	Value uint64
}

// signalSize is what a Signal takes: {u8 kind, 7 bytes of zero, u64 id, u64
// value}.
const signalSize = 24

// Append appends the signal to dst. A message may hold several.
func (s Signal) Append(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, uint64(s.Kind))
	dst = binary.LittleEndian.AppendUint64(dst, s.ID)
	return binary.LittleEndian.AppendUint64(dst, s.Value)
}

// NextSignal takes the first signal from a message's body and returns what
// follows it. It fails with ErrMalformed.
func NextSignal(b []byte) (Signal, []byte, error) {
	if len(b) < signalSize {
		return Signal{}, nil, fmt.Errorf("%w: signal of %d bytes", ErrMalformed, len(b))
	}
	kind := binary.LittleEndian.Uint64(b)
	if kind == 0 || kind > uint64(SignalEvent) {
		return Signal{}, nil, fmt.Errorf("%w: signal of kind %d", ErrMalformed, kind)
	}
	return Signal{
		Kind:  SignalKind(kind),
		ID:    binary.LittleEndian.Uint64(b[8:]),
		Value: binary.LittleEndian.Uint64(b[16:]),
	}, b[signalSize:], nil
}

// An Address is that of a buffer, sent once its memory is bound.
type Address struct {
	Buffer  uint64
	Address uint64
}

// Append appends the message's body to dst.
func (a Address) Append(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, a.Buffer)
	return binary.LittleEndian.AppendUint64(dst, a.Address)
}

// ParseAddress reads an Address' body. It fails with ErrMalformed.
func ParseAddress(b []byte) (Address, error) {
	if len(b) != 16 {
		return Address{}, fmt.Errorf("%w: address of %d bytes", ErrMalformed, len(b))
	}
	return Address{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])}, nil
}

// A Lost says why the device is lost.
type Lost struct {
	Result  int32  // VkResult of the call that failed
	Command uint16 // its index in registry.Commands, or 0xffff
	Text    string // at most MaxText bytes
}

// Append appends the message's body to dst: {i32 result, u16 command, u16
// zero, text}.
func (l Lost) Append(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, uint32(l.Result))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(l.Command))
	return append(dst, l.Text[:min(len(l.Text), MaxText)]...)
}

// ParseLost reads a Lost's body. It fails with ErrMalformed.
func ParseLost(b []byte) (Lost, error) {
	if len(b) < 8 || len(b) > 8+MaxText {
		return Lost{}, fmt.Errorf("%w: lost of %d bytes", ErrMalformed, len(b))
	}
	return Lost{
		Result:  int32(binary.LittleEndian.Uint32(b)),
		Command: binary.LittleEndian.Uint16(b[4:]),
		Text:    string(b[8:]),
	}, nil
}

// AppendFailed appends the body of an answer with FlagFailed to dst: {i32
// VkResult, text}.
func AppendFailed(dst []byte, result int32, text string) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, uint32(result))
	return append(dst, text[:min(len(text), MaxText)]...)
}

// ParseFailed reads the body of an answer with FlagFailed. The result is
// negative. It fails with ErrMalformed.
func ParseFailed(b []byte) (result int32, text string, err error) {
	if len(b) < 4 || len(b) > 4+MaxText {
		return 0, "", fmt.Errorf("%w: failure of %d bytes", ErrMalformed, len(b))
	}
	if result = int32(binary.LittleEndian.Uint32(b)); result >= 0 {
		return 0, "", fmt.Errorf("%w: failure with result %d", ErrMalformed, result)
	}
	return result, string(b[4:]), nil
}

// A Run is bytes [Offset, Offset+Length) of a device memory.
type Run struct {
	Offset uint64
	Length uint32
}

// runSize is what a Run takes: {u64 offset, u32 length}.
const runSize = 12

// Runs are what an OpMemoryRuns or OpMemoryChanged holds: changed bytes of one
// memory.
type Runs struct {
	Memory uint64
	runs   []byte
	Data   []byte // the runs' bytes, one after the other
}

// AppendRuns appends the beginning of the message's body to dst: {u64 memory,
// u32 count, count × {u64 offset, u32 length}}. The runs' bytes follow it.
func AppendRuns(dst []byte, memory uint64, runs []Run) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, memory)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(runs)))
	for _, r := range runs {
		dst = binary.LittleEndian.AppendUint64(dst, r.Offset)
		dst = binary.LittleEndian.AppendUint32(dst, r.Length)
	}
	return dst
}

// ParseRuns reads the message's body. It fails with ErrMalformed unless the
// data is exactly what the runs announce, and none of them ends beyond 2^63.
// Whether they lie in the memory is the caller's to check.
func ParseRuns(b []byte) (Runs, error) {
	if len(b) < 12 {
		return Runs{}, fmt.Errorf("%w: runs in %d bytes", ErrMalformed, len(b))
	}
	n := uint64(binary.LittleEndian.Uint32(b[8:]))
	if n*runSize > uint64(len(b)-12) {
		return Runs{}, fmt.Errorf("%w: %d runs in %d bytes", ErrMalformed, n, len(b))
	}
	m := Runs{Memory: binary.LittleEndian.Uint64(b), runs: b[12 : 12+n*runSize], Data: b[12+n*runSize:]}
	total := uint64(0) // cannot wrap: fewer than 2^23 runs of less than 2^32 bytes
	for i := range m.Len() {
		r := m.At(i)
		if r.Offset > 1<<62 {
			return Runs{}, fmt.Errorf("%w: run at offset %d", ErrMalformed, r.Offset)
		}
		total += uint64(r.Length)
	}
	if total != uint64(len(m.Data)) {
		return Runs{}, fmt.Errorf("%w: runs of %d bytes with %d of data", ErrMalformed, total, len(m.Data))
	}
	return m, nil
}

// Len returns the number of runs.
func (m Runs) Len() int { return len(m.runs) / runSize }

// At returns run i.
func (m Runs) At(i int) Run {
	b := m.runs[i*runSize:]
	return Run{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint32(b[8:])}
}

// recordSize is what stands before each command of an OpRecord: {u16 command,
// u32 length}.
const recordSize = 6

// AppendRecord appends one command's beginning to the body of an OpRecord,
// which is {u64 command buffer, then per command {u16 command, u32 length,
// call}}. The call, without the first parameter, follows it; EndRecord is told
// where dst was before.
func AppendRecord(dst []byte, command uint16) []byte {
	return append(dst, byte(command), byte(command>>8), 0, 0, 0, 0)
}

// EndRecord stores the length of the command that began at start: all of b
// that follows its beginning.
func EndRecord(b []byte, start int) {
	binary.LittleEndian.PutUint32(b[start+2:], uint32(len(b)-start-recordSize))
}

// NextRecord takes the first command from the body of an OpRecord, behind the
// command buffer's id, and returns what follows it. It fails with
// ErrMalformed.
func NextRecord(b []byte) (command uint16, call, rest []byte, err error) {
	if len(b) < recordSize {
		return 0, nil, nil, fmt.Errorf("%w: %d bytes of a recorded command", ErrMalformed, len(b))
	}
	n := uint64(binary.LittleEndian.Uint32(b[2:]))
	if n > uint64(len(b)-recordSize) {
		return 0, nil, nil, fmt.Errorf("%w: recorded command of %d bytes in %d", ErrMalformed, n, len(b))
	}
	return binary.LittleEndian.Uint16(b), b[recordSize : recordSize+n], b[recordSize+n:], nil
}
