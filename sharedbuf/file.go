// SPDX-License-Identifier: Apache-2.0

package sharedbuf

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
)

// ProcessFile has the host carry out a chain of operations on the whole of a file
// that is there already, in a directory that both sides see, as Buffer.Process
// does on a buffer. Path is what the guest calls it. The file is not the client's:
// it has no lease and no generation, and nothing keeps others from writing it
// meanwhile. The error is an *Error.
func (c *Client) ProcessFile(ctx context.Context, path string, chain ...Step) (*Result, error) {
	fail := func(err error) (*Result, error) { return nil, placed(err, "process", path) }
	path, err := filepath.Abs(path)
	if err != nil {
		return fail(&Error{Code: fileCode(err), Err: err})
	}
	info, err := os.Stat(path)
	if err != nil {
		return fail(&Error{Code: fileCode(err), Err: err})
	}
	if info.Size() == 0 {
		return fail(invalidf("the file is empty; a buffer has at least one byte"))
	}
	b := &Buffer{id: c.ids.Add(1), path: path, size: info.Size()}
	request, err := b.request(chain)
	if err != nil {
		return fail(err)
	}
	l, err := c.connected(ctx)
	if err != nil {
		return fail(err)
	}
	raw, err := l.call(ctx, *request, nil)
	if err != nil {
		return nil, placed(err, chain[0].Operation, path)
	}
	result := new(Result)
	if err := json.Unmarshal(raw, result); err != nil || result.BufferID != b.id {
		return nil, placed(&Error{Code: ErrPeerLost, Message: "the host broke the protocol: its answer is about something else", Err: err}, chain[0].Operation, path)
	}
	return result, nil
}
