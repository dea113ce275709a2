// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/memspan/memspan/internal/sockopt"
	"github.com/memspan/memspan/server"
)

// The baseline: bare sockets that copy region to region with the options that
// memspan uses (facts: mechanisms, section 2): writes of 1 MiB straight from
// memory, reads straight into it, low-water mark, cubic, pages present.
const (
	chunk    = 1 << 20
	lowWater = 512 << 10
)

// Requests of the raw protocol: one byte, then the size.
const (
	rawStore = 's' // size bytes follow; answered by one byte
	rawFetch = 'f' // answered by size bytes
	rawEcho  = 'e' // size bytes follow, which come back
)

func serveRaw() {
	dir, err := os.MkdirTemp("", "memspan-raw-")
	if err != nil {
		fatal(err)
	}
	defer os.RemoveAll(dir)
	cert, fingerprint, err := server.SelfSigned(dir)
	if err != nil {
		fatal(err)
	}
	a := addresses{Socket: filepath.Join(dir, "s"), Fingerprint: fingerprint}
	unix, tcp, secure := listen("unix", a.Socket), listen("tcp", "127.0.0.1:0"), listen("tcp", "127.0.0.1:0")
	a.TCP, a.TLS = tcp.Addr().String(), secure.Addr().String()
	go acceptRaw(unix, nil)
	go acceptRaw(tcp, nil)
	go acceptRaw(secure, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13})
	ready(a)
}

func acceptRaw(ln net.Listener, secure *tls.Config) {
	for {
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		tune(nc)
		go func() {
			defer nc.Close()
			var c net.Conn = nc
			s := socketOf(nc)
			if secure != nil {
				c, s = tls.Server(nc, secure), nil
			}
			if err := answerRaw(c, s); err != nil && !errors.Is(err, io.EOF) {
				fatal(err)
			}
		}()
	}
}

func tune(nc net.Conn) {
	if s := socketOf(nc); s != nil {
		s.SetCongestion("cubic")
	}
}

// socketOf returns the options of a TCP connection, nil for others.
func socketOf(nc net.Conn) *sockopt.Socket {
	tcp, ok := nc.(*net.TCPConn)
	if !ok {
		return nil
	}
	s, err := sockopt.Of(tcp)
	if err != nil {
		fatal(err)
	}
	return s
}

func answerRaw(c net.Conn, s *sockopt.Socket) error {
	var memory []byte
	header := make([]byte, 9)
	var echo [4096]byte
	for {
		if _, err := io.ReadFull(c, header); err != nil {
			return err
		}
		size := int64(binary.LittleEndian.Uint64(header[1:]))
		if header[0] == rawEcho {
			if _, err := io.ReadFull(c, echo[:size]); err != nil {
				return err
			}
			if _, err := c.Write(echo[:size]); err != nil {
				return err
			}
			continue
		}
		if int64(len(memory)) < size {
			memory = region(size)
		}
		if header[0] == rawFetch {
			if err := sendRaw(c, memory[:size]); err != nil {
				return err
			}
			continue
		}
		if err := receiveRaw(c, s, memory[:size]); err != nil {
			return err
		}
		if _, err := c.Write(header[:1]); err != nil {
			return err
		}
	}
}

func sendRaw(c net.Conn, p []byte) error {
	for len(p) > 0 {
		n, err := c.Write(p[:min(len(p), chunk)])
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

func receiveRaw(c net.Conn, s *sockopt.Socket, p []byte) error {
	mark := 1
	setMark := func(n int) error {
		if s == nil || n == mark {
			return nil
		}
		mark = n
		return s.SetReceiveLowWater(n)
	}
	for len(p) > 0 {
		if err := setMark(min(len(p), lowWater)); err != nil {
			return err
		}
		n, err := c.Read(p[:min(len(p), chunk)])
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return setMark(1)
}

// A rawConn is the client's side.
type rawConn struct {
	c      net.Conn
	socket *sockopt.Socket // nil under TLS
}

func dialRaw(b *testing.B, a addresses, transport string) *rawConn {
	b.Helper()
	network, address := "tcp", a.TCP
	switch transport {
	case "unix":
		network, address = "unix", a.Socket
	case "tls":
		address = a.TLS
	}
	nc, err := net.Dial(network, address)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { nc.Close() })
	tune(nc)
	r := &rawConn{c: nc, socket: socketOf(nc)}
	if transport == "tls" {
		r.c, r.socket = tls.Client(nc, insecure()), nil
	}
	return r
}

func (r *rawConn) request(op byte, size int) {
	header := binary.LittleEndian.AppendUint64([]byte{op}, uint64(size))
	if _, err := r.c.Write(header); err != nil {
		fatal(err)
	}
}

func (r *rawConn) store(p []byte) {
	r.request(rawStore, len(p))
	err := sendRaw(r.c, p)
	if err == nil {
		_, err = io.ReadFull(r.c, make([]byte, 1))
	}
	if err != nil {
		fatal(err)
	}
}

func (r *rawConn) fetch(p []byte) {
	r.request(rawFetch, len(p))
	if err := receiveRaw(r.c, r.socket, p); err != nil {
		fatal(err)
	}
}

// echo sends p behind its header in one write and reads it back.
func (r *rawConn) echo(buf []byte) {
	buf[0] = rawEcho
	binary.LittleEndian.PutUint64(buf[1:], uint64(len(buf)-9))
	if _, err := r.c.Write(buf); err != nil {
		fatal(err)
	}
	if _, err := io.ReadFull(r.c, buf[9:]); err != nil {
		fatal(err)
	}
}
