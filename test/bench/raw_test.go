// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bufio"
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
	lowWater = 256 << 10
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
			if secure != nil {
				c = tls.Server(nc, secure)
			}
			if err := answerRaw(c, nc); err != nil && !errors.Is(err, io.EOF) {
				fatal(err)
			}
		}()
	}
}

func tune(nc net.Conn) {
	if tcp, ok := nc.(*net.TCPConn); ok {
		if rc, err := tcp.SyscallConn(); err == nil {
			sockopt.SetCongestion(rc, "cubic")
		}
	}
}

func answerRaw(c, nc net.Conn) error {
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
		if err := receiveRaw(c, nc, memory[:size]); err != nil {
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

func receiveRaw(c, nc net.Conn, p []byte) error {
	tcp, plain := nc.(*net.TCPConn)
	plain = plain && c == nc
	mark := 1
	for len(p) > 0 {
		if want := min(len(p), lowWater); plain && want != mark {
			rc, err := tcp.SyscallConn()
			if err != nil {
				return err
			}
			if err := sockopt.SetReceiveLowWater(rc, want); err != nil {
				return err
			}
			mark = want
		}
		n, err := c.Read(p[:min(len(p), chunk)])
		if err != nil {
			return err
		}
		p = p[n:]
	}
	if plain && mark != 1 {
		rc, err := tcp.SyscallConn()
		if err != nil {
			return err
		}
		return sockopt.SetReceiveLowWater(rc, 1)
	}
	return nil
}

// A rawConn is the client's side.
type rawConn struct {
	c, nc net.Conn
	r     *bufio.Reader
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
	r := &rawConn{c: nc, nc: nc}
	if transport == "tls" {
		r.c = tls.Client(nc, insecure())
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
	if err := receiveRaw(r.c, r.nc, p); err != nil {
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
