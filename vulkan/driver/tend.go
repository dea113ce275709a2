// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"errors"
	"time"

	"github.com/memspan/memspan/vulkan/registry"
	"github.com/memspan/memspan/vulkan/stream"
)

const (
	// flushAfter is about how long a message waits that no other takes along.
	flushAfter = 2 * time.Millisecond
	// watchEvery is how often a link is looked at while someone waits for it.
	watchEvery = 250 * time.Millisecond
	// pingAfter is how long a worker may be silent before it is asked whether
	// it lives, and deadAfter when it is taken for dead: so much less than 5 s
	// that a busy machine notices within them.
	pingAfter = time.Second
	deadAfter = 3500 * time.Millisecond
	// loadAfter is what takes its place while the worker starts and loads the
	// real driver, which may be slow to come up.
	loadAfter = 25 * time.Second
)

// loads reports whether a command may have the worker load a driver.
func loads(cmd registry.Index) bool {
	switch cmd {
	case registry.VkEnumerateInstanceVersion, registry.VkEnumerateInstanceExtensionProperties, registry.VkCreateInstance,
		registry.VkEnumeratePhysicalDevices, registry.VkCreateDevice:
		return true
	}
	return false
}

var errSilent = errors.New("the worker has been silent for too long, and was asked")

// background reads while no application thread waits.
func (l *link) background() {
	for !l.direct && l.lost() == nil {
		l.readMu.Lock()
		l.receive()
		l.readMu.Unlock()
	}
	for {
		select {
		case <-l.rouse:
		case <-l.gone:
			return
		}
		for l.lost() == nil && l.waiting.Load() == 0 {
			round := l.rounds.Load()
			if _, err := l.sc.Await(forever); err != nil {
				l.failed(err)
			} else if l.waiting.Load() == 0 && l.takeLead() { // else leave it to them
				// Who begins to wait meanwhile must not wait for the socket: what
				// comes by it is read here.
				l.receiveSince(round)
				l.giveLead()
			}
		}
		l.reading.Store(false)
		// Who stopped waiting since was told that the background reads.
		if l.waiting.Load() == 0 && l.lost() == nil {
			l.readSoon()
		}
	}
}

// readSoon has the background read, unless somebody does.
func (l *link) readSoon() {
	if l.direct && l.waiting.Load() == 0 && l.reading.CompareAndSwap(false, true) {
		select {
		case l.rouse <- struct{}{}:
		default:
		}
	}
}

// stalled is called again and again while a write waits for the worker: perhaps
// that waits for us to read, or is dead, and who writes notices neither.
func (l *link) stalled() {
	l.expect()
	l.readSoon()
}

// look is called by threads that found something not to have come yet, and do
// not wait for it. It sees to it that it can come.
func (l *link) look() {
	if l.sc.Waiting() > 0 {
		_ = l.flush() // if it failed, the link is lost, and says so
	}
	l.expect()
	if !l.reading.Load() {
		l.readSoon()
	}
}

// expect has the watch see to it that the worker is heard of from now on.
func (l *link) expect() {
	if !l.asked.Load() {
		l.asked.Store(true)
		l.watchSoon()
	}
}

// tendSoon has the tender look after flushAfter.
func (l *link) tendSoon() {
	if !l.tending.Load() && l.tending.CompareAndSwap(false, true) {
		select {
		case l.nudge <- struct{}{}:
		default:
		}
	}
}

// tend sends what has waited long enough, answers pings, and lets the
// background read when the application has stopped waiting. It may have to wait
// for the socket, so it watches nothing.
func (l *link) tend() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-l.nudge:
		case <-l.gone:
			return
		}
		for busy := true; busy && l.lost() == nil; {
			l.pong()
			timer.Reset(flushAfter)
			select {
			case <-timer.C:
			case <-l.gone:
				return
			}
			busy = l.sc.Waiting() > 0
			if busy {
				_ = l.flush() // if it failed, the link is lost
			}
			l.readSoon()
			l.pong()
			if !busy {
				l.tending.Store(false)
				// What came between looking and that nudges nobody.
				l.readSoon()
				busy = (l.sc.Waiting() > 0 || l.pinged.Load() || l.pingDue.Load()) && l.tending.CompareAndSwap(false, true)
			}
		}
	}
}

