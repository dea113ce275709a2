// SPDX-License-Identifier: Apache-2.0

package pull_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/memspan/memspan/surface"
	"github.com/memspan/memspan/surface/pull"
	"github.com/memspan/memspan/wire"
	"github.com/memspan/memspan/wire/dial"
)

// impatient gives a source that owes something up soon, but not one that merely
// shares a busy machine.
var impatient = dial.Options{IOTimeout: 2 * time.Second}

// A vice is what a host does wrong: after the first reads, or from the first.
type vice func(h *host, after int64)

func reads(h *host, after int64, do func(c *wire.Conn, hd wire.Header, m wire.MemoryCommand) bool) {
	var n atomic.Int64
	h.onRead = func(c *wire.Conn, hd wire.Header, m wire.MemoryCommand) bool {
		return n.Add(1) > after && do(c, hd, m)
	}
}

var vices = map[string]struct {
	vice vice
	want error // of who has no other source
}{
	"lies": {func(h *host, after int64) {
		reads(h, after, func(c *wire.Conn, hd wire.Header, m wire.MemoryCommand) bool {
			data := bytes.Clone(h.stored[m.Offset : m.Offset+m.Size])
			data[len(data)/2] ^= 1
			reply(c, hd, data)
			return true
		})
	}, wire.Corrupt},
	"dies": {func(h *host, after int64) {
		reads(h, after, func(c *wire.Conn, hd wire.Header, m wire.MemoryCommand) bool {
			c.Close()
			return true
		})
	}, wire.PeerLost},
	"stalls": {func(h *host, after int64) {
		reads(h, after, func(*wire.Conn, wire.Header, wire.MemoryCommand) bool { return true })
	}, wire.Stalled},
	"refuses": {func(h *host, after int64) {
		reads(h, after, func(c *wire.Conn, hd wire.Header, m wire.MemoryCommand) bool {
			refuse(c, hd, wire.Expired, "")
			return true
		})
	}, wire.Expired},
	"answers twice": {func(h *host, after int64) {
		reads(h, after, func(c *wire.Conn, hd wire.Header, m wire.MemoryCommand) bool {
			h.read(c, hd, m)
			h.read(c, hd, m)
			return true
		})
	}, wire.Invalid},
	"answers too little": {func(h *host, after int64) {
		reads(h, after, func(c *wire.Conn, hd wire.Header, m wire.MemoryCommand) bool {
			reply(c, hd, h.stored[m.Offset:m.Offset+m.Size-1])
			return true
		})
	}, wire.Invalid},
	"answers what was not asked": {func(h *host, after int64) {
		reads(h, after, func(c *wire.Conn, hd wire.Header, m wire.MemoryCommand) bool {
			hd.ID += 1 << 40
			h.read(c, hd, m)
			return true
		})
	}, wire.Invalid},
	"answers as another kind": {func(h *host, after int64) {
		reads(h, after, func(c *wire.Conn, hd wire.Header, m wire.MemoryCommand) bool {
			hd.Kind = wire.KindControl
			answer(c, hd, struct{}{})
			return true
		})
	}, wire.Invalid},
	"asks": {func(h *host, after int64) {
		reads(h, after, func(c *wire.Conn, hd wire.Header, m wire.MemoryCommand) bool {
			c.WriteFrame(wire.Header{Kind: wire.KindRead, ID: hd.ID}, nil)
			return true
		})
	}, wire.Invalid},
}

// A source that misbehaves costs nothing but itself; if there is no other, the
// pull fails and says why.
func TestVices(t *testing.T) {
	content := random(4*mib + 99)
	for name, v := range vices {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			good := expose(t, content, 256*kib, nil)
			bad := good.mirror(nil)
			v.vice(bad, 2)
			alone := open(t, good.rooted(bad.tcp()), pull.Options{Dial: impatient})
			_, err := alone.CopyTo(t.Context(), io.Discard, all)
			if !errors.Is(err, v.want) {
				t.Errorf("alone: %v", err)
			}
			// Also the other way round: the good one is there for chunks alone.
			for _, ticket := range []*surface.Ticket{good.rooted(good.tcp()), good.rooted(bad.tcp())} {
				s := open(t, ticket, pull.Options{From: []string{bad.tcp(), good.tcp()}, Dial: impatient})
				checkTargets(t, s, content)
			}
		})
	}
}

