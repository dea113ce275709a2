// SPDX-License-Identifier: Apache-2.0

package pull_test

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/memspan/memspan/surface"
	"github.com/memspan/memspan/wire"
	"github.com/memspan/memspan/wire/control"
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		child()
		return
	}
	goleak.VerifyTestMain(m)
}

// A host serves one surface, as the daemon does, or worse: its hooks make it
// slow, lie and die.
type host struct {
	tb     testing.TB
	ticket *surface.Ticket

	mu       sync.Mutex
	cond     *sync.Cond
	manifest *surface.Manifest // with the digests so far
	stored   []byte
	have     func(i int64) bool // nil: all that is there
	sealed   bool
	failed   error
	sequence uint32
	conns    map[net.Conn]struct{}
	closed   bool
	reads    int64
	given    int64

	// onRead answers a read in the host's place if it returns true.
	onRead func(c *wire.Conn, h wire.Header, m wire.MemoryCommand) bool
	// onDigests may change what is told.
	onDigests func(first int64, digests []byte) []byte
	// onState may change what is told.
	onState func(*control.SurfaceState)

	work sync.WaitGroup
	lns  []net.Listener
}

// expose makes a host of content. Without key it is not encrypted.
func expose(tb testing.TB, content []byte, chunk int64, key *surface.Key) *host {
	h := grow(tb, chunk, key)
	h.add(content)
	h.seal()
	return h
}

// grow makes a host whose surface is still being written.
func grow(tb testing.TB, chunk int64, key *surface.Key) *host {
	t := &surface.Ticket{ID: surface.NewID(), Key: key}
	rand.Read(t.Secret[:])
	h := &host{tb: tb, ticket: t, conns: make(map[net.Conn]struct{})}
	h.cond = sync.NewCond(&h.mu)
	h.manifest = &surface.Manifest{ID: t.ID, Name: "test", Chunk: chunk, Encrypted: key != nil, Created: time.UnixMilli(1e12).UTC()}
	tb.Cleanup(h.close)
	return h
}

// mirror makes a host of what another has sealed, that has some of the chunks.
func (h *host) mirror(have func(i int64) bool) *host {
	m := &host{tb: h.tb, ticket: h.ticket, manifest: h.manifest, stored: bytes.Clone(h.stored), sealed: true, have: have, conns: make(map[net.Conn]struct{})}
	m.cond = sync.NewCond(&m.mu)
	h.tb.Cleanup(m.close)
	return m
}

// add appends content; it must be whole chunks, but for the last of all.
func (h *host) add(content []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	m := *h.manifest
	m.Digests = append([]surface.Digest(nil), m.Digests...)
	for len(content) > 0 {
		n := min(int64(len(content)), m.Chunk)
		stored := content[:n]
		if h.ticket.Key != nil {
			stored = surface.NewSealer(*h.ticket.Key, m.ID).Seal(nil, int64(len(m.Digests)), stored)
		}
		h.stored = append(h.stored, stored...)
		m.Digests = append(m.Digests, surface.Sum(stored))
		m.Size += n
		content = content[n:]
	}
	h.manifest = &m
	h.changeLocked()
}

func (h *host) seal() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sealed = true
	h.changeLocked()
}

func (h *host) fail(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failed = err
	h.changeLocked()
}

func (h *host) changeLocked() {
	h.sequence++
	h.cond.Broadcast()
}

// rooted returns the ticket with the manifest's root.
func (h *host) rooted(addresses ...string) *surface.Ticket {
	t := *h.ticket
	root := h.manifest.Root()
	t.Root, t.Addresses = &root, addresses
	return &t
}

// rootless returns the ticket without.
func (h *host) rootless(addresses ...string) *surface.Ticket {
	t := *h.ticket
	t.Addresses = addresses
	return &t
}

func (h *host) tcp() string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		h.tb.Fatal(err)
	}
	h.listen(ln)
	return "tcp://" + ln.Addr().String()
}

func (h *host) listen(ln net.Listener) {
	h.lns = append(h.lns, ln)
	h.work.Go(func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			h.mu.Lock()
			if h.closed {
				nc.Close()
			}
			h.conns[nc] = struct{}{}
			h.mu.Unlock()
			h.work.Go(func() {
				h.serve(nc)
				nc.Close()
			})
		}
	})
}

// cut ends all connections.
func (h *host) cut() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for nc := range h.conns {
		nc.Close()
	}
}

func (h *host) close() {
	h.mu.Lock()
	h.closed = true
	h.changeLocked()
	h.mu.Unlock()
	for _, ln := range h.lns {
		ln.Close()
	}
	h.cut()
	h.work.Wait()
}

func answer(c *wire.Conn, h wire.Header, v any) error {
	data, _ := json.Marshal(v)
	return c.WriteFrame(wire.Header{Kind: h.Kind, ID: h.ID, Flags: wire.FlagReply}, nil, data)
}

func refuse(c *wire.Conn, h wire.Header, code wire.Code, message string) error {
	var prefix []byte
	if h.Kind == wire.KindRead {
		prefix = wire.AppendResult(nil, code.VkResult())
	}
	return c.WriteFrame(wire.Header{Kind: h.Kind, ID: h.ID, Flags: wire.FlagReply | wire.FlagError}, prefix,
		(&wire.Error{Code: code, Message: message}).Append(nil))
}

