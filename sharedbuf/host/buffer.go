// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/memspan/memspan/internal/blocks"
	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/internal/sharedfile"
	"github.com/memspan/memspan/sharedbuf"
)

// maxChain is how many operations one request may ask for.
const maxChain = 32

// Work is a request for operations on a buffer, checked as far as can be
// without the buffer.
type work struct {
	request *sharedbuf.Request
	chain   []sharedbuf.Step
	ops     []Operation
	write   bool
	small   bool     // the operations take little time once the buffer is mapped, and mapping it does
	file    *os.File // of a buffer without a name; else nil
	replica *replica // of a buffer whose bytes are sent; else nil
	written func()   // ends the use of the replica by what was written; nil: nothing was
	memory  *memory  // for a copy
	help    *blocks.Helpers
	key     []byte // of an encrypted buffer; else nil
	sealed  uint64 // the turn in which what was written was sealed; 0: in none
	peer    int    // the guest's user; -1: not known

	inMemory bool // what is mapped is in RAM; set by mapBuffer

	uses     atomic.Int32
	progress atomic.Int64
}

// brief reports whether the operations take about as long as handing them to another
// goroutine: they are this package's own, on few bytes, which are in RAM, in the
// clear, and nobody else's turn is waited for.
func (w *work) brief() bool {
	return w != nil && w.small && w.replica == nil && w.key == nil
}

// prepare finds the operations that a request asks for. The work owns file.
func (h *Host) prepare(r *sharedbuf.Request, file *os.File, who guest) (*work, error) {
	chain, err := r.Chain()
	if err != nil {
		return nil, err
	}
	w := &work{request: r, chain: chain, file: file, peer: who.uid, help: h.helpers}
	w.uses.Store(1)
	w.small = (file != nil || h.inRAM) && r.Size <= chunkSize/int64(max(len(chain), 1))
	if len(chain) > maxChain {
		return nil, &sharedbuf.Error{Code: sharedbuf.ErrLimit, Message: fmt.Sprintf("a chain of %d operations; at most %d are allowed", len(chain), maxChain)}
	}
	for _, step := range chain {
		op, ok := h.operations[step.Operation]
		if !ok {
			return nil, &sharedbuf.Error{Code: sharedbuf.ErrOperation, Message: fmt.Sprintf("there is no operation %q here; there are %s", step.Operation, strings.Join(h.names, ", "))}
		}
		if op.Proven && !who.secure {
			return nil, &sharedbuf.Error{Code: sharedbuf.ErrDenied, Message: fmt.Sprintf("operation %q is for guests who prove who they are, and of you only the network is known; connect over TLS", op.Name)}
		}
		w.ops = append(w.ops, op)
		w.small = w.small && op.brief
		w.write = w.write || op.Access == ReadWrite
	}
	switch {
	case r.Size == 0:
		return nil, &sharedbuf.Error{Code: sharedbuf.ErrInvalid, Message: "the request says no buffer_size"}
	case r.Size > h.config.MaxBuffer:
		return nil, &sharedbuf.Error{Code: sharedbuf.ErrLimit, Message: fmt.Sprintf("a buffer of %d bytes; at most %d are allowed", r.Size, h.config.MaxBuffer)}
	}
	return w, nil
}

// do maps the buffer, carries out the chain and unmaps it.
func (h *Host) do(ctx context.Context, w *work) (_ *sharedbuf.Result, err error) {
	mem, done, err := h.mapBuffer(ctx, w)
	if err != nil {
		return nil, err
	}
	defer func() {
		if derr := done(); err == nil {
			err = derr
		}
	}()
	result := &sharedbuf.Result{Operation: w.chain[0].Operation, BufferID: uint32(w.request.BufferID), Status: "processed"}
	for i, op := range w.ops {
		c := &Call{ctx: ctx, step: w.chain[i], mem: mem[:w.request.Size], file: w.memfd(), inMemory: w.inMemory, progress: &w.progress}
		value, err := op.Run(c)
		if err == nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		var raw json.RawMessage
		if err == nil && value != nil {
			raw, err = json.Marshal(value)
		}
		if err != nil {
			if len(w.ops) > 1 {
				err = fmt.Errorf("step %d, %s: %w", i+1, op.Name, err)
			}
			return nil, err
		}
		result.Bytes += c.processed
		result.Value = raw
		if len(w.ops) > 1 {
			result.Steps = append(result.Steps, sharedbuf.StepResult{Operation: op.Name, Bytes: c.processed, Value: raw})
		}
	}
	return result, nil
}

