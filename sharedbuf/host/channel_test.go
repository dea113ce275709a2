// SPDX-License-Identifier: Apache-2.0

package host_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"github.com/memspan/memspan/internal/blocks"
	"github.com/memspan/memspan/sharedbuf"
	"github.com/memspan/memspan/sharedbuf/host"
)

// A counter counts the bytes of all connections that are accepted, as the host
// reads and writes them.
type counter struct {
	net.Listener
	in, out atomic.Int64
}

func (l *counter) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &counted{nc, l}, nil
}

// reset returns what was counted since the last reset.
func (l *counter) reset() (in, out int64) { return l.in.Swap(0), l.out.Swap(0) }

type counted struct {
	net.Conn
	l *counter
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.l.in.Add(int64(n))
	return n, err
}

func (c *counted) Write(p []byte) (int, error) {
	c.l.out.Add(int64(len(p))) // before the peer has it
	return c.Conn.Write(p)
}

// poke is an operation that adds one to a byte: {"at": offset}.
func poke(c *host.Call) (any, error) {
	var a struct {
		At int64 `json:"at"`
	}
	if err := c.Arguments(&a); err != nil {
		return nil, err
	}
	return nil, c.Each(func(off int64, chunk []byte) error {
		if a.At >= off && a.At < off+int64(len(chunk)) {
			chunk[a.At-off]++
		}
		return nil
	})
}

func pokeAt(at int64) sharedbuf.Step {
	return sharedbuf.Operation("poke", map[string]int64{"at": at})
}

// Only what changed is sent, either way.
func TestBytesOnTheWire(t *testing.T) {
	const size = 64 << 20
	ln := &counter{Listener: tcp(t)}
	serve(t, ln, host.Config{Operations: []host.Operation{{Name: "poke", Access: host.ReadWrite, Run: poke}}})
	b := alloc(t, dial(t, ln, ""), size)
	scribble(b.Bytes())
	process := func(name string, step sharedbuf.Step, maxIn, maxOut int64) {
		t.Helper()
		if _, err := b.Process(t.Context(), step); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		in, out := ln.reset()
		t.Logf("%s: %d bytes to the host, %d back", name, in, out)
		if in > maxIn || out > maxOut {
			t.Errorf("%s: %d bytes to the host, %d back, want at most %d and %d", name, in, out, maxIn, maxOut)
		}
	}
	const little = 1 << 10
	process("all of it", sharedbuf.Process(), size+size/1000, little)
	process("nothing", sharedbuf.Process(), little, little)
	b.Bytes()[size-1]++
	process("a byte of the guest's", sharedbuf.Process(), blocks.Size+little, little)
	process("a byte of the host's", pokeAt(12345), little, blocks.Size+little)
	process("nothing again", sharedbuf.Process(), little, little)
	process("a pattern", sharedbuf.Fill(7), little, size/10)
	if want := bytes.Repeat([]byte{7, 0, 0, 0}, size/4); !bytes.Equal(b.Bytes(), want) {
		t.Error("the pattern did not come")
	}
	clear(b.Bytes())
	process("zeros", sharedbuf.Verify(0), size/10, little)
	zeros := alloc(t, dial(t, ln, ""), size)
	if _, err := zeros.Process(t.Context(), sharedbuf.Verify(0)); err != nil {
		t.Error(err)
	}
	if in, out := ln.reset(); in > little || out > little {
		t.Errorf("a buffer that nobody has written: %d bytes to the host, %d back", in, out)
	}
}

