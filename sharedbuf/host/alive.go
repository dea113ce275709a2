// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"net"
	"sync"
	"time"

	"github.com/memspan/memspan/internal/loopback"
)

// sight says what can be seen of a guest without reading what he sends.
type sight int

const (
	unseen sight = iota // nothing: he may be on another machine
	living
	gone // nobody has the other end of the connection
)

func (c *conn) see() sight {
	if c.files != nil {
		if !c.writeMu.TryLock() { // he is being written to, and that says it
			return unseen
		}
		defer c.writeMu.Unlock()
		// Who is gone is told of even where nothing is written. The last reply's
		// deadline may be over.
		c.nc.SetWriteDeadline(time.Time{})
		if _, err := c.nc.Write(nil); err != nil {
			return gone
		}
		return living
	}
	remote, ok := c.nc.RemoteAddr().(*net.TCPAddr)
	if !ok || !remote.IP.IsLoopback() {
		return unseen
	}
	switch _, err := loopback.PeerUser(c.nc); {
	case err == nil:
		return living
	case errors.Is(err, loopback.ErrUnknown):
		return gone
	}
	return unseen
}

// lookPause is how often a guest is looked for of whom nothing is read.
const lookPause = time.Second

// unread ends the connection if the guest goes, until the function that it returns is
// called: meanwhile nobody reads, and would notice.
func (c *conn) unread() (done func()) {
	stop := make(chan struct{})
	var looking sync.WaitGroup
	looking.Go(func() {
		tick := time.NewTicker(lookPause)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			if c.see() == gone {
				c.cancel()
				return
			}
		}
	})
	return func() {
		close(stop)
		looking.Wait()
	}
}

// settle waits until all requests have been answered.
func (c *conn) settle() {
	c.mu.Lock()
	idle := len(c.underWay) == 0
	c.mu.Unlock()
	if !idle {
		defer c.unread()()
	}
	c.work.Wait()
}

// finish answers what a guest has asked for who has ended his side of the
// connection, and can be seen to live all the same. Of others it has to be believed
// that they are dead. He has a while only: he may die yet.
func (c *conn) finish() {
	if c.see() != living {
		return
	}
	late := time.AfterFunc(c.h.config.IOTimeout, c.cancel)
	defer late.Stop()
	c.work.Wait()
}
