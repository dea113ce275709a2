// SPDX-License-Identifier: Apache-2.0

package pull_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/server"
	"github.com/memspan/memspan/surface"
	"github.com/memspan/memspan/surface/pull"
	"github.com/memspan/memspan/wire"
)

// A daemon is a server at work, its client, and where it listens.
type daemon struct {
	client         *memspan.Client
	unix, tcp, tls string
	stop           func()
}

func serve(t testing.TB) *daemon {
	t.Helper()
	srv, err := server.New(t.Context(), server.Config{Token: "token", HostBudget: 1 << 30, SurfaceBudget: 3 << 30})
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	var once sync.Once
	d := &daemon{stop: func() {
		once.Do(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			srv.Shutdown(ctx)
			work.Wait()
		})
	}}
	t.Cleanup(d.stop)
	cert, fingerprint, err := server.SelfSigned(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	listen := func(network, address string) net.Listener {
		ln, err := net.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		return ln
	}
	unix, tcp, secure := listen("unix", filepath.Join(t.TempDir(), "s")), listen("tcp", "127.0.0.1:0"), listen("tcp", "127.0.0.1:0")
	d.unix = "unix:" + unix.Addr().String()
	d.tcp = "tcp://" + tcp.Addr().String()
	d.tls = "tls://" + secure.Addr().String() + "#" + fingerprint
	for _, ln := range []net.Listener{unix, tcp, server.TLSListener(secure, &tls.Config{Certificates: []tls.Certificate{cert}})} {
		work.Go(func() { srv.Serve(context.Background(), ln) })
	}
	if d.client, err = memspan.Dial(t.Context(), d.unix, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.client.Close() })
	return d
}

// at returns the ticket with other addresses.
func at(t *surface.Ticket, addresses ...string) *surface.Ticket {
	other := *t
	other.Addresses = addresses
	return &other
}

// The daemon's surfaces, by whatever way: the same bytes.
func TestDaemon(t *testing.T) {
	d := serve(t)
	content := random(5*mib + 1234)
	clear(content[mib : 2*mib])
	for _, encrypt := range []bool{false, true} {
		e, err := d.client.ExposeBytes(t.Context(), content, memspan.ExposeOptions{Name: "n", Encrypt: encrypt, Chunk: 256 * kib})
		if err != nil {
			t.Fatal(err)
		}
		for _, address := range []string{d.unix, d.tcp, d.tls} {
			for _, o := range []pull.Options{{}, {Copy: true}} {
				s := open(t, at(e.Ticket, address), o)
				if want := address == d.unix && !o.Copy; s.Direct() != want {
					t.Errorf("%s, %+v: direct %v", address, o, s.Direct())
				}
				checkTargets(t, s, content)
				if err := s.Verify(t.Context()); err != nil {
					t.Error(err)
				}
				if err := s.Wait(t.Context(), 0, int64(len(content))); err != nil {
					t.Error(err)
				}
				if err := s.Wait(t.Context(), 1, int64(len(content))); !errors.Is(err, pull.ErrRange) {
					t.Errorf("wait behind the end: %v", err)
				}
				r := surface.Range{Offset: 300*kib + 1, Length: mib}
				m, err := s.ToMemory(t.Context(), r)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(m.Bytes(), content[r.Offset:][:r.Length]) {
					t.Error("other bytes in the range")
				}
				m.Close()
				mem, err := s.Bytes()
				switch {
				case s.Direct() && !encrypt:
					if err != nil || !bytes.Equal(mem, content) {
						t.Errorf("other bytes in the memory, or %v", err)
					}
				case err == nil:
					t.Error("Bytes of what is not mapped")
				}
				s.Close()
			}
		}
		// A narrower ticket is served by copy.
		narrow, err := at(e.Ticket, d.unix).Derive(surface.Range{Offset: mib, Length: 100})
		if err != nil {
			t.Fatal(err)
		}
		s := open(t, narrow, pull.Options{})
		if s.Direct() {
			t.Error("all of the memory for a part")
		}
		p := make([]byte, 101)
		if _, err := s.ReadAt(p[:100], mib); err != nil || !bytes.Equal(p[:100], content[mib:mib+100]) {
			t.Errorf("read within: %v", err)
		}
		if _, err := s.ReadAt(p, mib); !errors.Is(err, pull.ErrRange) {
			t.Errorf("read beyond: %v", err)
		}
	}
}

func TestDaemonReader(t *testing.T) {
	d := serve(t)
	content := random(100*kib + 5)
	clear(content[32*kib : 64*kib])
	for _, encrypt := range []bool{false, true} {
		e, err := d.client.ExposeBytes(t.Context(), content, memspan.ExposeOptions{Encrypt: encrypt, Chunk: 16 * kib})
		if err != nil {
			t.Fatal(err)
		}
		for _, address := range []string{d.unix, d.tls} {
			s := open(t, at(e.Ticket, address), pull.Options{})
			if err := iotest.TestReader(s.Reader(t.Context()), content); err != nil {
				t.Error(err)
			}
		}
	}
}

