// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"github.com/memspan/memspan/internal/fdpass"
	"github.com/memspan/memspan/internal/sockopt"
	"github.com/memspan/memspan/wire"
)

// A Parent is a worker's end: what it was told, and the way to tell the daemon.
// Its methods may be called concurrently.
type Parent struct {
	Start  Start
	Client *wire.Conn   // to the application; the caller closes it
	Files  *fdpass.Conn // under Client, if Start.Local; else nil

	conn *fdpass.Conn
	done chan struct{} // closed when the daemon wants the worker to end, or is gone

	mu sync.Mutex // one report at a time
}

// Accept waits on conn for the daemon's message, and owns conn from now on.
func Accept(conn *net.UnixConn) (*Parent, error) {
	p := &Parent{conn: fdpass.New(conn), done: make(chan struct{})}
	if err := p.accept(); err != nil {
		p.conn.Close()
		return nil, fmt.Errorf("handover: %w", err)
	}
	go func() { // ends with the daemon's half of the socket, or with Close
		defer close(p.done)
		io.Copy(io.Discard, p.conn)
	}()
	return p, nil
}

func (p *Parent) accept() error {
	var head [4]byte
	if _, err := io.ReadFull(p.conn, head[:]); err != nil {
		return err
	}
	n := binary.LittleEndian.Uint32(head[:])
	if n > longest {
		return fmt.Errorf("a message of %d bytes", n)
	}
	text := make([]byte, n)
	if _, err := io.ReadFull(p.conn, text); err != nil {
		return err
	}
	if err := json.Unmarshal(text, &p.Start); err != nil {
		return err
	}
	f, err := p.conn.Take()
	if err != nil {
		return err
	}
	return p.open(f)
}

// open makes the application's connection of its descriptor.
func (p *Parent) open(f *os.File) error {
	nc, err := net.FileConn(f)
	f.Close() // FileConn has a duplicate
	if err != nil {
		return err
	}
	if _, ok := nc.(*net.UnixConn); p.Start.Local && !ok {
		nc.Close()
		return errors.New("the connection of a local application is no unix socket")
	}
	plain, err := sockopt.PlainOf(nc)
	if err != nil {
		nc.Close()
		return err
	}
	if nc = plain; p.Start.Local {
		p.Files = fdpass.New(plain.(fdpass.Socket))
		nc = p.Files
	}
	p.Client = wire.NewConn(nc, wire.Config{Sums: p.Start.Sums, Compress: p.Start.Compress, IOTimeout: p.Start.IOTimeout})
	return nil
}

// Report tells the daemon how the worker is doing. It does not wait for the
// daemon to take notice, but for room in the socket.
func (p *Parent) Report(s Status) error {
	line, err := json.Marshal(s)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	_, err = p.conn.Write(append(line, '\n'))
	return err
}

// Done is closed when the worker shall end.
func (p *Parent) Done() <-chan struct{} { return p.done }

// Close ends the socket, by which the daemon knows that the worker is about to
// end.
func (p *Parent) Close() error {
	err := p.conn.Close()
	<-p.done
	return err
}
