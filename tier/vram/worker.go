// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package vram

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/memspan/memspan/internal/confine"
	"github.com/memspan/memspan/internal/fdpass"
	"github.com/memspan/memspan/internal/vk"
)

// errBuild says why this build has no workers; this one has.
var errBuild error

// Worker is the main function of a worker process, which a tier started: it
// serves the socket on descriptor 3 until the tier closes it or ctx ends. It
// confines the process first, for which it executes the program anew, and so
// must be called before anything else of note. An error means that the device
// is lost or the socket broke; the process should end then, since calls may
// still be stuck in the driver.
func Worker(ctx context.Context) error {
	state, err := confine.Confine("") // without a cache of shaders: what guests send must not meet there
	if err != nil {
		return err
	}
	conn, err := confine.Parent()
	if err != nil {
		return err
	}
	s := &server{conn: fdpass.New(conn), confined: state}
	defer s.conn.Close()
	stop := context.AfterFunc(ctx, func() { s.conn.Close() })
	defer stop()
	err = s.serve()
	s.mu.Lock()
	if s.fatal != nil {
		err = s.fatal
	}
	s.mu.Unlock()
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("vram worker: %w", err)
	}
	s.calls.Wait()
	if s.engine != nil {
		s.engine.close()
	}
	return nil
}

// A server answers one tier's requests.
type server struct {
	conn     *fdpass.Conn
	confined confine.State
	engine   *engine // set by opOpen, before the requests that need it
	calls    sync.WaitGroup

	mu    sync.Mutex // one reply at a time
	fatal error      // the device is lost
}

// serve reads requests until the connection ends. Requests that make something
// others refer to are carried out as they come, the rest concurrently.
func (s *server) serve() error {
	const concurrent = 64
	slots := make(chan struct{}, concurrent)
	// The buffer holds fewer requests than the connection queues descriptors.
	br := bufio.NewReaderSize(s.conn, 32*requestSize)
	head := make([]byte, requestSize)
	for {
		if _, err := io.ReadFull(br, head); errors.Is(err, io.EOF) {
			return nil // the tier closed it, or died
		} else if err != nil {
			return err
		}
		q := new(request)
		if err := q.parse(head); err != nil {
			return err
		}
		payload := make([]byte, q.payload)
		if _, err := io.ReadFull(br, payload); err != nil {
			return err
		}
		switch q.op {
		case opOpen, opProbe, opAddRegion:
			result, err := s.prepare(q, payload)
			s.reply(q.id, result, err)
		default:
			if s.engine == nil {
				return fmt.Errorf("request %v before a device was opened", q.op)
			}
			slots <- struct{}{}
			s.calls.Go(func() {
				err := s.carryOut(q, payload)
				s.reply(q.id, nil, err)
				<-slots
			})
		}
	}
}

func (s *server) prepare(q *request, payload []byte) (any, error) {
	switch q.op {
	case opProbe:
		devices, err := vk.Devices()
		return devices, err
	case opOpen:
		var ask openRequest
		if err := json.Unmarshal(payload, &ask); err != nil {
			return nil, err
		}
		if s.engine != nil {
			return nil, errors.New("a device is open already")
		}
		engine, err := openEngine(ask)
		if err != nil {
			return nil, err
		}
		s.engine = engine
		return openReply{
			Device: engine.info, Kinds: engine.choice.kinds, Place: engine.choice.place,
			Confined: s.confined.String(), Full: s.confined.Full(),
		}, nil
	}
	file, err := s.conn.Take()
	if err != nil {
		return nil, err
	}
	if s.engine == nil {
		file.Close()
		return nil, errors.New("no device is open")
	}
	return nil, s.engine.addRegion(q.other, file, q.n)
}

func (s *server) carryOut(q *request, payload []byte) error {
	e := s.engine
	switch q.op {
	case opRemoveRegion:
		e.removeRegion(q.other)
		return nil
	case opAddSlab:
		return e.addSlab(q.slab, int(q.arg), q.n)
	case opRemoveSlab:
		e.removeSlab(q.slab)
		return nil
	case opWrite:
		return e.write(q)
	case opRead:
		return e.read(q)
	case opCopy:
		return e.copy(q)
	case opFill:
		return e.fill(q)
	case opAddKernel:
		return e.addKernel(q.other, payload)
	case opRemoveKernel:
		e.removeKernel(q.other)
		return nil
	case opRun:
		return e.run(q, payload)
	}
	return fmt.Errorf("unknown request %v", q.op)
}

// reply answers a request, unless the device is lost: then the connection ends,
// and the worker with it, which tells the tier more than an answer would.
func (s *server) reply(id uint64, result any, err error) {
	r := reply{id: id}
	var payload []byte
	if err == nil && result != nil {
		payload, err = json.Marshal(result)
	}
	switch {
	case err == nil:
	case errors.Is(err, vk.ErrAbsent):
		r.status = statusAbsent
	case errors.Is(err, vk.ErrOutOfDeviceMemory), errors.Is(err, vk.ErrOutOfHostMemory), errors.Is(err, vk.ErrTooManyObjects):
		r.status = statusFull
	default:
		r.status = statusFailed
	}
	if err != nil {
		payload = []byte(err.Error())
	}
	r.payload = uint32(len(payload))

	s.mu.Lock()
	defer s.mu.Unlock()
	if errors.Is(err, vk.ErrDeviceLost) || errors.Is(err, vk.ErrTimeout) {
		if s.fatal == nil {
			s.fatal = err
			fmt.Fprintln(os.Stderr, "vram worker: device lost:", err)
		}
		s.conn.Close()
		return
	}
	if s.engine != nil { // counted under mu, so that no later reply has less
		r.submits, r.flushes = s.engine.queue.submits.Load(), s.engine.flushes.Load()
	}
	s.conn.Write(append(r.append(make([]byte, 0, replySize+len(payload))), payload...)) // a broken connection ends serve
}