// Who lies and hangs up is not dialed for ever.
func TestLiesAndHangsUp(t *testing.T) {
	content := random(6*mib + 99)
	h := expose(t, content, 256*kib, nil)
	bad := h.mirror(nil)
	reads(bad, 0, func(c *wire.Conn, hd wire.Header, m wire.MemoryCommand) bool {
		reply(c, hd, make([]byte, m.Size))
		c.Close()
		return true
	})
	address := bad.tcp()
	s := open(t, h.rooted(address), pull.Options{})
	if _, err := s.ToMemory(t.Context(), all); !errors.Is(err, wire.Corrupt) {
		t.Errorf("alone: %v", err)
	}
	checkTargets(t, open(t, h.rooted(address), pull.Options{From: []string{h.tcp()}}), content)
}

// What a slow source owes is asked of others; it is not waited for, nor given up.
func TestSlowSource(t *testing.T) {
	content := random(30*mib + 7)
	h := expose(t, content, 256*kib, nil)
	slow := h.mirror(nil)
	asked := make(chan struct{}, 100)
	vices["stalls"].vice(slow, 0)
	stall := slow.onRead
	slow.onRead = func(c *wire.Conn, hd wire.Header, m wire.MemoryCommand) bool {
		asked <- struct{}{}
		return stall(c, hd, m)
	}
	gate := make(chan struct{})
	h.onRead = func(*wire.Conn, wire.Header, wire.MemoryCommand) bool {
		<-gate
		return false
	}
	s := open(t, h.rooted(h.tcp()), pull.Options{From: []string{slow.tcp()}})
	done := make(chan error)
	got := make([]byte, len(content))
	go func() {
		_, err := s.ReadAt(got, 0)
		done <- err
	}()
	<-asked // the slow one has something to do
	close(gate)
	if err := <-done; err != nil || !bytes.Equal(got, content) {
		t.Errorf("other bytes, or %v", err)
	}
	for _, source := range s.Sources() {
		if source.Err != nil {
			t.Errorf("given up: %v", source.Err)
		}
	}
}

func TestUnverified(t *testing.T) {
	content := random(mib)
	h := expose(t, content, 64*kib, nil)
	bad := h.mirror(nil)
	vices["lies"].vice(bad, 0)
	s := open(t, h.rooted(bad.tcp()), pull.Options{Unverified: true})
	got := make([]byte, len(content))
	if _, err := s.ReadAt(got, 0); err != nil || bytes.Equal(got, content) {
		t.Errorf("it was verified, or %v", err)
	}
}

// Answers may come in any order.
func TestReordered(t *testing.T) {
	content := random(8 * mib)
	h := expose(t, content, 512*kib, nil)
	var mu sync.Mutex
	type read struct {
		hd wire.Header
		m  wire.MemoryCommand
	}
	var kept []read
	h.onRead = func(c *wire.Conn, hd wire.Header, m wire.MemoryCommand) bool {
		mu.Lock()
		defer mu.Unlock()
		kept = append(kept, read{hd, m})
		h.mu.Lock()
		h.given += int64(m.Size)
		last := h.given == int64(len(content))
		h.mu.Unlock()
		for len(kept) > 1 || last && len(kept) > 0 {
			reply(c, kept[len(kept)-1].hd, h.stored[kept[len(kept)-1].m.Offset:][:kept[len(kept)-1].m.Size])
			kept = kept[:len(kept)-1]
		}
		return true
	}
	s := open(t, h.rooted(h.tcp()), pull.Options{})
	m, err := s.ToMemory(t.Context(), all)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if !bytes.Equal(m.Bytes(), content) {
		t.Error("other bytes")
	}
}

func TestRefused(t *testing.T) {
	h := expose(t, random(kib), 4*kib, nil)
	address := h.tcp()
	wrong := h.rooted(address)
	wrong.Secret[5] ^= 1
	if _, err := pull.Open(t.Context(), wrong, pull.Options{}); !errors.Is(err, wire.Unauthenticated) {
		t.Errorf("a wrong secret: %v", err)
	}
	wrong = h.rooted(address)
	wrong.ID[5] ^= 1
	if _, err := pull.Open(t.Context(), wrong, pull.Options{}); !errors.Is(err, wire.Unauthenticated) {
		t.Errorf("a wrong id: %v", err)
	}
	if _, err := pull.Open(t.Context(), h.rooted("unix:/nowhere"), pull.Options{}); !errors.Is(err, wire.NotFound) {
		t.Errorf("only on another machine: %v", err)
	}
	if _, err := pull.Open(t.Context(), h.rooted("tcp://127.0.0.1:1"), pull.Options{}); !errors.Is(err, wire.PeerLost) {
		t.Errorf("nobody there: %v", err)
	}
	// A root is enough to take it from whoever has it.
	s := open(t, h.rooted("tcp://127.0.0.1:1"), pull.Options{From: []string{address}})
	checkTargets(t, s, h.stored)
	if _, err := pull.Open(t.Context(), h.rootless("tcp://127.0.0.1:1"), pull.Options{From: []string{address}}); !errors.Is(err, wire.PeerLost) {
		t.Errorf("nobody vouches for it: %v", err)
	}
}

