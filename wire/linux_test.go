// SPDX-License-Identifier: Apache-2.0

//go:build linux

package wire_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/memspan/memspan/internal/fdpass"
	"github.com/memspan/memspan/internal/sockopt"
	"github.com/memspan/memspan/wire"
)

// A fullConn is a TCP connection whose socket takes nothing for a while.
type fullConn struct {
	*net.TCPConn
	refuse    int    // so many writes yet
	meanwhile func() // called by each of them
}

func (c *fullConn) Write(b []byte) (int, error) {
	if c.refuse > 0 {
		c.refuse--
		c.meanwhile()
		return 0, os.ErrDeadlineExceeded
	}
	return c.TCPConn.Write(b)
}

// A full socket takes no byte until much of what it holds has gone out, which
// over a slow link takes longer than any timeout. What leaves its queue is
// progress; if nothing does, the peer has stalled.
func TestFullSocket(t *testing.T) {
	const timeout = 20 * time.Millisecond
	for _, moves := range []bool{true, false} {
		a, b := dialTCP(t)
		// A reader that can hold little takes the queue a little at a time: it
		// lasts for all the writes below.
		if err := a.(*net.TCPConn).SetReadBuffer(32 << 10); err != nil {
			t.Fatal(err)
		}
		fill(t, b)
		socket, err := sockopt.Of(b.(syscall.Conn))
		if err != nil {
			t.Fatal(err)
		}
		c := wire.NewConn(&fullConn{b.(*net.TCPConn), 10, func() {
			time.Sleep(timeout / 2)
			if moves {
				readUntilQueueMoves(t, a, socket)
			}
		}}, wire.Config{IOTimeout: timeout})
		err = c.WriteFrame(wire.Header{Kind: wire.KindEvent}, nil)
		if moves && err != nil {
			t.Errorf("the queue moved: %v", err)
		}
		if !moves && !errors.Is(err, wire.Stalled) {
			t.Errorf("the queue did not move: %v, want Stalled", err)
		}
		a.Close()
		c.Close()
	}
}

// fill writes until the socket takes no more. It does not wait, and so does not
// depend on how long it takes.
func fill(t *testing.T, c net.Conn) {
	t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	piece := make([]byte, 64<<10)
	var full error
	err = raw.Write(func(fd uintptr) bool {
		for full == nil {
			_, full = syscall.Write(int(fd), piece)
		}
		return true
	})
	if err != nil || !errors.Is(full, syscall.EAGAIN) {
		t.Fatalf("fill the socket: %v, %v", err, full)
	}
}

func readUntilQueueMoves(t *testing.T, peer io.Reader, s *sockopt.Socket) {
	before, err := s.SendQueue()
	if before == 0 && err == nil {
		t.Error("the queue is empty before its time")
		return
	}
	for now := before; now >= before && err == nil; {
		if _, err = peer.Read(make([]byte, 64<<10)); err == nil {
			now, err = s.SendQueue()
		}
	}
	if err != nil {
		t.Error(err)
	}
}

// Files travel with their frame, in order, between frames without.
func TestFilesTravelWithTheirFrame(t *testing.T) {
	a, b := dialUnix(t)
	files := fdpass.New(b.(*net.UnixConn))
	client := wire.NewConn(fdpass.New(a.(*net.UnixConn)), wire.Config{IOTimeout: ioTimeout})
	server := wire.NewConn(files, wire.Config{IOTimeout: ioTimeout})
	t.Cleanup(func() { client.Close(); server.Close() })
	var sent []*os.File
	for range 2 {
		f, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		sent = append(sent, f)
	}
	big := frame{kind: wire.KindTransfer, id: 1, prefix: random(28), data: random(wire.MaxData)}
	reply := frame{kind: wire.KindControl, flags: wire.FlagReply, data: random(5000)}
	done := in(func() error {
		for i, f := range sent {
			reply.id = uint64(i)
			if err := client.WriteFrameFiles(wire.Header{Kind: reply.kind, Flags: reply.flags, ID: reply.id}, reply.data, f); err != nil {
				return err
			}
			if err := big.write(client); err != nil {
				return err
			}
		}
		return nil
	})
	for i, want := range sent {
		got, err := readFrame(server)
		if err != nil || got.id != uint64(i) || !bytes.Equal(got.data, reply.data) {
			t.Fatalf("frame with file %d: %v", i, err)
		}
		f, err := files.Take()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		gotInfo, err1 := f.Stat()
		wantInfo, err2 := want.Stat()
		if err := errors.Join(err1, err2); err != nil || !os.SameFile(gotInfo, wantInfo) {
			t.Errorf("file %d is another: %v", i, err)
		}
		if got, err := readFrame(server); err != nil || !got.equal(big) {
			t.Fatalf("frame after file %d: %v", i, err)
		}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestFilesNeedAUnixSocket(t *testing.T) {
	for _, tr := range transports() {
		client, _ := tr.conns(t)
		err := client.WriteFrameFiles(wire.Header{Kind: wire.KindControl}, nil, os.Stdin)
		if !errors.Is(err, wire.Unsupported) {
			t.Errorf("%s: %v, want Unsupported", tr.name, err)
		}
	}
}

// Await sees a byte that comes after a frame for whose many bytes the reader
// has waited together.
func TestAwaitAfterBulk(t *testing.T) {
	a, b := dialTCP(t)
	from, to := wire.NewConn(a, wire.Config{}), wire.NewConn(b, wire.Config{})
	defer from.Close()
	defer to.Close()
	if ready, err := to.Await(0); err != nil || ready {
		t.Fatalf("ready before anything was sent: %v, %v", ready, err)
	}
	const n = 1 << 20
	read := make(chan error, 1)
	go func() {
		h, err := to.ReadHeader()
		if err == nil {
			err = to.ReadData(make([]byte, h.Raw))
		}
		read <- err
	}()
	if err := from.WriteFrame(wire.Header{Kind: wire.KindTransfer}, nil, make([]byte, n)); err != nil {
		t.Fatal(err)
	}
	if err := <-read; err != nil {
		t.Fatal(err)
	}
	if _, err := a.Write([]byte{0}); err != nil {
		t.Fatal(err)
	}
	if ready, err := to.Await(10 * time.Second); err != nil || !ready {
		t.Errorf("a byte has come, and Await: %v, %v", ready, err)
	}
}
