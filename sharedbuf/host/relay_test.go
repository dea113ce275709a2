// SPDX-License-Identifier: Apache-2.0

package host_test

import (
	"hash/crc32"
	"io"
	"net"
	"sync"
	"testing"
)

func castagnoli(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// A relay forwards connections over a unix socket, until they are cut.
type relay struct {
	ln   net.Listener
	work sync.WaitGroup

	mu   sync.Mutex
	open []net.Conn
}

func newRelay(t *testing.T, to net.Addr) *relay {
	t.Helper()
	r := &relay{ln: unixSocket(t)}
	r.work.Go(func() {
		for {
			a, err := r.ln.Accept()
			if err != nil {
				return
			}
			b, err := net.Dial(to.Network(), to.String())
			if err != nil {
				a.Close()
				return
			}
			r.mu.Lock()
			r.open = append(r.open, a, b)
			r.mu.Unlock()
			for _, pair := range [][2]net.Conn{{a, b}, {b, a}} {
				r.work.Go(func() {
					io.Copy(pair[0], pair[1])
					pair[0].Close()
					pair[1].Close()
				})
			}
		}
	})
	return r
}

func (r *relay) address() string { return r.ln.Addr().String() }

// cut ends all connections.
func (r *relay) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, nc := range r.open {
		nc.Close()
	}
	r.open = nil
}

func (r *relay) close() {
	r.ln.Close()
	r.cut()
	r.work.Wait()
}
