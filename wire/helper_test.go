// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"hash/crc32"
	"io"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/klauspost/compress/s2"
	"go.uber.org/goleak"

	"github.com/memspan/memspan/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A frame is what a test sends, and what it expects to arrive.
type frame struct {
	kind   wire.Kind
	flags  wire.Flags
	id     uint64
	prefix []byte
	data   []byte
}

func (f frame) write(c *wire.Conn) error {
	h := wire.Header{Kind: f.kind, Flags: f.flags, ID: f.id}
	if half := len(f.data) / 2; half%3 == 1 { // some in two pieces
		return c.WriteFrame(h, f.prefix, f.data[:half], f.data[half:])
	}
	return c.WriteFrame(h, f.prefix, f.data)
}

// readFrame reads a whole frame as its receiver does.
func readFrame(c *wire.Conn) (frame, error) {
	h, err := c.ReadHeader()
	if err != nil {
		return frame{}, err
	}
	f := frame{kind: h.Kind, flags: h.Flags &^ wire.FlagSum, id: h.ID}
	if f.prefix, err = c.ReadPrefix(nil); err != nil {
		return frame{}, err
	}
	f.data = make([]byte, h.Raw)
	return f, c.ReadData(f.data)
}

func (f frame) equal(g frame) bool {
	return f.kind == g.kind && f.flags == g.flags && f.id == g.id &&
		bytes.Equal(f.prefix, g.prefix) && bytes.Equal(f.data, g.data)
}

// memConn is a connection that reads what it was given and keeps what is
// written.
type memConn struct {
	in  *bytes.Reader
	out bytes.Buffer
}

func newMemConn(in []byte) *memConn { return &memConn{in: bytes.NewReader(in)} }

func (c *memConn) Read(b []byte) (int, error)       { return c.in.Read(b) }
func (c *memConn) Write(b []byte) (int, error)      { return c.out.Write(b) }
func (c *memConn) Close() error                     { return nil }
func (c *memConn) LocalAddr() net.Addr              { return memAddr{} }
func (c *memConn) RemoteAddr() net.Addr             { return memAddr{} }
func (c *memConn) SetDeadline(time.Time) error      { return nil }
func (c *memConn) SetReadDeadline(time.Time) error  { return nil }
func (c *memConn) SetWriteDeadline(time.Time) error { return nil }

type memAddr struct{}

func (memAddr) Network() string { return "mem" }
func (memAddr) String() string  { return "mem" }

// encode returns the bytes of frames as sent with cfg.
func encode(t testing.TB, cfg wire.Config, frames ...frame) []byte {
	t.Helper()
	mc := newMemConn(nil)
	c := wire.NewConn(mc, cfg)
	for _, f := range frames {
		if err := f.write(c); err != nil {
			t.Fatalf("write %v frame: %v", f.kind, err)
		}
	}
	return slices.Clone(mc.out.Bytes())
}

// bytes returns the frame as sent in the given encoding, built from the
// protocol's description and not by a connection, which chooses for itself.
func (f frame) bytes(encoding wire.Encoding, sum bool) []byte {
	data := f.data
	switch encoding {
	case wire.EncodingS2:
		data = s2.Encode(nil, data)
	case wire.EncodingFill:
		data = data[:4]
	}
	h := wire.Header{
		Kind: f.kind, Flags: f.flags, Encoding: encoding, ID: f.id,
		Length: uint32(len(f.prefix) + len(data)), Raw: uint32(len(f.data)), Prefix: uint32(len(f.prefix)),
	}
	if sum {
		h.Flags |= wire.FlagSum
	}
	payload := append(slices.Clone(f.prefix), data...)
	b := append(h.Append(nil), payload...)
	if sum {
		b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(payload, crc32.MakeTable(crc32.Castagnoli)))
	}
	return b
}

// A linkConn is a memConn that carries so many bytes per second.
type linkConn struct {
	*memConn
	perSecond float64
	wait      func(time.Duration)
}

func (c linkConn) Write(b []byte) (int, error) {
	c.wait(time.Duration(float64(len(b)) / c.perSecond * 1e9))
	return c.memConn.Write(b)
}

// A transport makes both ends of a connection.
type transport struct {
	name string
	dial func(t testing.TB) (client, server net.Conn)
	cfg  wire.Config
}

const ioTimeout = 20 * time.Second

func transports() []transport {
	plain := wire.Config{IOTimeout: ioTimeout}
	sums := wire.Config{IOTimeout: ioTimeout, Sums: true}
	s2 := wire.Config{IOTimeout: ioTimeout, Compress: true}
	both := wire.Config{IOTimeout: ioTimeout, Sums: true, Compress: true}
	return []transport{
		{"pipe", dialPipe, plain},
		{"pipe+sums", dialPipe, sums},
		{"unix", dialUnix, plain},
		{"tcp", dialTCP, plain},
		{"tcp without timeout", dialTCP, wire.Config{}}, // a low-water mark that is wrong hangs
		{"tcp+sums", dialTCP, sums},
		{"tcp+s2", dialTCP, s2},
		{"tcp+sums+s2", dialTCP, both},
		{"tls", dialTLS, plain},
		{"tls+s2", dialTLS, s2},
	}
}

// conns returns a connection's two ends, which are closed with the test.
func (tr transport) conns(t testing.TB) (client, server *wire.Conn) {
	t.Helper()
	a, b := tr.dial(t)
	client, server = wire.NewConn(a, tr.cfg), wire.NewConn(b, tr.cfg)
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

func dialPipe(testing.TB) (net.Conn, net.Conn) { return net.Pipe() }

func dialUnix(t testing.TB) (net.Conn, net.Conn) {
	return dialNet(t, "unix", filepath.Join(t.TempDir(), "s"))
}

func dialTCP(t testing.TB) (net.Conn, net.Conn) { return dialNet(t, "tcp", "127.0.0.1:0") }

func dialNet(t testing.TB, network, address string) (net.Conn, net.Conn) {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial(network, l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return client, server
}

func dialTLS(t testing.TB) (net.Conn, net.Conn) {
	t.Helper()
	a, b := dialTCP(t)
	cert := certificate(t)
	client := tls.Client(wire.Progress(a, ioTimeout), &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
	server := tls.Server(wire.Progress(b, ioTimeout), &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13})
	done := make(chan error, 1)
	go func() { done <- server.Handshake() }()
	if err := client.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return client, server
}

func certificate(t testing.TB) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// Test data of n bytes, by what they are like.
func random(n int) []byte {
	b := make([]byte, n)
	r := mathrand.NewChaCha8([32]byte{1})
	_, _ = io.ReadFull(r, b)
	return b
}

func pattern(n int) []byte {
	return bytes.Repeat([]byte{0x78, 0x56, 0x34, 0x12}, n/4+1)[:n]
}

func text(n int) []byte {
	return bytes.Repeat([]byte("a buffer that the encoder finds worth its while; "), n/49+1)[:n]
}
