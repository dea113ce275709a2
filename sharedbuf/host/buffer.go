// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync/atomic"

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
	file    *os.File // of a buffer without a name; else nil
	peer    int      // the guest's user; -1: not known

	progress atomic.Int64
}

// prepare finds the operations that a request asks for. The work owns file.
func (h *Host) prepare(r *sharedbuf.Request, file *os.File, peer int) (*work, error) {
	chain, err := r.Chain()
	if err != nil {
		return nil, err
	}
	w := &work{request: r, chain: chain, file: file, peer: peer}
	if len(chain) > maxChain {
		return nil, &sharedbuf.Error{Code: sharedbuf.ErrLimit, Message: fmt.Sprintf("a chain of %d operations; at most %d are allowed", len(chain), maxChain)}
	}
	for _, step := range chain {
		op, ok := h.operations[step.Operation]
		if !ok {
			return nil, &sharedbuf.Error{Code: sharedbuf.ErrOperation, Message: fmt.Sprintf("there is no operation %q here; there are %s", step.Operation, strings.Join(h.names, ", "))}
		}
		w.ops = append(w.ops, op)
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
	mem, err := h.mapBuffer(w)
	if err != nil {
		return nil, err
	}
	defer func() {
		if uerr := sharedfile.Unmap(mem); err == nil {
			err = uerr
		}
	}()
	result := &sharedbuf.Result{Operation: w.chain[0].Operation, BufferID: uint32(w.request.BufferID), Status: "processed"}
	for i, op := range w.ops {
		c := &Call{ctx: ctx, step: w.chain[i], mem: mem[:w.request.Size], file: w.file, progress: &w.progress}
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

// mapBuffer maps what the request names.
func (h *Host) mapBuffer(w *work) ([]byte, error) {
	if id, nameless := strings.CutPrefix(w.request.Path, sharedbuf.MemfdPrefix); nameless {
		if id != strconv.FormatUint(uint64(w.request.BufferID), 10) {
			return nil, &sharedbuf.Error{Code: sharedbuf.ErrInvalid, Message: fmt.Sprintf("file_path says buffer %s, buffer_id says %d", id, w.request.BufferID)}
		}
		// Sealed, nobody can cut it short.
		if err := memfd.CheckSealed(w.file, w.request.Size); err != nil {
			return nil, &sharedbuf.Error{Code: sharedbuf.ErrSize, Message: "the descriptor that came is not that of a buffer", Err: err}
		}
		return w.mapFile(w.file)
	}
	f, err := h.open(w)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return w.mapFile(f)
}

func (w *work) mapFile(f *os.File) ([]byte, error) {
	mem, err := sharedfile.Map(f, w.request.Size, w.write, true)
	if err != nil {
		return nil, &sharedbuf.Error{Code: sharedbuf.ErrFailed, Message: "the file cannot be mapped", Err: err}
	}
	return mem, nil
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
	if info.Size() != w.request.Size {
		return &sharedbuf.Error{Code: sharedbuf.ErrSize, Message: fmt.Sprintf("the file has %d bytes, buffer_size says %d", info.Size(), w.request.Size)}
	}
	if w.request.Generation == 0 { // a guest of the original system
		return nil
	}
	generation, err := sharedfile.Generation(h.dir, rel)
	if err != nil {
		return &sharedbuf.Error{Code: sharedbuf.ErrStale, Message: "the buffer's lease cannot be read", Err: err}
	}
	if generation != w.request.Generation {
		return &sharedbuf.Error{Code: sharedbuf.ErrStale, Message: fmt.Sprintf("the buffer has generation %d, the request is for %d: it was taken back, or is another one", generation, w.request.Generation)}
	}
	return nil
}

// close closes the descriptor that came with the request.
func (w *work) close() {
	if w.file != nil {
		w.file.Close()
	}
}