// Sources that have a part each make a whole.
func TestParts(t *testing.T) {
	content := random(50 * 16 * kib)
	h := expose(t, content, 16*kib, nil)
	even := h.mirror(func(i int64) bool { return i%2 == 0 })
	odd := h.mirror(func(i int64) bool { return i%2 == 1 })
	s := open(t, h.rooted(even.tcp()), pull.Options{From: []string{odd.tcp()}})
	checkTargets(t, s, content)
	// And one that gets them later is asked later.
	var mu sync.Mutex
	upTo := int64(10)
	late := h.mirror(func(i int64) bool {
		mu.Lock()
		defer mu.Unlock()
		return i < upTo
	})
	s = open(t, h.rooted(late.tcp()), pull.Options{})
	done := make(chan error)
	got := make([]byte, len(content))
	go func() {
		_, err := s.ReadAt(got, 0)
		done <- err
	}()
	if err := s.Wait(t.Context(), 0, 10*16*kib); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	upTo = 50
	mu.Unlock()
	late.seal() // tells
	if err := <-done; err != nil || !bytes.Equal(got, content) {
		t.Errorf("other bytes, or %v", err)
	}
}

// A chunk that nobody has any more is not waited for for ever.
func TestNobodyHasIt(t *testing.T) {
	content := random(20 * 16 * kib)
	h := expose(t, content, 16*kib, nil)
	part := h.mirror(func(i int64) bool { return i != 7 })
	v := h.mirror(nil)
	vices["dies"].vice(v, 0)
	s := open(t, h.rooted(v.tcp()), pull.Options{From: []string{part.tcp()}, Dial: impatient})
	if _, err := s.ToMemory(t.Context(), all); !errors.Is(err, wire.Stalled) || !strings.Contains(err.Error(), "chunk 7") {
		t.Errorf("got %v", err)
	}
}

// A proxy hands bytes on between pullers and a host, and spoils what a fault
// says of those to the puller.
type proxy struct {
	ln   net.Listener
	work sync.WaitGroup
}

// A fault happens at byte at of what goes to the puller.
type fault struct {
	kind string // "", "cut", "flip", "stall", "repeat"
	at   int
}

func proxied(t interface {
	Helper()
	Fatal(...any)
	Cleanup(func())
}, address string, f fault) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{ln: ln}
	t.Cleanup(func() {
		ln.Close()
		p.work.Wait()
	})
	p.work.Go(func() {
		for {
			puller, err := ln.Accept()
			if err != nil {
				return
			}
			host, err := net.Dial("tcp", strings.TrimPrefix(address, "tcp://"))
			if err != nil {
				puller.Close()
				return
			}
			p.work.Go(func() {
				io.Copy(host, puller)
				host.Close()
			})
			p.work.Go(func() {
				f.copy(puller, host)
				puller.Close()
				host.Close()
			})
		}
	})
	return "tcp://" + ln.Addr().String()
}

func (f fault) copy(to, from net.Conn) {
	if f.kind == "" {
		io.Copy(to, from)
		return
	}
	if _, err := io.CopyN(to, from, int64(f.at)); err != nil {
		return
	}
	b := make([]byte, 100)
	n, err := from.Read(b)
	if err != nil {
		return
	}
	b = b[:n]
	switch f.kind {
	case "cut":
		to.Write(b[:n/2])
		return
	case "flip":
		b[n/2] ^= 0x10
	case "repeat":
		to.Write(b)
	case "stall":
		io.Copy(io.Discard, from)
		return
	}
	to.Write(b)
	io.Copy(to, from)
}

