// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"github.com/memspan/memspan/internal/crc32c"
	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/sharedbuf"
)

// Access says how an operation maps buffers.
type Access int

// The two ways to map a buffer.
const (
	ReadOnly Access = iota
	ReadWrite
)

// An Operation is something that guests may ask for. Run is called concurrently,
// once for each request; its result is sent as JSON, nil for none.
type Operation struct {
	Name   string
	Access Access
	Run    func(c *Call) (any, error)
	// Proven keeps it from guests who have proved nothing, whom Config.Trust alone
	// lets in: they are refused with sharedbuf.ErrDenied.
	Proven bool

	brief bool // it takes time by the buffer's size alone
}

// A Call is one operation on one buffer. It is valid while Run runs. Its methods
// may be called concurrently, but for Each.
type Call struct {
	ctx      context.Context
	step     sharedbuf.Step
	mem      []byte
	file     *os.File // of a buffer without a name; else nil
	inMemory bool
	progress *atomic.Int64

	mu        sync.Mutex
	processed int64
}

// Context ends when the request is given up.
func (c *Call) Context() context.Context { return c.ctx }

// Size returns the buffer's length in bytes.
func (c *Call) Size() int64 { return int64(len(c.mem)) }

// Memory returns the sealed memfd of a buffer without a name, which both sides
// map; nil for others. It is valid while Run runs.
func (c *Call) Memory() *os.File { return c.file }

// InMemory reports whether the buffer's bytes are in RAM: ReadAt and WriteAt copy
// at its speed. If not they may wait for a file system, however long it takes.
func (c *Call) InMemory() bool { return c.inMemory }

// Arguments decodes what the guest gave with the operation into v. No arguments
// leave it as it is. The error matches sharedbuf.ErrInvalid.
func (c *Call) Arguments(v any) error {
	if len(c.step.Arguments) == 0 {
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(c.step.Arguments))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return &sharedbuf.Error{Code: sharedbuf.ErrInvalid, Message: "the operation does not take these arguments", Err: err}
	}
	return nil
}

// chunkSize is how many bytes an operation sees at a time: they stay in a
// processor's cache between two looks at them, and it is small enough that a
// request is given up soon. It is a multiple of eight.
const chunkSize = 256 << 10

// Each calls f with the buffer's bytes, piece by piece from its beginning: the
// shared memory itself, of which the guest may change every byte at any time,
// and writable only if the operation is ReadWrite. f must not keep it, nor touch
// it in another goroutine: here a fault becomes an error, which matches
// sharedbuf.ErrTruncated. Each ends with f's first error, or when the request is
// given up.
func (c *Call) Each(f func(off int64, chunk []byte) error) (err error) {
	fault := guarded(func() {
		for off := 0; off < len(c.mem); off += chunkSize {
			if c.ctx.Err() != nil {
				err = context.Cause(c.ctx)
				return
			}
			end := min(off+chunkSize, len(c.mem))
			if err = f(int64(off), c.mem[off:end:end]); err != nil {
				return
			}
			c.Processed(int64(end - off))
		}
	})
	return cmp.Or(fault, err)
}

// ReadAt copies bytes of the buffer, from off on, to p. It implements
// io.ReaderAt; a fault becomes an error that matches sharedbuf.ErrTruncated. The
// bytes are not counted: see Processed.
func (c *Call) ReadAt(p []byte, off int64) (int, error) {
	return c.copyAt(off, len(p), io.EOF, func(mem []byte) int { return memfd.Copy(p, mem) })
}

// WriteAt copies p to bytes of the buffer, from off on, if the operation is
// ReadWrite. It implements io.WriterAt: what is beyond the buffer's end is not
// written, which is an error. Faults are as those of ReadAt.
func (c *Call) WriteAt(p []byte, off int64) (int, error) {
	return c.copyAt(off, len(p), io.ErrShortWrite, func(mem []byte) int { return memfd.Copy(mem, p) })
}

// copyAt has n bytes of the buffer from off on copied, or as many as there are:
// then the error is short.
func (c *Call) copyAt(off int64, n int, short error, copied func(mem []byte) int) (done int, err error) {
	switch {
	case c.ctx.Err() != nil:
		return 0, context.Cause(c.ctx)
	case off < 0:
		return 0, &sharedbuf.Error{Code: sharedbuf.ErrInvalid, Message: fmt.Sprintf("byte %d of a buffer", off)}
	case off > c.Size():
		return 0, short
	}
	mem := c.mem[off:]
	if len(mem) >= n {
		mem, short = mem[:n:n], nil
	}
	if err := guarded(func() { done = copied(mem) }); err != nil {
		return 0, err
	}
	return done, short
}

