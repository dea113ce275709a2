// SPDX-License-Identifier: Apache-2.0

package memspan

import (
	"net"
	"syscall"

	"github.com/memspan/memspan/internal/sockopt"
)

// A sendQueue looks at what waits in a socket to be sent.
type sendQueue struct{ socket *sockopt.Socket }

func newSendQueue(nc net.Conn) sendQueue {
	if sc, ok := nc.(syscall.Conn); ok {
		if socket, err := sockopt.Of(sc); err == nil {
			return sendQueue{socket}
		}
	}
	return sendQueue{}
}

// len returns how many bytes wait, 0 if that cannot be known.
func (q sendQueue) len() int {
	if q.socket == nil {
		return 0
	}
	n, err := q.socket.SendQueue()
	if err != nil {
		return 0
	}
	return n
}