func (h *host) serve(nc net.Conn) {
	_, plain := nc.(*net.TCPConn)
	var binding [32]byte
	if tc, ok := nc.(*tls.Conn); ok {
		if tc.Handshake() != nil {
			return
		}
		state := tc.ConnectionState()
		key, _ := state.ExportKeyingMaterial(control.BindingLabel, nil, 32)
		copy(binding[:], key)
	}
	c := wire.NewConn(nc, wire.Config{Sums: plain})
	var hello control.Hello
	hd, err := c.ReadHeader()
	if err != nil {
		return
	}
	data := make([]byte, hd.Raw)
	if c.ReadData(data) != nil || json.Unmarshal(data, &hello) != nil || !hello.Guest {
		return
	}
	var nonce [32]byte
	if plain {
		rand.Read(nonce[:])
	}
	if answer(c, hd, control.Welcome{Protocol: wire.Version, BlockSize: 1 << 20, Nonce: nonce[:]}) != nil {
		return
	}
	opened := false
	var waits sync.WaitGroup
	gone := make(chan struct{})
	defer waits.Wait()
	defer func() {
		close(gone)
		h.mu.Lock()
		h.cond.Broadcast()
		h.mu.Unlock()
	}()
	for {
		hd, err := c.ReadHeader()
		if err != nil {
			return
		}
		if hd.Kind == wire.KindRead {
			prefix, err := c.ReadPrefix(nil)
			if err != nil {
				return
			}
			m, err := wire.ParseRead(prefix)
			if err != nil || !opened {
				return
			}
			if h.onRead != nil && h.onRead(c, hd, m) {
				continue
			}
			if h.read(c, hd, m) != nil {
				return
			}
			continue
		}
		data := make([]byte, hd.Raw)
		if c.ReadData(data) != nil {
			return
		}
		var req control.Request
		json.Unmarshal(data, &req)
		switch req.Op {
		case control.OpSurfaceOpen:
			var open control.SurfaceOpen
			json.Unmarshal(req.Args, &open)
			if len(open.Proof) != 32 || open.ID != h.ticket.ID.String() {
				refuse(c, hd, wire.Unauthenticated, "no")
				continue
			}
			if _, err := h.ticket.Verify(open.Caveats, surface.Proof(open.Proof), nonce, binding); err != nil {
				refuse(c, hd, wire.Unauthenticated, err.Error())
				continue
			}
			opened = true
			h.mu.Lock()
			header := h.manifest.AppendHeader(nil)
			state := h.stateLocked(0)
			h.mu.Unlock()
			err = answer(c, hd, control.SurfaceOpened{Handle: 7, Header: header, State: state})
		case control.OpSurfaceWait:
			var wait control.SurfaceWait
			json.Unmarshal(req.Args, &wait)
			waits.Go(func() {
				h.mu.Lock()
				for h.sequence == wait.Sequence && !h.closed && !ended(gone) {
					h.cond.Wait()
				}
				state, failed := h.stateLocked(wait.From), h.failed
				h.mu.Unlock()
				if failed != nil {
					refuse(c, hd, wire.Revoked, failed.Error())
					return
				}
				answer(c, hd, state)
			})
		case control.OpSurfaceDigests:
			var d control.SurfaceDigests
			json.Unmarshal(req.Args, &d)
			h.mu.Lock()
			var digests []byte
			for _, digest := range h.manifest.Digests[d.First : d.First+d.Count] {
				digests = append(digests, digest[:]...)
			}
			h.mu.Unlock()
			if h.onDigests != nil {
				digests = h.onDigests(d.First, digests)
			}
			err = answer(c, hd, control.Digests{Digests: digests})
		default:
			err = answer(c, hd, struct{}{})
		}
		if err != nil {
			return
		}
	}
}

func ended(gone chan struct{}) bool {
	select {
	case <-gone:
		return true
	default:
		return false
	}
}

// maxRuns is how many runs the host tells at a time.
const maxRuns = 3

func (h *host) stateLocked(from int64) control.SurfaceState {
	m := h.manifest
	st := control.SurfaceState{Sequence: h.sequence, Sealed: h.sealed, Size: m.Size, Count: m.Count()}
	for i := from; i < m.Count(); i++ {
		if h.have != nil && !h.have(i) {
			continue
		}
		if n := len(st.Have); n > 0 && st.Have[n-1].First+st.Have[n-1].Count == i {
			st.Have[n-1].Count++
			continue
		}
		if len(st.Have) == maxRuns {
			st.More = true
			break
		}
		st.Have = append(st.Have, control.ChunkRun{First: i, Count: 1})
	}
	if h.sealed {
		root := m.Root()
		st.Root = root[:]
	}
	if h.onState != nil {
		h.onState(&st)
	}
	return st
}

// read answers a read.
func (h *host) read(c *wire.Conn, hd wire.Header, m wire.MemoryCommand) error {
	h.mu.Lock()
	h.reads++
	h.given += int64(m.Size)
	size := uint64(len(h.stored))
	if m.Offset > size || m.Size > size-m.Offset {
		h.mu.Unlock()
		return refuse(c, hd, wire.OutOfRange, "")
	}
	data := h.stored[m.Offset : m.Offset+m.Size]
	h.mu.Unlock()
	return reply(c, hd, data)
}

func reply(c *wire.Conn, hd wire.Header, data []byte) error {
	return c.WriteFrame(wire.Header{Kind: wire.KindRead, ID: hd.ID, Flags: wire.FlagReply}, wire.AppendResult(nil, 0), data)
}