// Whatever guest and host write, in whatever order, with connections that end in
// between, both have the same afterwards.
func TestChannelStaysInStep(t *testing.T) {
	ln := unixSocket(t)
	begun := make(chan struct{})
	// It writes what the guest, who gives it up, does not learn.
	vain := func(c *host.Call) (any, error) {
		if _, err := invert(c); err != nil {
			return nil, err
		}
		begun <- struct{}{}
		<-c.Context().Done()
		return nil, context.Cause(c.Context())
	}
	serve(t, ln, host.Config{Operations: []host.Operation{
		{Name: "poke", Access: host.ReadWrite, Run: poke},
		{Name: "vain", Access: host.ReadWrite, Run: vain},
	}})
	rapid.Check(t, func(rt *rapid.T) {
		relay := newRelay(t, ln.Addr())
		defer relay.close()
		c, err := sharedbuf.Dial(t.Context(), relay.address(), sharedbuf.Options{Channel: true})
		if err != nil {
			rt.Fatal(err)
		}
		defer c.Close()
		size := rapid.SampledFrom([]int64{1, blocks.Size, 3*blocks.Size + 77}).Draw(rt, "size")
		b, err := c.Alloc(t.Context(), size)
		if err != nil {
			rt.Fatal(err)
		}
		model := make([]byte, size)
		at := func(rt *rapid.T) int64 { return rapid.Int64Range(0, size-1).Draw(rt, "at") }
		rt.Repeat(map[string]func(*rapid.T){
			"store": func(rt *rapid.T) {
				i := at(rt)
				b.Bytes()[i]++
				model[i]++
			},
			"process": func(rt *rapid.T) {
				i, j := at(rt), at(rt)
				if _, err := b.Process(t.Context(), pokeAt(i), pokeAt(j)); err != nil {
					rt.Fatal(err)
				}
				model[i]++
				model[j]++
			},
			"a chain that fails": func(rt *rapid.T) {
				i := at(rt)
				if _, err := b.Process(t.Context(), pokeAt(i), sharedbuf.Verify(0xDEADBEEF)); !errors.Is(err, sharedbuf.ErrMismatch) && size >= 4 {
					rt.Fatal(err)
				}
				model[i]++
			},
			"job": func(rt *rapid.T) {
				i := at(rt)
				j, err := b.Start(t.Context(), pokeAt(i))
				if err == nil {
					_, err = j.Wait(t.Context())
				}
				if err != nil {
					rt.Fatal(err)
				}
				model[i]++
			},
			"given up": func(rt *rapid.T) {
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() {
					_, err := b.Process(ctx, sharedbuf.Operation("vain", nil))
					done <- err
				}()
				<-begun
				cancel()
				if err := <-done; !errors.Is(err, sharedbuf.ErrCanceled) {
					rt.Fatal(err)
				}
			},
			"cut": func(rt *rapid.T) { relay.cut() },
			"": func(rt *rapid.T) {
				if !bytes.Equal(b.Bytes(), model) {
					rt.Fatal("the guest has other bytes than were written")
				}
				sum, err := b.Process(t.Context(), sharedbuf.Checksum())
				for errors.Is(err, sharedbuf.ErrPeerLost) { // the end of the connection was not noticed yet
					sum, err = b.Process(t.Context(), sharedbuf.Checksum())
				}
				if err != nil || decode[uint32](t, sum.Value) != castagnoli(model) {
					rt.Fatalf("the host has other bytes than the guest: %v", err)
				}
			},
		})
	})
}