// mapBuffer makes the memory of what the request names accessible, until done is
// called.
func (h *Host) mapBuffer(ctx context.Context, w *work) (mem []byte, done func() error, err error) {
	w.inMemory = true // but for files on disk and further away
	if w.replica != nil {
		if err := w.permit(w.request.Permissions); err != nil {
			return nil, nil, err
		}
		release, err := w.replica.use(ctx, w.write)
		if err != nil {
			return nil, nil, err
		}
		if w.write && !w.request.Background {
			// Nobody may see what the guest has not been told: answer releases it.
			w.written = release
			return w.replica.mem, func() error { return nil }, nil
		}
		return w.replica.mem, func() error { release(); return nil }, nil
	}
	f := w.file
	if f == nil {
		if f, err = h.open(w); err != nil {
			return nil, nil, err
		}
		defer f.Close()
	} else if err := h.checkNameless(w); err != nil {
		return nil, nil, err
	}
	shared, err := sharedfile.Map(f, w.sharedSize(), w.write)
	if err != nil {
		code := sharedbuf.ErrFailed
		if errors.Is(err, fs.ErrPermission) { // the descriptor is for reading alone, or what it is of is sealed
			code = sharedbuf.ErrDenied
		}
		return nil, nil, &sharedbuf.Error{Code: code, Message: "the file cannot be mapped", Err: err}
	}
	unmap := func() error { return sharedfile.Unmap(shared) }
	// Who reads memory has the kernel map sixteen pages at each fault, which is faster
	// than all at once; who writes would have it map one, and who waits for a disk
	// within a fault keeps a processor.
	inMemory := sharedfile.InMemory(f)
	if w.write || !inMemory {
		if err := populate(ctx, shared); err != nil {
			return nil, nil, errors.Join(err, unmap())
		}
	}
	if w.key == nil {
		w.inMemory = inMemory
		return shared, unmap, nil
	}
	mem, sealing, err := w.unseal(ctx, shared)
	if err != nil {
		return nil, nil, errors.Join(err, unmap())
	}
	return mem, func() error { return errors.Join(sealing(), unmap()) }, nil
}

// populatedAtOnce is how many bytes are mapped between two looks whether the request
// was given up: a disk reads them in a moment.
const populatedAtOnce = 16 << 20

// populate maps the pages of a buffer.
func populate(ctx context.Context, shared []byte) error {
	for piece := range slices.Chunk(shared, populatedAtOnce) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		sharedfile.Populate(piece)
	}
	return nil
}

// memfd returns the buffer's memory as operations may have it, if it has no name
// and its bytes are what is in there.
func (w *work) memfd() *os.File {
	if w.key != nil {
		return nil
	}
	return w.file
}

// checkNameless looks at the descriptor that came with a request.
func (h *Host) checkNameless(w *work) error {
	if id, _ := strings.CutPrefix(w.request.Path, sharedbuf.MemfdPrefix); id != strconv.FormatUint(uint64(w.request.BufferID), 10) {
		return &sharedbuf.Error{Code: sharedbuf.ErrInvalid, Message: fmt.Sprintf("file_path says buffer %s, buffer_id says %d", id, w.request.BufferID)}
	}
	if err := w.permit(w.request.Permissions); err != nil {
		return err
	}
	// Sealed, nobody can cut it short.
	if err := memfd.CheckSealed(w.file, w.sharedSize()); err != nil {
		return &sharedbuf.Error{Code: sharedbuf.ErrSize, Message: "the descriptor that came is not that of a buffer", Err: err}
	}
	return nil
}

