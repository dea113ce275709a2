// SPDX-License-Identifier: Apache-2.0

package host_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/memspan/memspan/sharedbuf"
	"github.com/memspan/memspan/sharedbuf/host"
)

func TestMain(m *testing.M) {
	if os.Getenv(guestVariable) != "" {
		guestMain()
		return
	}
	goleak.VerifyTestMain(m)
}

// serve runs a host on a listener until the test ends or stop is called.
func serve(t testing.TB, ln net.Listener, config host.Config) (h *host.Host, stop func()) {
	t.Helper()
	h, err := host.New(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Serve(ctx, ln) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := errors.Join(<-done, h.Close()); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return h, stop
}

func tcp(t testing.TB) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func unixSocket(t testing.TB) net.Listener {
	t.Helper()
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func dial(t testing.TB, ln net.Listener, dir string) *sharedbuf.Client {
	t.Helper()
	address := ln.Addr().String()
	c, err := sharedbuf.Dial(t.Context(), address, sharedbuf.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func alloc(t testing.TB, c *sharedbuf.Client, size int64) *sharedbuf.Buffer {
	t.Helper()
	b, err := c.Alloc(t.Context(), size)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func scribble(b []byte) {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], uint64(len(b)))
	rand.NewChaCha8(seed).Read(b)
}

// kinds runs a test with buffers that are files, with buffers without a name, and
// with buffers whose bytes are sent.
func kinds(t *testing.T, f func(t *testing.T, ln net.Listener, dir string)) {
	t.Run("file", func(t *testing.T) { f(t, tcp(t), t.TempDir()) })
	t.Run("memfd", func(t *testing.T) { f(t, unixSocket(t), "") })
	t.Run("channel", func(t *testing.T) { f(t, tcp(t), "") })
}

func TestOperations(t *testing.T) {
	kinds(t, func(t *testing.T, ln net.Listener, dir string) {
		serve(t, ln, host.Config{Dir: dir})
		c := dial(t, ln, dir)
		for _, size := range []int64{1, 3, 4096, 300_000, 5 << 20} {
			b := alloc(t, c, size)
			if b.Size() != size || int64(len(b.Bytes())) != size {
				t.Fatalf("size %d, %d bytes", b.Size(), len(b.Bytes()))
			}
			scribble(b.Bytes())
			before := bytes.Clone(b.Bytes())
			r, err := b.Process(t.Context(), sharedbuf.Process())
			if err != nil {
				t.Fatal(err)
			}
			if r.Operation != "process" || r.Bytes != size || r.BufferID != b.ID() || r.Status != "processed" {
				t.Errorf("result %+v", r)
			}
			if !bytes.Equal(before, b.Bytes()) {
				t.Error("process changed the buffer")
			}
			r, err = b.Process(t.Context(), sharedbuf.Checksum())
			if want := fmt.Sprint(crc32.Checksum(before, crc32.MakeTable(crc32.Castagnoli))); err != nil || string(r.Value) != want {
				t.Errorf("checksum %v, %v, want %s", r, err, want)
			}
			// A chain, whose last step sees what the first wrote.
			r, err = b.Process(t.Context(), sharedbuf.Fill(0xDEADBEEF), sharedbuf.Verify(0xDEADBEEF), sharedbuf.Checksum())
			if err != nil || r.Bytes != 3*size || len(r.Steps) != 3 || r.Steps[1].Operation != "verify" || r.Steps[1].Bytes != size {
				t.Errorf("chain: %+v, %v", r, err)
			}
			if b.Bytes()[0] != 0xEF {
				t.Errorf("filled with %#x", b.Bytes()[0])
			}
			b.Bytes()[size-1] ^= 1
			_, err = b.Process(t.Context(), sharedbuf.Fill(7), sharedbuf.Verify(8))
			if !errors.Is(err, sharedbuf.ErrMismatch) || !strings.Contains(err.Error(), "step 2, verify") || !strings.Contains(err.Error(), b.Path()) {
				t.Errorf("a chain whose second step fails: %v", err)
			}
			// After a failure the buffer is still mapped and the guest's.
			if b.Bytes()[0] != 7 || b.Generation()%2 != 0 {
				t.Error("the buffer is not the guest's after a failure")
			}
			if err := errors.Join(b.Free(), b.Free()); err != nil {
				t.Error(err)
			}
			if _, err := b.Process(t.Context(), sharedbuf.Process()); !errors.Is(err, sharedbuf.ErrFreed) {
				t.Errorf("after Free: %v", err)
			}
		}
		noFiles(t, dir)
	})
}

// noFiles looks that nothing is left in a directory.
func noFiles(t *testing.T, dir string) {
	t.Helper()
	if dir == "" {
		return
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		t.Errorf("%s is left behind", e.Name())
	}
}

func TestRefusedRequests(t *testing.T) {
	kinds(t, func(t *testing.T, ln net.Listener, dir string) {
		serve(t, ln, host.Config{Dir: dir, MaxBuffer: 1 << 20})
		c := dial(t, ln, dir)
		b := alloc(t, c, 4096)
		for name, test := range map[string]struct {
			chain []sharedbuf.Step
			want  error
		}{
			"no operation":      {nil, sharedbuf.ErrInvalid},
			"unknown operation": {[]sharedbuf.Step{{Operation: "frobnicate"}}, sharedbuf.ErrOperation},
			"no pattern":        {[]sharedbuf.Step{{Operation: "fill"}}, sharedbuf.ErrInvalid},
			"other arguments":   {[]sharedbuf.Step{sharedbuf.Operation("fill", map[string]int{"patern": 1})}, sharedbuf.ErrInvalid},
			"not JSON":          {[]sharedbuf.Step{sharedbuf.Operation("fill", func() {})}, sharedbuf.ErrInvalid},
			"a long chain":      {make([]sharedbuf.Step, 100), sharedbuf.ErrLimit},
		} {
			for i := range test.chain {
				if test.chain[i].Operation == "" {
					test.chain[i] = sharedbuf.Process()
				}
			}
			if _, err := b.Process(t.Context(), test.chain...); !errors.Is(err, test.want) {
				t.Errorf("%s: %v, want %v", name, err, test.want)
			}
		}
		big := alloc(t, c, 2<<20)
		if _, err := big.Process(t.Context(), sharedbuf.Process()); !errors.Is(err, sharedbuf.ErrLimit) {
			t.Errorf("too large: %v", err)
		}
		if _, err := c.Alloc(t.Context(), 0); !errors.Is(err, sharedbuf.ErrInvalid) {
			t.Errorf("no size: %v", err)
		}
		if _, err := c.Alloc(t.Context(), 1<<58); !errors.Is(err, sharedbuf.ErrNoSpace) {
			t.Errorf("no space: %v", err)
		}
		// All that leaves the connection as it was.
		if text, err := c.Echo(t.Context(), "still <there> & \u2028"); err != nil || text != "still <there> & \u2028" {
			t.Errorf("echo %q, %v", text, err)
		}
		if _, err := c.Echo(t.Context(), strings.Repeat("\u2028", 20000)); !errors.Is(err, sharedbuf.ErrLimit) {
			t.Errorf("a long echo: %v", err)
		}
	})
}

// invert is an operation as a program adds one.
func invert(c *host.Call) (any, error) {
	return nil, c.Each(func(_ int64, chunk []byte) error {
		for i := range chunk {
			chunk[i] = ^chunk[i]
		}
		return nil
	})
}

// held is an operation that goes on until it is let go or given up.
type held struct{ begun, release, ended chan struct{} }

func newHeld() *held {
	return &held{make(chan struct{}, 100), make(chan struct{}, 100), make(chan struct{}, 100)}
}

func (h *held) run(c *host.Call) (any, error) {
	h.begun <- struct{}{}
	defer func() { h.ended <- struct{}{} }()
	select {
	case <-h.release:
		return "released", nil
	case <-c.Context().Done():
		return nil, context.Cause(c.Context())
	}
}

func TestOwnOperationsAndPipelining(t *testing.T) {
	kinds(t, func(t *testing.T, ln net.Listener, dir string) {
		wait := newHeld()
		serve(t, ln, host.Config{Dir: dir, Operations: []host.Operation{
			{Name: "invert", Access: host.ReadWrite, Run: invert},
			{Name: "wait", Run: wait.run},
			{Name: "scribble", Run: invert}, // which does not say that it writes
		}})
		c := dial(t, ln, dir)
		b := alloc(t, c, 10_000)
		done := make(chan error, 1)
		go func() {
			r, err := b.Process(t.Context(), sharedbuf.Operation("wait", nil))
			if err == nil && string(r.Value) != `"released"` {
				err = fmt.Errorf("result %s", r.Value)
			}
			done <- err
		}()
		<-wait.begun
		// Another request overtakes it.
		other := alloc(t, c, 10_000)
		if _, err := other.Process(t.Context(), sharedbuf.Operation("invert", nil)); err != nil {
			t.Fatal(err)
		}
		if other.Bytes()[9_999] != 0xFF {
			t.Error("not inverted")
		}
		if b.Generation()%2 != 1 {
			t.Error("the host has the buffer, and its generation is even")
		}
		wait.release <- struct{}{}
		if err := <-done; err != nil {
			t.Error(err)
		}
		// A mapping that is read-only is: the fault is an error.
		if _, err := b.Process(t.Context(), sharedbuf.Operation("scribble", nil)); !errors.Is(err, sharedbuf.ErrTruncated) || b.Bytes()[0] != 0 {
			t.Errorf("a read-only operation wrote: %v", err)
		}
	})
}

func TestCancel(t *testing.T) {
	kinds(t, func(t *testing.T, ln net.Listener, dir string) {
		wait := newHeld()
		serve(t, ln, host.Config{Dir: dir, Operations: []host.Operation{{Name: "wait", Run: wait.run}}})
		c := dial(t, ln, dir)
		b := alloc(t, c, 100)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		process := func() {
			_, err := b.Process(ctx, sharedbuf.Operation("wait", nil))
			done <- err
		}
		go process()
		<-wait.begun
		cancel()
		if err := <-done; !errors.Is(err, sharedbuf.ErrCanceled) || !errors.Is(err, context.Canceled) {
			t.Errorf("canceled: %v", err)
		}
		<-wait.ended // given up, at the host
		ctx = context.WithoutCancel(ctx)
		go process()
		<-wait.begun
		if err := b.Free(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, sharedbuf.ErrFreed) {
			t.Errorf("freed: %v", err)
		}
		<-wait.ended // given up, at the host
		b = alloc(t, c, 100)
		go process()
		<-wait.begun
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, sharedbuf.ErrFreed) {
			t.Errorf("closed: %v", err)
		}
		<-wait.ended // given up, at the host
		if _, err := c.Alloc(t.Context(), 1); !errors.Is(err, sharedbuf.ErrClosed) {
			t.Errorf("Alloc after Close: %v", err)
		}
		noFiles(t, dir)
	})
}

func TestJobs(t *testing.T) {
	kinds(t, func(t *testing.T, ln net.Listener, dir string) {
		wait := newHeld()
		serve(t, ln, host.Config{Dir: dir, MaxInFlight: 3, Operations: []host.Operation{{Name: "wait", Run: wait.run}}})
		c := dial(t, ln, dir)
		b := alloc(t, c, 1<<20)
		start := func(chain ...sharedbuf.Step) *sharedbuf.Job {
			t.Helper()
			j, err := b.Start(t.Context(), chain...)
			if err != nil {
				t.Fatal(err)
			}
			return j
		}
		j := start(sharedbuf.Fill(9), sharedbuf.Operation("wait", nil), sharedbuf.Checksum())
		<-wait.begun
		if s, err := j.Status(t.Context()); err != nil || s.Done || s.Bytes != b.Size() || s.Total != 3*b.Size() || s.Job != j.ID() {
			t.Errorf("status %+v, %v", s, err)
		}
		if b.Generation()%2 != 1 {
			t.Error("the host has the buffer, and its generation is even")
		}
		results := make(chan error, 2)
		for range 2 {
			go func() {
				r, err := j.Wait(t.Context())
				if err == nil && (r.Bytes != 2*b.Size() || len(r.Steps) != 3 || r.Status != "processed") {
					err = fmt.Errorf("result %+v", r)
				}
				results <- err
			}()
		}
		wait.release <- struct{}{}
		if err := errors.Join(<-results, <-results); err != nil {
			t.Error(err)
		}
		if b.Generation()%2 != 0 || b.Bytes()[0] != 9 {
			t.Error("the buffer was not given back")
		}
		// Given up.
		j = start(sharedbuf.Operation("wait", nil))
		<-wait.begun
		if err := j.Cancel(t.Context()); err != nil {
			t.Error(err)
		}
		if _, err := j.Wait(t.Context()); !errors.Is(err, sharedbuf.ErrCanceled) {
			t.Errorf("canceled: %v", err)
		}
		if _, err := j.Status(t.Context()); !errors.Is(err, sharedbuf.ErrNotFound) {
			t.Errorf("status of a job that was told: %v", err)
		}
		// So many only; freeing the buffer ends them.
		jobs := []*sharedbuf.Job{start(sharedbuf.Process()), start(sharedbuf.Operation("wait", nil)), start(sharedbuf.Process())}
		if _, err := b.Start(t.Context(), sharedbuf.Process()); !errors.Is(err, sharedbuf.ErrLimit) {
			t.Errorf("a fourth job: %v", err)
		}
		if err := b.Free(); err != nil {
			t.Error(err)
		}
		for _, j := range jobs {
			if _, err := j.Wait(t.Context()); !errors.Is(err, sharedbuf.ErrFreed) {
				t.Errorf("job of a freed buffer: %v", err)
			}
		}
	})
}

// A host that goes takes its jobs with it, and no buffer.
func TestJobOfAHostThatGoes(t *testing.T) {
	kinds(t, func(t *testing.T, ln net.Listener, dir string) {
		wait := newHeld()
		_, stop := serve(t, ln, host.Config{Dir: dir, Operations: []host.Operation{{Name: "wait", Run: wait.run}}})
		b := alloc(t, dial(t, ln, dir), 100)
		j, err := b.Start(t.Context(), sharedbuf.Operation("wait", nil))
		if err != nil {
			t.Fatal(err)
		}
		<-wait.begun
		stop()
		<-wait.ended
		for range 2 {
			if _, err := j.Wait(t.Context()); !errors.Is(err, sharedbuf.ErrPeerLost) {
				t.Errorf("Wait: %v", err)
			}
		}
		if b.Generation()%2 != 0 {
			t.Error("the buffer was not given back")
		}
	})
}

// One guest, a thousand buffers, many goroutines.
func TestManyBuffers(t *testing.T) {
	kinds(t, func(t *testing.T, ln net.Listener, dir string) {
		serve(t, ln, host.Config{Dir: dir})
		c := dial(t, ln, dir)
		const guests, each = 20, 50
		var work sync.WaitGroup
		var mu sync.Mutex
		ids := make(map[uint32]bool)
		for g := range guests {
			work.Go(func() {
				var buffers []*sharedbuf.Buffer
				for i := range each {
					b, err := c.Alloc(t.Context(), 4096)
					if err != nil {
						t.Error(err)
						return
					}
					buffers = append(buffers, b)
					if _, err := b.Process(t.Context(), sharedbuf.Fill(uint32(g*each+i))); err != nil {
						t.Error(err)
					}
				}
				for i, b := range buffers {
					mu.Lock()
					if ids[b.ID()] {
						t.Errorf("id %d twice", b.ID())
					}
					ids[b.ID()] = true
					mu.Unlock()
					if got := binary.LittleEndian.Uint32(b.Bytes()); got != uint32(g*each+i) {
						t.Errorf("buffer holds %d, want %d", got, g*each+i)
					}
					if i%2 == 0 {
						if err := b.Free(); err != nil {
							t.Error(err)
						}
					} // Close frees the others
				}
			})
		}
		work.Wait()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		noFiles(t, dir)
	})
}

func TestHostRestart(t *testing.T) {
	kinds(t, func(t *testing.T, ln net.Listener, dir string) {
		_, stop := serve(t, ln, host.Config{Dir: dir})
		c := dial(t, ln, dir)
		b := alloc(t, c, 5000)
		if _, err := b.Process(t.Context(), sharedbuf.Fill(1)); err != nil {
			t.Fatal(err)
		}
		stop()
		// The host is gone: an error, and the buffer stays the guest's.
		if _, err := b.Process(t.Context(), sharedbuf.Fill(2)); !errors.Is(err, sharedbuf.ErrPeerLost) {
			t.Errorf("without a host: %v", err)
		}
		if b.Bytes()[0] != 1 {
			t.Error("the buffer changed")
		}
		again, err := net.Listen(ln.Addr().Network(), ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		serve(t, again, host.Config{Dir: dir})
		if _, err := b.Process(t.Context(), sharedbuf.Verify(1)); err != nil {
			t.Errorf("after the restart: %v", err)
		}
	})
}

func TestNewRefuses(t *testing.T) {
	for name, config := range map[string]host.Config{
		"no directory":   {Dir: filepath.Join(t.TempDir(), "none")},
		"negative limit": {MaxBuffer: -1},
		"taken name":     {Operations: []host.Operation{{Name: "fill", Run: invert}}},
		"no name":        {Operations: []host.Operation{{Run: invert}}},
		"no function":    {Operations: []host.Operation{{Name: "x"}}},
		"unknown access": {Operations: []host.Operation{{Name: "x", Access: 7, Run: invert}}},
	} {
		if h, err := host.New(config); err == nil {
			t.Errorf("%s: no error", name)
			h.Close()
		}
	}
}

func decode[T any](t testing.TB, raw []byte) (v T) {
	t.Helper()
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatalf("%s: %v", raw, err)
	}
	return v
}