// pong sends the answer to a ping, and a ping that is due.
func (l *link) pong() {
	if l.pinged.Swap(false) {
		l.ping(stream.FlagReply)
	}
	if l.pingDue.Swap(false) {
		l.ping(0)
	}
}

func (l *link) ping(flags stream.Flags) {
	if flags == 0 { // before it can be answered
		l.pingAt.CompareAndSwap(0, int64(l.sc.Wire().Stats().Sent.Bytes)+int64(l.sc.Waiting())+1)
	}
	if err := l.sc.End(l.sc.Begin(stream.OpPing, flags, 0)); err != nil {
		l.unsent(err)
		return
	}
	if err := l.sc.Flush(); err != nil { // not l.flush: no ping for the sake of a ping
		l.unsent(err)
	}
}

// watchSoon has the watch look at the link from now on.
func (l *link) watchSoon() {
	if !l.watching.Load() && l.watching.CompareAndSwap(false, true) {
		select {
		case l.guard <- struct{}{}:
		default:
		}
	}
}

// watch finds out that a worker is dead although its connection stands: when
// somebody waits for it or has sent it something, and no byte moves in either
// direction.
func (l *link) watch() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-l.guard:
		case <-l.gone:
			return
		}
		last := time.Now()
		now := last   // by a clock that stands still while we wait for a processor, as the worker may
		alive := now  // when something moved last
		heard := now  // when something came last
		owed := false // nothing came since something was sent
		seen, _ := l.motion(motion{})
		l.pingAt.Store(0)
		for {
			timer.Reset(watchEvery)
			select {
			case <-timer.C:
			case <-l.gone:
				return
			}
			passed := time.Since(last)
			last = last.Add(passed)
			now = now.Add(min(passed, watchEvery))
			// If we were stopped ourselves, the silence says nothing.
			stopped := passed > 4*watchEvery
			m, moved := l.motion(seen)
			if moved || stopped {
				alive = now
			}
			if m.heard != seen.heard || stopped {
				heard = now
				l.pingAt.Store(0)
			}
			seen = m
			owed = l.asked.Swap(false) || owed && heard != now
			wanted := owed || l.waiting.Load() > 0
			switch silent, stuck := now.Sub(heard), now.Sub(alive); {
			case !wanted:
				alive, heard = now, now
			case stuck > loadAfter, stuck > deadAfter-pingAfter && silent > deadAfter && l.loading.Load() == 0:
				l.fail(errSilent)
				return
			case silent > pingAfter:
				l.pingDue.Store(true)
				l.tendSoon()
			}
			if !wanted {
				l.watching.Store(false)
				if (l.waiting.Load() == 0 && !l.asked.Load()) || !l.watching.CompareAndSwap(false, true) {
					break
				}
			}
		}
	}
}

// motion is what changes when a worker lives.
type motion struct {
	heard uint64 // bytes that came, also of messages that are not whole yet
	taken int64  // bytes of what we sent that its side had taken while more waited; 0 if none waited
}

// motion looks at the link, and reports whether something has moved since it
// was looked at before. What is taken counts only while more waits, and until a
// ping is: a worker's system takes what it has room for even if the worker is
// dead.
func (l *link) motion(before motion) (m motion, moved bool) {
	m.heard = l.sc.Wire().Stats().Received.Bytes
	if waiting := l.sc.Wire().SendQueue(); waiting > 0 {
		m.taken = int64(l.sc.Wire().Stats().Sent.Bytes) - int64(waiting)
	}
	ping := l.pingAt.Load()
	return m, m.heard != before.heard || before.taken > 0 && m.taken > before.taken && (ping == 0 || m.taken < ping)
}