// open opens the file that the request names, if the guest may have that done.
func (h *Host) open(w *work) (*os.File, error) {
	if h.dir == nil {
		return nil, &sharedbuf.Error{Code: sharedbuf.ErrOutside, Message: "this host has no shared directory: it takes buffers without a name only"}
	}
	path := w.request.Path
	if len(h.config.Translate) > 0 {
		var err error
		if path, err = h.config.Translate.ToHost(path); err != nil {
			return nil, err
		}
	}
	rel, err := sharedbuf.Below(h.config.Dir, path)
	if err != nil {
		return nil, err
	}
	f, err := h.dir.Open(rel, w.write)
	if err != nil {
		return nil, &sharedbuf.Error{Code: openCode(err), Message: "the file cannot be opened", Err: err}
	}
	if err := h.check(w, f, rel); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func openCode(err error) sharedbuf.Code {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return sharedbuf.ErrNotFound
	case errors.Is(err, fs.ErrPermission):
		return sharedbuf.ErrNotOwner
	case errors.Is(err, sharedfile.ErrEscape), errors.Is(err, sharedfile.ErrNotRegular):
		return sharedbuf.ErrOutside
	case errors.Is(err, errors.ErrUnsupported):
		return sharedbuf.ErrUnsupported
	}
	return sharedbuf.ErrFailed
}

// check looks at the file that was opened, which is the one that is mapped.
func (h *Host) check(w *work, f *os.File, rel string) error {
	owner, err := sharedfile.Owner(f)
	if err != nil {
		return &sharedbuf.Error{Code: sharedbuf.ErrFailed, Message: "the file cannot be looked at", Err: err}
	}
	if owner != w.peer && owner != os.Getuid() {
		return &sharedbuf.Error{Code: sharedbuf.ErrNotOwner, Message: fmt.Sprintf("the file belongs to user %d", owner)}
	}
	info, err := f.Stat()
	if err != nil {
		return &sharedbuf.Error{Code: sharedbuf.ErrFailed, Message: "the file cannot be looked at", Err: err}
	}
	if info.Size() != w.sharedSize() {
		return &sharedbuf.Error{Code: sharedbuf.ErrSize, Message: fmt.Sprintf("the file has %d bytes, by buffer_size it has %d", info.Size(), w.sharedSize())}
	}
	record, err := sharedfile.ReadLease(h.dir, rel, f)
	if errors.Is(err, fs.ErrNotExist) && w.request.Generation == 0 { // a guest of the original system
		return nil
	}
	if err != nil {
		return &sharedbuf.Error{Code: sharedbuf.ErrStale, Message: "the buffer's lease cannot be read", Err: err}
	}
	if g := w.request.Generation; g != 0 && g != record.Generation {
		return &sharedbuf.Error{Code: sharedbuf.ErrStale, Message: fmt.Sprintf("the buffer has generation %d, the request is for %d: it was taken back, or is another one", record.Generation, g)}
	}
	return w.permit(record.Terms)
}

// permit refuses what the buffer's permissions forbid.
func (w *work) permit(text []byte) error {
	p, err := sharedbuf.ParsePermissions(text)
	if err != nil {
		return err
	}
	for _, op := range w.ops {
		if err := p.Permit(w.peer, op.Name, op.Access == ReadWrite); err != nil {
			return err
		}
	}
	return nil
}

// retain has the work stay until one more close.
func (w *work) retain() { w.uses.Add(1) }

// close gives back what the work has, once nobody uses it. It may be nil.
func (w *work) close() {
	if w == nil || w.uses.Add(-1) > 0 {
		return
	}
	if w.file != nil {
		w.file.Close()
	}
	if w.replica != nil {
		w.replica.release()
	}
}
