// SPDX-License-Identifier: Apache-2.0

package sharedbuf

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
)

// A Job is work of the host that goes on in the background. The host has the
// buffer until Wait has returned. A job ends with the connection that it was
// begun on. Its methods may be called concurrently.
type Job struct {
	buffer *Buffer
	link   *link
	id     int64
	epoch  uint64 // of the host's copy, if the buffer's bytes are sent
	op     string

	turn chan struct{} // holds a token while nobody waits at the host

	once   sync.Once
	mu     sync.Mutex
	stop   func() bool // ends the wait for the buffer's end
	done   bool
	result *Result
	err    error
}

// Start has the host carry out a chain of operations in the background, and
// returns as soon as it has begun. The caller must call Wait, or free the buffer:
// until then the host keeps the result, and lets a connection have so many only.
func (b *Buffer) Start(ctx context.Context, chain ...Step) (*Job, error) {
	result, l, err := b.ask(ctx, "start", chain, true)
	if err != nil {
		return nil, err
	}
	j := &Job{buffer: b, link: l, id: result.Job, epoch: result.epoch, op: chain[0].Operation, turn: make(chan struct{}, 1)}
	j.turn <- struct{}{}
	j.mu.Lock()
	defer j.mu.Unlock()
	// A buffer that is freed takes itself back.
	j.stop = context.AfterFunc(b.ctx, func() {
		l.giveUpJob(j.id)
		j.end(nil, &Error{Code: ErrFreed, Message: "the buffer was freed meanwhile"})
	})
	return j, nil
}

// ID returns the host's number for the job, on this connection.
func (j *Job) ID() int64 { return j.id }

// Status returns how far the job is. It does not wait for the job.
func (j *Job) Status(ctx context.Context) (JobStatus, error) {
	var status JobStatus
	raw, err := j.ask(ctx, "status")
	if err == nil {
		err = json.Unmarshal(raw, &status)
	}
	if err != nil {
		return JobStatus{}, placed(err, "status of "+j.op, j.buffer.path)
	}
	return status, nil
}

// Cancel asks the host to stop the job; Wait then fails with ErrCanceled, unless
// the job has ended already.
func (j *Job) Cancel(ctx context.Context) error {
	if _, err := j.ask(ctx, "cancel"); err != nil {
		return placed(err, "cancel of "+j.op, j.buffer.path)
	}
	return nil
}

// Wait waits until the job has ended, takes the buffer back and returns the
// result, the same one if it is called again. If ctx ends first the job goes on.
func (j *Job) Wait(ctx context.Context) (*Result, error) {
	if result, err, done := j.outcome(); done {
		return result, err
	}
	ctx, stop := j.buffer.joined(ctx)
	defer stop()
	select {
	case <-j.turn: // the host tells the result once
		defer func() { j.turn <- struct{}{} }()
	case <-ctx.Done():
		return nil, placed(&Error{Code: ErrCanceled, Err: context.Cause(ctx)}, j.op, j.buffer.path)
	}
	if result, err, done := j.outcome(); done { // another one had the answer
		return result, err
	}
	raw, err := j.await(ctx)
	if errors.Is(err, ErrCanceled) && ctx.Err() != nil {
		return nil, placed(err, j.op, j.buffer.path)
	}
	result := new(Result)
	if err == nil {
		err = json.Unmarshal(raw, result)
	}
	j.end(result, err)
	result, err, _ = j.outcome()
	return result, err
}

func (j *Job) outcome() (*Result, error, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.result, j.err, j.done
}

// end notes the outcome, the first that is known, and takes the buffer back.
func (j *Job) end(result *Result, err error) {
	j.once.Do(func() {
		err = errors.Join(err, j.buffer.takeBack())
		if err != nil {
			result, err = nil, placed(err, j.op, j.buffer.path)
		}
		j.mu.Lock()
		defer j.mu.Unlock()
		j.stop()
		j.result, j.err, j.done = result, err, true
	})
}

func (j *Job) ask(ctx context.Context, what string) (json.RawMessage, error) {
	return j.link.call(ctx, *j.request(what), nil)
}

func (j *Job) request(what string) *Request {
	return &Request{API: APIJob, Operation: json.RawMessage(`"` + what + `"`), Job: j.id}
}

// await asks for the result, with which comes what the job changed of a buffer
// whose bytes are sent.
func (j *Job) await(ctx context.Context) (json.RawMessage, error) {
	if r := j.buffer.remote; r != nil {
		return r.call(ctx, j.link, j.request("wait"), j.epoch, false)
	}
	return j.buffer.callShared(ctx, j.link, j.request("wait"), new(attachment))
}

func (l *link) giveUpJob(id int64) {
	ctx, cancel := context.WithTimeout(context.Background(), giveUpTime)
	defer cancel()
	// If it cannot be told the link has failed, which ends its jobs.
	_, _ = l.call(ctx, Request{API: APIJob, Operation: json.RawMessage(`"cancel"`), Job: id}, nil)
}