// Whatever happens to links: what succeeds has the exact bytes, and what fails
// can be gone on with.
func TestFaults(t *testing.T) {
	const chunk = 256 * kib
	content := random(14*chunk + 1234)
	clear(content[5*chunk : 7*chunk])
	h := expose(t, content, chunk, nil)
	address := h.tcp()
	dir := t.TempDir()
	var files atomic.Int64
	rapid.Check(t, func(rt *rapid.T) {
		faults := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) fault {
			return fault{rapid.SampledFrom([]string{"", "cut", "flip", "stall", "repeat"}).Draw(rt, "kind"), rapid.IntRange(0, len(content)*2/3).Draw(rt, "at")}
		}), 1, 3).Draw(rt, "faults")
		var addresses []string
		good := false
		for _, f := range faults {
			addresses = append(addresses, proxied(rt, address, f))
			good = good || f.kind == ""
		}
		ticket := h.rooted(addresses[0])
		if rapid.Bool().Draw(rt, "rootless") {
			ticket = h.rootless(addresses[0])
		}
		path := filepath.Join(dir, "file"+string(rune('a'+files.Add(1)%26))+time.Now().Format("150405.000000000"))
		once := func(ticket *surface.Ticket, from []string) error {
			s, err := pull.Open(t.Context(), ticket, pull.Options{From: from, Dial: dial.Options{IOTimeout: 150 * time.Millisecond}})
			if err != nil {
				return err
			}
			defer s.Close()
			return s.ToFile(t.Context(), path, all)
		}
		err := once(ticket, addresses[1:])
		// On a busy machine a good source may seem to stall.
		if err != nil && ticket.Root != nil && good && !errors.Is(err, wire.Stalled) {
			rt.Fatalf("with a good source: %v", err)
		}
		if err != nil {
			if _, missing := os.Stat(path); missing == nil {
				rt.Fatalf("there is a file after %v", err)
			}
			s := open(t, h.rooted(address), pull.Options{})
			if err := s.ToFile(t.Context(), path, all); err != nil {
				rt.Fatalf("going on: %v", err)
			}
			s.Close()
		}
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, content) {
			rt.Fatalf("other bytes, or %v", err)
		}
		os.Remove(path)
	})
}

// Canceled at whatever point, a pull ends, and can be gone on with.
func TestCanceledAnywhere(t *testing.T) {
	const chunk = 64 * kib
	content := random(100*chunk + 77)
	h := expose(t, content, chunk, nil)
	path := filepath.Join(t.TempDir(), "file")
	var left atomic.Int64
	var stop atomic.Pointer[context.CancelFunc]
	h.onRead = func(*wire.Conn, wire.Header, wire.MemoryCommand) bool {
		if left.Add(-1) == 0 {
			(*stop.Load())()
		}
		return false
	}
	address := h.tcp()
	for point := int64(0); ; point++ {
		ctx, cancel := context.WithCancel(t.Context())
		stop.Store(&cancel)
		left.Store(point)
		if point == 0 {
			cancel()
		}
		s, err := pull.Open(ctx, h.rooted(address), pull.Options{})
		if err == nil {
			err = s.ToFile(ctx, path, all)
			s.Close()
		}
		cancel()
		if err == nil {
			break
		}
		if !errors.Is(err, context.Canceled) || !errors.Is(err, wire.Canceled) {
			t.Fatalf("point %d: %v", point, err)
		}
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, content) {
		t.Errorf("other bytes, or %v", err)
	}
}

// A link that breaks again and again is dialed again, as long as something comes
// over it; also while the surface is being written.
func TestBreakingLink(t *testing.T) {
	const chunk = 64 * kib
	content := random(12*mib + 5)
	for _, kind := range []string{"cut", "flip"} {
		h := grow(t, chunk, nil)
		h.add(content[:6*mib])
		s := open(t, h.rootless(proxied(t, h.tcp(), fault{kind, 3 * mib})), pull.Options{})
		var got bytes.Buffer
		r, w := io.Pipe()
		done := make(chan error)
		go func() {
			_, err := s.CopyTo(t.Context(), w, all)
			w.CloseWithError(err)
			done <- err
		}()
		if _, err := io.CopyN(&got, r, 6*mib); err != nil {
			t.Fatal(err)
		}
		h.add(content[6*mib:])
		h.seal()
		if _, err := io.Copy(&got, r); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil || !bytes.Equal(got.Bytes(), content) {
			t.Errorf("%s: other bytes, or %v", kind, err)
		}
		lost := 0
		for _, source := range s.Sources() {
			if source.Err != nil {
				lost++
			}
		}
		if lost < 3 {
			t.Errorf("%s: the link broke %d times", kind, lost)
		}
	}
}