// What a connection's copies take is bounded, and given back.
func TestCopiesAreBounded(t *testing.T) {
	const limit = 1 << 20
	ln := tcp(t)
	_, stop := serve(t, ln, host.Config{MaxCopies: limit, MaxAllCopies: limit + limit/2})
	c := dial(t, ln, "")
	process := func(b *sharedbuf.Buffer) error {
		_, err := b.Process(t.Context(), sharedbuf.Process())
		return err
	}
	a, b := alloc(t, c, limit/2), alloc(t, c, limit/2+1)
	if err := process(a); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := process(b); !errors.Is(err, sharedbuf.ErrLimit) {
			t.Errorf("more than a connection may have: %v", err)
		}
	}
	if err := process(a); err != nil {
		t.Errorf("the other buffer: %v", err)
	}
	if err := a.Free(); err != nil {
		t.Fatal(err)
	}
	if err := process(b); err != nil {
		t.Errorf("after the other was freed: %v", err)
	}
	// Small ones count as a block each: what describes them takes memory too.
	g := connect(t, ln)
	left := (limit+limit/2)/blocks.Size - blocks.Count(b.Size())
	for i := range left + 1 {
		r := g.ask(map[string]any{"api": "shared_buffer_copy", "request_id": 1, "operation": "open", "buffer_id": i, "buffer_size": 1})
		if want := i < left; want != (r.Code == "") || !want && r.Code != sharedbuf.ErrLimit {
			t.Fatalf("small copy %d of %d: %+v", i, left, r)
		}
	}
	g.Close()
	other := dial(t, ln, "")
	d := alloc(t, other, limit)
	if err := process(d); !errors.Is(err, sharedbuf.ErrLimit) {
		t.Errorf("more than all connections may have: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	// The host sees the end of the connection when it does.
	for err := process(d); err != nil; err = process(d) {
		if !errors.Is(err, sharedbuf.ErrLimit) {
			t.Fatalf("after the other connection ended: %v", err)
		}
	}
	stop()
}

// frame returns what a guest sends: a request, and the blocks behind it.
func frame(t *testing.T, json string, mem []byte, gaveUp bool) []byte {
	t.Helper()
	var out bytes.Buffer
	out.Write(binary.BigEndian.AppendUint32(nil, uint32(len(json))))
	out.WriteString(json)
	w := blocks.NewWriter(&out)
	for i := range blocks.Count(int64(len(mem))) {
		w.Add(i, blocks.Of(mem, i))
	}
	if err := w.End(gaveUp); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// However a request with blocks fails, the next one is read where it begins; and
// what a guest cannot have meant ends its connection alone.
func TestChannelByHand(t *testing.T) {
	ln := tcp(t)
	serve(t, ln, host.Config{MaxBuffer: 1 << 20})
	g := connect(t, ln)
	ask := func(json string, mem []byte, gaveUp bool) *sharedbuf.Reply {
		t.Helper()
		if _, err := g.Write(frame(t, json, mem, gaveUp)); err != nil {
			t.Fatal(err)
		}
		reply, err := sharedbuf.ParseReply([]byte(g.receive()))
		if err != nil {
			t.Fatal(err)
		}
		return reply
	}
	const verify = `{"api":"shared_buffer","request_id":2,"operation":"verify","arguments":{"pattern":7},"file_path":"channel:5","buffer_id":5,"buffer_size":100000,"blocks":true}`
	mem := bytes.Repeat([]byte{7, 0, 0, 0}, 25_000)
	if reply := ask(verify, mem, false); reply.Code != sharedbuf.ErrStale {
		t.Errorf("without a copy: %+v", reply)
	}
	for size, want := range map[int]sharedbuf.Code{0: sharedbuf.ErrInvalid, 1<<20 + 1: sharedbuf.ErrLimit, 100_000: ""} {
		if reply := g.ask(map[string]any{"api": "shared_buffer_copy", "request_id": 1, "operation": "open", "buffer_id": 5, "buffer_size": size}); reply.Code != want {
			t.Errorf("open %d bytes: %+v, want %q", size, reply, want)
		}
		if size == 100_000 {
			break
		}
	}
	if reply := g.ask(map[string]any{"api": "shared_buffer_copy", "request_id": 1, "operation": "open", "buffer_id": 5, "buffer_size": 100_000}); reply.Code != "" {
		t.Fatalf("open: %+v", reply)
	}
	if reply := g.ask(map[string]any{"api": "shared_buffer_copy", "request_id": 1, "operation": "fold", "buffer_id": 5}); reply.Code != sharedbuf.ErrOperation {
		t.Errorf("another operation on copies: %+v", reply)
	}
	if reply := ask(verify, mem, true); reply.Code != sharedbuf.ErrCanceled {
		t.Errorf("taken back: %+v", reply)
	}
	if reply := ask(verify, nil, false); reply.Status != "success" { // what came before counts
		t.Errorf("verify: %+v", reply)
	}
	if reply := ask(`{"api":"frobnicate","request_id":3,"blocks":true}`, mem, false); reply.Code != sharedbuf.ErrUnsupported {
		t.Errorf("blocks behind something else: %+v", reply)
	}
	for _, path := range []string{"channel:6", "channel:", "channel:05"} {
		request := `{"api":"shared_buffer","request_id":4,"operation":"process","file_path":"` + path + `","buffer_id":5,"buffer_size":100000,"blocks":true}`
		if reply := ask(request, mem, false); reply.Code != sharedbuf.ErrStale {
			t.Errorf("path %s: %+v", path, reply)
		}
	}
	if reply := g.ask(map[string]any{"api": "shared_buffer_copy", "request_id": 1, "operation": "close", "buffer_id": 5}); reply.Code != "" {
		t.Errorf("close: %+v", reply)
	}
	if reply := ask(verify, nil, false); reply.Code != sharedbuf.ErrStale {
		t.Errorf("after close: %+v", reply)
	}

	broken := frame(t, verify, mem[:4], false)
	broken[len(broken)-1] ^= 1
	for name, test := range map[string]struct {
		stream []byte
		want   sharedbuf.Code
	}{
		"a damaged last record": {broken, sharedbuf.ErrCorrupt},
		"no record":             {append(frame(t, verify, nil, false)[:4+len(verify)], bytes.Repeat([]byte{'x'}, 50)...), sharedbuf.ErrInvalid},
	} {
		g := connect(t, ln)
		if _, err := g.Write(test.stream); err != nil {
			t.Fatal(err)
		}
		reply, err := sharedbuf.ParseReply([]byte(g.receive()))
		if err != nil || reply.Code != test.want {
			t.Errorf("%s: %+v, %v, want %q", name, reply, err, test.want)
		}
		g.wantEnd()
	}
}
