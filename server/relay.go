// SPDX-License-Identifier: Apache-2.0

package server

import (
	"io"
	"net"
	"sync"
)

// relayBuffer is how much of each direction the server holds at a time: what a
// worker writes at once.
const relayBuffer = 256 << 10

// relay carries bytes between a client's encrypted connection and its worker's
// socket until both directions have ended: the keys stay in this process. A
// direction that ends ends the other side's reading; one that fails ends both.
// It calls left when the client has said its last.
func relay(client net.Conn, worker *net.UnixConn, left func()) {
	var up sync.WaitGroup
	up.Go(func() {
		if carry(worker, client) != nil {
			client.Close()
		}
		worker.CloseWrite()
		left()
	})
	carry(client, worker)
	// The worker has said its last word. A client that does not hang up is hung
	// up on.
	client.Close()
	up.Wait()
}

// carry copies until the source ends. It hides what else the connections can
// do: the ways of net.Conn past a buffer are not those of TLS.
func carry(to io.Writer, from io.Reader) error {
	_, err := io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, make([]byte, relayBuffer))
	return err
}
