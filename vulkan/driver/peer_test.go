// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/memspan/memspan/internal/fdpass"
	"github.com/memspan/memspan/vulkan/registry"
	"github.com/memspan/memspan/vulkan/stream"
	"github.com/memspan/memspan/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sockets returns two ends of a unix socket.
func sockets(t testing.TB) (a, b net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		nc, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = fdpass.New(nc.(*net.UnixConn))
	}
	return ends[0], ends[1]
}

// A peer is a worker that only plays one: it notes what it is sent and answers
// as the test says.
type peer struct {
	t  testing.TB
	sc *stream.Conn

	mu   sync.Mutex
	seen []message
	came *sync.Cond
	// answer is called for every message, and may send what it likes. It
	// reports whether that was the answer; if not, requests get the default.
	answer func(p *peer, m stream.Message) bool
	// forgets: it does not note what it is sent.
	forgets bool
}

// message is one that owns its body.
type message struct {
	op   stream.Op
	body []byte
}

// withPeer returns a configuration whose workers are peers. They come through
// the channel as they are dialled.
func withPeer(t testing.TB, pipes bool, answer func(*peer, stream.Message) bool) (Config, <-chan *peer) {
	peers := make(chan *peer, 8)
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	return Config{Dial: func(context.Context) (Connection, error) {
		client, worker := net.Pipe()
		if !pipes {
			client, worker = sockets(t)
		}
		p := &peer{t: t, sc: stream.New(wire.NewConn(worker, wire.Config{})), answer: answer}
		p.came = sync.NewCond(&p.mu)
		wg.Go(p.serve)
		peers <- p
		return Connection{Wire: wire.NewConn(client, wire.Config{})}, nil
	}}, peers
}

func (p *peer) serve() {
	defer p.sc.Close()
	for {
		m, err := p.sc.Read()
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) && !errors.Is(err, wire.PeerLost) {
				p.t.Errorf("peer: %v", err)
			}
			return
		}
		p.mu.Lock()
		if !p.forgets {
			p.seen = append(p.seen, message{m.Op, bytes.Clone(m.Body)})
		}
		p.came.Broadcast()
		p.mu.Unlock()
		switch {
		case p.answer != nil && p.answer(p, m):
		case m.Op == stream.OpPing:
			if !m.Has(stream.FlagReply) {
				p.reply(m, nil)
			}
		case m.Has(stream.FlagReply):
			p.reply(m, defaultReply(m))
		}
	}
}

// defaultReply says that all went well.
func defaultReply(m stream.Message) []byte {
	switch {
	case m.Op == stream.OpHello:
		return stream.Welcome{Fingerprint: registry.Fingerprint}.Append(nil)
	case !m.Op.Special() && registry.Commands[m.Op].Creates >= 0:
		return []byte{0, 0, 0, 0, 1} // VK_SUCCESS, one handle
	}
	return []byte{0, 0, 0, 0}
}

func (p *peer) reply(m stream.Message, body []byte) {
	p.send(m.Op, stream.FlagReply, m.Serial, body)
}

func (p *peer) send(op stream.Op, flags stream.Flags, serial uint64, body []byte) {
	if err := p.sc.Write(op, flags, serial, body, nil); err == nil {
		_ = p.sc.Flush() // the client may be gone
	}
}

// signal tells the client.
func (p *peer) signal(signals ...stream.Signal) {
	var b []byte
	for _, s := range signals {
		b = s.Append(b)
	}
	p.send(stream.OpSignal, 0, 0, b)
}

// waitFor waits until n messages of an operation have come and returns them.
func (p *peer) waitFor(op registry.Index, n int) []message {
	p.t.Helper()
	timer := time.AfterFunc(time.Minute, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.seen = append(p.seen, message{op: 0xffff})
		p.came.Broadcast()
	})
	defer timer.Stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		var found []message
		for _, m := range p.seen {
			if m.op == stream.Op(uint16(op)) {
				found = append(found, m)
			}
			if m.op == 0xffff {
				p.t.Fatalf("%d messages %d came, want %d", len(found), op, n)
			}
		}
		if len(found) >= n {
			return found
		}
		p.came.Wait()
	}
}

// ops returns the operations that came, in order.
func (p *peer) ops() []registry.Index {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []registry.Index
	for _, m := range p.seen {
		all = append(all, registry.Index(m.op))
	}
	return all
}

// A scene is an application with a device of a peer.
type scene struct {
	*app
	p                *peer
	instance, device uint64
	queue            uint64
}

func newScene(t testing.TB, pipes bool, answer func(*peer, stream.Message) bool) *scene {
	t.Helper()
	cfg, peers := withPeer(t, pipes, answer)
	return newSceneOf(t, cfg, peers)
}

// newSceneOf returns a scene with the peer that comes through the channel.
func newSceneOf(t testing.TB, cfg Config, peers <-chan *peer) *scene {
	t.Helper()
	s := &scene{app: newApp(t, cfg)}
	s.instance = s.app.instance()
	s.p = <-peers
	// A physical device is made by hand: its enumeration is not what matters.
	o, err := s.d.objects.create(registry.VkPhysicalDevice, s.d.objects.of(registry.VkInstance, s.instance), &physicalState{cache: newQueryCache()})
	if err != nil {
		t.Fatal(err)
	}
	s.device = s.app.device(o.handle)
	s.queue = s.app.queue(s.device)
	return s
}

// idOf returns the id behind a handle that came in a message.
func idIn(b []byte, offset int) uint64 { return binary.LittleEndian.Uint64(b[offset:]) }