// Processed adds n to the bytes that the guest is told were processed. Each does
// it by itself.
func (c *Call) Processed(n int64) {
	c.mu.Lock()
	c.processed += n
	c.mu.Unlock()
	c.progress.Add(n)
}

// guarded calls f, which touches a buffer, and turns a fault into an error.
func guarded(f func()) error {
	fault := memfd.Guard(f)
	if fault == nil {
		return nil
	}
	return &sharedbuf.Error{Code: sharedbuf.ErrTruncated,
		Message: "the buffer's memory went away: the file was cut short while it was mapped, or there is no space left for it", Err: fault}
}

// builtin are the operations that every host has.
func builtin() []Operation {
	return []Operation{
		{Name: "process", Access: ReadOnly, Run: process, brief: true},
		{Name: "checksum", Access: ReadOnly, Run: checksum, brief: true},
		{Name: "verify", Access: ReadOnly, Run: verify, brief: true},
		{Name: "fill", Access: ReadWrite, Run: fill, brief: true},
	}
}

func process(c *Call) (any, error) {
	_, err := sum(c)
	return nil, err
}

func checksum(c *Call) (any, error) { return sum(c) }

// sum reads every byte, at the speed of memory.
func sum(c *Call) (crc uint32, err error) {
	if err := c.Arguments(&struct{}{}); err != nil {
		return 0, err
	}
	err = c.Each(func(_ int64, chunk []byte) error {
		crc = crc32c.Update(crc, chunk)
		return nil
	})
	return crc, err
}

// patternArguments are those of verify and fill.
type patternArguments struct {
	Pattern *sharedbuf.U32 `json:"pattern"`
}

// patternOf returns a chunk full of the pattern that was asked for.
func patternOf(c *Call) ([]byte, error) {
	var a patternArguments
	if err := c.Arguments(&a); err != nil {
		return nil, err
	}
	if a.Pattern == nil {
		return nil, &sharedbuf.Error{Code: sharedbuf.ErrInvalid, Message: `the operation takes {"pattern": a number of 32 bits}`}
	}
	return repeated(uint32(*a.Pattern), int(min(chunkSize, c.Size()))), nil
}

// repeated returns n bytes of little-endian words.
func repeated(word uint32, n int) []byte {
	b := make([]byte, (n+3)/4*4)
	for i := 0; i < len(b); i += 4 {
		binary.LittleEndian.PutUint32(b[i:], word)
	}
	return b[:n]
}

func verify(c *Call) (any, error) {
	want, err := patternOf(c)
	if err != nil {
		return nil, err
	}
	return nil, c.Each(func(off int64, chunk []byte) error {
		if bytes.Equal(chunk, want[:len(chunk)]) {
			return nil
		}
		for i := range chunk {
			if got := chunk[i]; got != want[i] {
				return &sharedbuf.Error{Code: sharedbuf.ErrMismatch,
					Message: fmt.Sprintf("byte %d is %#02x; the pattern has %#02x there", off+int64(i), got, want[i])}
			}
		}
		return &sharedbuf.Error{Code: sharedbuf.ErrMismatch,
			Message: fmt.Sprintf("bytes %d to %d changed while they were compared", off, off+int64(len(chunk))-1)}
	})
}

func fill(c *Call) (any, error) {
	with, err := patternOf(c)
	if err != nil {
		return nil, err
	}
	return nil, c.Each(func(_ int64, chunk []byte) error {
		memfd.Copy(chunk, with)
		return nil
	})
}

// needSpans are the operations that a host with spans has, package server's.
var needSpans = []string{"transform", "ingest", "export"}

// spanless says of an operation that needs spans that there are none.
func spanless(*Call) (any, error) {
	return nil, &sharedbuf.Error{Code: sharedbuf.ErrUnsupported, Message: "this host has no spans; use memspan serve --shared-dir"}
}

// register makes a table of operations.
func register(more []Operation) (map[string]Operation, error) {
	table := make(map[string]Operation)
	for _, op := range append(builtin(), more...) {
		if op.Name == "" || op.Run == nil || op.Access != ReadOnly && op.Access != ReadWrite {
			return nil, fmt.Errorf("host: operation %q: it needs a name, a way of access and a function", op.Name)
		}
		if _, taken := table[op.Name]; taken {
			return nil, fmt.Errorf("host: operation %q is there twice", op.Name)
		}
		table[op.Name] = op
	}
	for _, name := range needSpans {
		if _, has := table[name]; !has {
			table[name] = Operation{Name: name, Run: spanless}
		}
	}
	return table, nil
}

// canceled reports whether err says that a request was given up.
func canceled(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}
