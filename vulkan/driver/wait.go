// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/memspan/memspan/internal/callstack"
	"github.com/memspan/memspan/vulkan/registry"
	"github.com/memspan/memspan/vulkan/stream"
)

// forever is a timeout that never comes.
const forever = time.Duration(-1)

// timeoutOf returns Vulkan's timeout in nanoseconds as a duration.
func timeoutOf(ns uint64) time.Duration {
	if ns > math.MaxInt64/2 {
		return forever
	}
	return time.Duration(ns)
}

// A waiter is a parked thread.
type waiter struct {
	serial uint64 // of the request whose reply it waits for; 0: for signals
	wake   chan struct{}
}

func (w *waiter) rouse() {
	select {
	case w.wake <- struct{}{}:
	default: // it is awake already
	}
}

// wait waits until ready holds, the timeout is over or the link is lost, and
// reports whether ready holds. What ready looks at must change only by messages
// of the link, the reply to a serial, or, if that is 0, signals; or before a
// call of rouseAll.
func (l *link) wait(ready func() bool, timeout time.Duration, serial uint64) bool {
	if ready() {
		return true
	}
	l.waiting.Add(1)
	defer l.leave()
	l.watchSoon()
	var end time.Time
	if timeout >= 0 {
		end = time.Now().Add(timeout)
	}
	for !ready() && l.lost() == nil {
		left := forever
		if timeout >= 0 {
			if left = time.Until(end); left <= 0 {
				break
			}
		}
		if l.direct && l.takeLead() {
			l.lead(ready, left)
			l.giveLead()
		} else {
			l.park(ready, left, serial)
		}
	}
	return ready()
}

// leave is called when a thread waits no more.
func (l *link) leave() {
	if l.waiting.Add(-1) == 0 && l.direct {
		l.tendSoon() // if nobody comes back, the background must read
	}
}

// takeLead makes the caller the one who waits for the socket, unless there is
// one.
func (l *link) takeLead() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.leader {
		return false
	}
	l.leader = true
	return true
}

// giveLead ends it, and has one of those who are parked take it.
func (l *link) giveLead() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.leader = false
	if len(l.parked) > 0 {
		l.parked[0].rouse()
	}
}

// lead waits for the socket and applies what comes, until ready holds, the
// time is over or the link is lost.
func (l *link) lead(ready func() bool, left time.Duration) {
	var end time.Time
	if left >= 0 {
		end = time.Now().Add(left)
	}
	for !ready() && l.lost() == nil {
		round := l.rounds.Load()
		readable, err := l.sc.Await(left)
		if err != nil {
			l.failed(err)
			return
		}
		if !readable {
			return
		}
		l.receiveSince(round)
		if left >= 0 {
			if left = time.Until(end); left <= 0 {
				return
			}
		}
	}
}

// park waits until the caller is woken: because something came, or because
// there is no leader.
func (l *link) park(ready func() bool, left time.Duration, serial uint64) {
	w := &waiter{serial: serial, wake: make(chan struct{}, 1)}
	l.mu.Lock()
	if l.direct && !l.leader {
		l.mu.Unlock()
		return
	}
	l.parked = append(l.parked, w)
	l.mu.Unlock()
	if !ready() { // it may have come before we were in the list
		var timeout <-chan time.Time
		if left >= 0 {
			timer := time.NewTimer(left)
			defer timer.Stop()
			timeout = timer.C
		}
		select {
		case <-w.wake:
		case <-l.gone:
		case <-timeout:
		}
		callstack.Reserve()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.parked = slices.DeleteFunc(l.parked, func(x *waiter) bool { return x == w })
	// It may have been woken to lead, and have no need to any more.
	if l.direct && !l.leader && len(l.parked) > 0 {
		l.parked[0].rouse()
	}
}

// receiveSince applies what has come, unless someone has since the given
// round: then there may be nothing left, and reading would wait for it.
func (l *link) receiveSince(round uint64) {
	l.readMu.Lock()
	defer l.readMu.Unlock()
	if l.rounds.Load() == round {
		l.receive()
	}
}

// receive reads at least one message and all that have been received with it:
// waiting for the socket does not see those. The caller holds readMu.
func (l *link) receive() {
	defer l.rounds.Add(1)
	for {
		m, err := l.sc.Read()
		if err != nil {
			l.failed(err)
			return
		}
		if err := l.handle(m); err != nil {
			l.fail(err)
			return
		}
		if !l.sc.Buffered() {
			return
		}
	}
}

// handle applies a message.
func (l *link) handle(m stream.Message) error {
	if m.Has(stream.FlagReply) {
		return l.reply(m)
	}
	switch m.Op {
	case stream.OpMemoryChanged:
		return l.d.applyChanged(m.Body)
	case stream.OpSignal:
		return l.signal(m.Body)
	case stream.OpAddress:
		a, err := stream.ParseAddress(m.Body)
		if err != nil {
			return err
		}
		if o := l.d.objects.get(a.Buffer); o != nil && o.kind == registry.VkBuffer {
			o.state.(*bufferState).address.Store(a.Address)
		}
		return nil
	case stream.OpLost:
		lost, err := stream.ParseLost(m.Body)
		if err != nil {
			return err
		}
		return fmt.Errorf("%s failed with VkResult %d: %s", commandName(lost.Command), lost.Result, lost.Text)
	case stream.OpPing:
		l.pinged.Store(true)
		l.tendSoon()
		return nil
	}
	return fmt.Errorf("%w: operation %#x from a worker", stream.ErrMalformed, uint16(m.Op))
}

func commandName(cmd uint16) string {
	if int(cmd) < len(registry.Commands) {
		return registry.Commands[cmd].Name
	}
	return "the worker"
}

// reply hands a reply to who waits for it.
func (l *link) reply(m stream.Message) error {
	if m.Op == stream.OpPing {
		return nil // its bytes were counted
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.pending[m.Serial]
	if p == nil || p.done.Load() {
		return fmt.Errorf("%w: a reply to request %d, which nobody waits for", stream.ErrMalformed, m.Serial)
	}
	p.flags, p.body = m.Flags, bytes.Clone(m.Body)
	p.done.Store(true)
	if p.loads {
		l.loading.Add(-1)
	}
	for _, w := range l.parked {
		if w.serial == m.Serial {
			w.rouse()
		}
	}
	return nil
}

// rouseAll wakes those who wait for signals after one of this side's own. Who
// waits for the socket is woken by the answer to a ping.
func (l *link) rouseAll() {
	l.rouseWaiters()
	if l.direct && l.waiting.Load() > 0 {
		l.ping(0)
	}
}

// rouseWaiters wakes those who wait for signals.
func (l *link) rouseWaiters() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, w := range l.parked {
		if w.serial == 0 {
			w.rouse()
		}
	}
}