// Empty surfaces are surfaces.
func TestEmpty(t *testing.T) {
	d := serve(t)
	w, err := d.client.Expose(t.Context(), -1, memspan.ExposeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	e, err := w.Seal()
	if err != nil {
		t.Fatal(err)
	}
	for _, address := range []string{d.unix, d.tcp} {
		s := open(t, at(e.Ticket, address), pull.Options{})
		checkTargets(t, s, nil)
		if n, err := s.ReadAt(make([]byte, 1), 0); n != 0 || err != io.EOF {
			t.Errorf("read: %d, %v", n, err)
		}
	}
}

// Who pulls while it is written gets it as it comes, on one machine and on two.
func TestDaemonStream(t *testing.T) {
	d := serve(t)
	const chunk = 16 * kib
	content := random(10*chunk + 77)
	for _, encrypt := range []bool{false, true} {
		w, err := d.client.Expose(t.Context(), -1, memspan.ExposeOptions{Chunk: chunk, Encrypt: encrypt})
		if err != nil {
			t.Fatal(err)
		}
		var surfaces []*pull.Surface
		var work sync.WaitGroup
		for _, address := range []string{d.unix, d.tcp, d.tls} {
			s := open(t, at(w.Ticket(), address), pull.Options{})
			surfaces = append(surfaces, s)
			if _, err := s.Bytes(); err == nil {
				t.Error("Bytes of what is not sealed")
			}
			work.Go(func() {
				var got bytes.Buffer
				if n, err := s.CopyTo(t.Context(), &got, all); err != nil || n != int64(len(content)) || !bytes.Equal(got.Bytes(), content) {
					t.Errorf("%s, %v: copied %d other bytes, or %v", address, encrypt, n, err)
				}
			})
			work.Go(func() {
				if n, err := s.Reader(t.Context()).Seek(-1, io.SeekEnd); err != nil || n != int64(len(content))-1 {
					t.Errorf("seek: %d, %v", n, err)
				}
			})
			work.Go(func() {
				p := make([]byte, 200)
				if n, err := s.ReadAt(p, 10*chunk); n != 77 || err != io.EOF || !bytes.Equal(p[:n], content[10*chunk:]) {
					t.Errorf("%s, %v: read at the end: %d, %v", address, encrypt, n, err)
				}
			})
		}
		for i := range 10 {
			if _, err := w.Write(content[i*chunk : (i+1)*chunk]); err != nil {
				t.Fatal(err)
			}
			for _, s := range surfaces {
				p := make([]byte, 100)
				if _, err := s.ReadAt(p, int64(i)*chunk+chunk-100); err != nil || !bytes.Equal(p, content[(i+1)*chunk-100:(i+1)*chunk]) {
					t.Fatalf("chunk %d: %v", i, err)
				}
			}
		}
		if _, err := w.Write(content[10*chunk:]); err != nil {
			t.Fatal(err)
		}
		e, err := w.Seal()
		if err != nil {
			t.Fatal(err)
		}
		work.Wait()
		for _, s := range surfaces {
			checkTargets(t, s, content)
			if err := s.Verify(t.Context()); err != nil {
				t.Error(err)
			}
		}
		_ = e
	}
}

// What is mapped outlives who exposed it; who waits is told that he died.
func TestDaemonDies(t *testing.T) {
	d := serve(t)
	content := random(mib)
	e, err := d.client.ExposeBytes(t.Context(), content, memspan.ExposeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w, err := d.client.Expose(t.Context(), -1, memspan.ExposeOptions{Chunk: 4 * kib})
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, at(e.Ticket, d.unix), pull.Options{})
	done := make(chan error)
	waiters := 0
	for _, address := range []string{d.unix, d.tcp} {
		s := open(t, at(w.Ticket(), address), pull.Options{})
		for _, wait := range []func() error{
			func() error { return s.Wait(t.Context(), 0, 1) },
			func() error { _, err := s.ReadAt(make([]byte, 1), 0); return err },
			func() error { _, err := s.ToMemory(t.Context(), all); return err },
			func() error { _, err := s.CopyTo(t.Context(), io.Discard, all); return err },
			func() error { return s.ToFile(t.Context(), filepath.Join(t.TempDir(), "f"), all) },
		} {
			waiters++
			go func() { done <- wait() }()
		}
	}
	d.client.Close()
	d.stop()
	for range waiters {
		if err := <-done; err == nil {
			t.Error("got what was never written")
		}
	}
	if mem, err := s.Bytes(); err != nil || !bytes.Equal(mem, content) {
		t.Errorf("after its server: %v", err)
	}
	path := filepath.Join(t.TempDir(), "file")
	if err := s.ToFile(t.Context(), path, all); err != nil {
		t.Error(err)
	}
	if got, _ := os.ReadFile(path); !bytes.Equal(got, content) {
		t.Error("other bytes in the file")
	}
}

func TestDaemonRefuses(t *testing.T) {
	d := serve(t)
	content := random(100 * kib)
	once, err := d.client.ExposeBytes(t.Context(), content, memspan.ExposeOptions{ReadOnce: true, Chunk: 16 * kib})
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, at(once.Ticket, d.unix), pull.Options{})
	if s.Direct() {
		t.Error("what is to be read once was mapped")
	}
	late := open(t, at(once.Ticket, d.tcp), pull.Options{})
	var got bytes.Buffer
	if _, err := s.CopyTo(t.Context(), &got, all); err != nil || !bytes.Equal(got.Bytes(), content) {
		t.Errorf("the first puller: %v", err)
	}
	if _, err := late.CopyTo(t.Context(), new(bytes.Buffer), all); !errors.Is(err, wire.Taken) {
		t.Errorf("who read later: %v", err)
	}
	if _, err := pull.Open(t.Context(), at(once.Ticket, d.tcp), pull.Options{}); !errors.Is(err, wire.Taken) {
		t.Errorf("who came later: %v", err)
	}
	if _, err := s.CopyTo(t.Context(), &got, all); err == nil {
		t.Error("it was given out twice")
	}
	gone, err := d.client.ExposeBytes(t.Context(), content, memspan.ExposeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.client.Revoke(t.Context(), gone.Ticket.ID); err != nil {
		t.Fatal(err)
	}
	for _, address := range []string{d.unix, d.tcp} {
		if _, err := pull.Open(t.Context(), at(gone.Ticket, address), pull.Options{}); !errors.Is(err, wire.Revoked) {
			t.Errorf("after it was revoked: %v", err)
		}
	}
}

// More than 32 bits: 5 GiB of which almost nothing was ever written.
func TestFiveGiB(t *testing.T) {
	d := serve(t)
	const size = 5<<30 + 12345
	path := filepath.Join(t.TempDir(), "sparse")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	parts := map[int64][]byte{0: []byte("begin"), 4<<30 - 3: []byte("across 4 GiB"), size - 3: []byte("end")}
	for off, text := range parts {
		if _, err := f.WriteAt(text, off); err != nil {
			t.Fatal(err)
		}
	}
	e, err := d.client.ExposeFile(t.Context(), f, memspan.ExposeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	memory := func() int64 {
		t.Helper()
		list, err := d.client.Surfaces(t.Context())
		if err != nil || len(list) != 1 {
			t.Fatalf("surfaces: %+v, %v", list, err)
		}
		return list[0].Memory
	}
	before := memory()
	for _, address := range []string{d.unix, d.tcp} {
		s := open(t, at(e.Ticket, address), pull.Options{})
		for off, text := range parts {
			p := make([]byte, len(text))
			if _, err := s.ReadAt(p, off); err != nil || !bytes.Equal(p, text) {
				t.Errorf("at %d: %q, %v", off, p, err)
			}
		}
		if err := s.Verify(t.Context()); address == d.unix && err != nil {
			t.Error(err)
		}
		path := filepath.Join(t.TempDir(), "file")
		if err := s.ToFile(t.Context(), path, all); err != nil {
			t.Fatal(err)
		}
		got, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer got.Close()
		for off, text := range parts {
			p := make([]byte, len(text))
			if _, err := got.ReadAt(p, off); err != nil || !bytes.Equal(p, text) {
				t.Errorf("in the file at %d: %q, %v", off, p, err)
			}
		}
		if info, err := got.Stat(); err != nil || info.Size() != size {
			t.Errorf("the file has %d bytes, %v", info.Size(), err)
		}
		if n := blocks(t, path); n > 8*mib {
			t.Errorf("the file takes %d bytes", n)
		}
	}
	// The exposer pays for what is there; who reads its holes costs nobody anything.
	if after := memory(); after != before {
		t.Errorf("read, it takes %d bytes of memory, and took %d", after, before)
	}
}

// A file that says less than it has, as those of /proc do, is not taken for what it says,
// whichever way its bytes go.
func TestFileOfMoreThanItSays(t *testing.T) {
	d := serve(t)
	f, err := os.Open("/proc/version")
	if err != nil {
		t.Skip(err)
	}
	defer f.Close()
	for _, encrypt := range []bool{false, true} {
		if e, err := d.client.ExposeFile(t.Context(), f, memspan.ExposeOptions{Encrypt: encrypt}); !errors.Is(err, memspan.ErrConflict) {
			t.Errorf("encrypted %v: %+v, %v; want ErrConflict", encrypt, e, err)
		}
	}
}
