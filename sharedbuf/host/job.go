// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"fmt"
	"sync"

	"github.com/memspan/memspan/sharedbuf"
)

// jobs are a connection's background jobs. They end with it.
type jobs struct {
	work sync.WaitGroup

	mu   sync.Mutex
	last int64
	all  map[int64]*job
}

type job struct {
	id     int64
	w      *work
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when the two below are set
	result *sharedbuf.Result
	err    error

	waited bool // somebody waits for it; under jobs.mu
}

// start begins a job, which owns w.
func (j *jobs) start(c *conn, w *work) (id int64, err error) {
	ctx, cancel := context.WithCancelCause(c.ctx)
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.all) >= c.h.config.MaxInFlight {
		cancel(nil)
		return 0, &sharedbuf.Error{Code: sharedbuf.ErrLimit, Message: fmt.Sprintf("the connection has %d jobs whose results it has not asked for", len(j.all))}
	}
	if j.all == nil {
		j.all = make(map[int64]*job)
	}
	j.last++
	one := &job{id: j.last, w: w, cancel: cancel, done: make(chan struct{})}
	j.all[one.id] = one
	j.work.Go(func() {
		defer cancel(nil)
		result, err := c.h.do(ctx, w)
		if err != nil {
			err = place(err, w.chain[0].Operation, w.request.Path)
		}
		one.result, one.err = result, err
		close(one.done)
	})
	return one.id, nil
}

// end waits for all jobs, which must have been given up, and forgets them.
func (j *jobs) end() {
	j.work.Wait()
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, one := range j.all {
		one.w.close()
	}
	clear(j.all)
}

func (j *job) status() sharedbuf.JobStatus {
	s := sharedbuf.JobStatus{Job: j.id, Bytes: j.w.progress.Load(), Total: j.w.request.Size * int64(len(j.w.ops))}
	select {
	case <-j.done:
		s.Done = true
	default:
	}
	return s
}

// job answers a request about a job.
func (c *conn) job(r *sharedbuf.Request) {
	what, err := r.OperationName()
	if err != nil {
		c.reply(r.ID, nil, err)
		return
	}
	refuse := func(code sharedbuf.Code, message string) {
		c.reply(r.ID, nil, &sharedbuf.Error{Code: code, Op: what, Path: fmt.Sprintf("job %d", r.Job), Message: message})
	}
	c.jobs.mu.Lock()
	j := c.jobs.all[r.Job]
	busy := j != nil && j.waited
	if j != nil && what == "wait" {
		j.waited = true
	}
	c.jobs.mu.Unlock()
	switch {
	case j == nil:
		refuse(sharedbuf.ErrNotFound, "this connection has no such job; its result may have been told already")
	case what == "status":
		c.reply(r.ID, j.status(), nil)
	case what == "cancel":
		j.cancel(&sharedbuf.Error{Code: sharedbuf.ErrCanceled, Message: "the job was canceled"})
		c.reply(r.ID, j.status(), nil)
	case what != "wait":
		refuse(sharedbuf.ErrOperation, "want status, wait or cancel")
	case busy:
		refuse(sharedbuf.ErrInvalid, "somebody waits for it already")
	default:
		c.wait(r, j)
	}
}

// wait answers with a job's result and forgets the job, unless the wait is given
// up.
func (c *conn) wait(r *sharedbuf.Request, j *job) {
	j.w.retain()
	c.do(r, false, j.w, func(ctx context.Context) (any, error) {
		select {
		case <-j.done:
			c.jobs.mu.Lock()
			delete(c.jobs.all, j.id)
			c.jobs.mu.Unlock()
			j.w.close()
			if j.err != nil {
				return nil, j.err
			}
			return j.result, nil
		case <-ctx.Done():
			c.jobs.mu.Lock()
			j.waited = false
			c.jobs.mu.Unlock()
			return nil, place(context.Cause(ctx), "wait", fmt.Sprintf("job %d", j.id))
		}
	})
}
