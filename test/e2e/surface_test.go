// SPDX-License-Identifier: Apache-2.0

//go:build linux

package e2e

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/surface"
	"github.com/memspan/memspan/surface/pull"
	"github.com/memspan/memspan/wire/control"
	dialer "github.com/memspan/memspan/wire/dial"
)

// someBytes returns n bytes that nobody can foresee.
func someBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// ticketTo returns a ticket that leads to the daemon by one transport alone.
func (d *daemon) ticketTo(t *surface.Ticket, transport string) *surface.Ticket {
	to := *t
	to.Addresses = []string{d.Addresses[transport]}
	if transport == "unix" {
		to.Machine, _ = surface.ThisMachine()
	}
	return &to
}

// pullAll pulls all that a ticket opens, chunk by chunk.
func pullAll(t testing.TB, ticket *surface.Ticket, o pull.Options) ([]byte, error) {
	t.Helper()
	s, err := pull.Open(t.Context(), ticket, o)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	var b bytes.Buffer
	_, err = s.CopyTo(t.Context(), &b, surface.Range{})
	return b.Bytes(), err
}

// What is exposed, however, over whatever transport, is what is pulled.
func TestExposeAndPull(t *testing.T) {
	t.Parallel()
	d := start(t, settings{})
	content := someBytes(5<<20 + 321)
	file := filepath.Join(t.TempDir(), "f")
	check(t, os.WriteFile(file, content, 0o600))
	for _, transport := range transports {
		c := d.dial(t, transport)
		ctx := t.Context()
		span, err := c.Alloc(ctx, memspan.SpanConfig{Size: int64(len(content))})
		check(t, err)
		_, err = span.WriteAt(ctx, content, 0)
		check(t, err)
		ways := map[string]func(o memspan.ExposeOptions) (*memspan.Exposed, error){
			"bytes": func(o memspan.ExposeOptions) (*memspan.Exposed, error) { return c.ExposeBytes(ctx, content, o) },
			"file": func(o memspan.ExposeOptions) (*memspan.Exposed, error) {
				f, err := os.Open(file)
				check(t, err)
				defer f.Close()
				return c.ExposeFile(ctx, f, o)
			},
			"span": func(o memspan.ExposeOptions) (*memspan.Exposed, error) { return span.Expose(ctx, o) },
			"written": func(o memspan.ExposeOptions) (*memspan.Exposed, error) {
				w, err := c.Expose(ctx, -1, o)
				check(t, err)
				defer w.Close()
				for rest := content; len(rest) > 0; { // pieces that fit no chunk
					n := min(len(rest), 700_001)
					_, err := w.Write(rest[:n])
					check(t, err)
					rest = rest[n:]
				}
				return w.Seal()
			},
		}
		for way, expose := range ways {
			for _, encrypt := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/encrypted=%t", transport, way, encrypt), func(t *testing.T) {
					done, err := expose(memspan.ExposeOptions{Name: way, Encrypt: encrypt, Chunk: 64 << 10})
					check(t, err)
					if done.Size != int64(len(content)) || done.Ticket.Root == nil {
						t.Fatalf("exposed %d bytes, root %v", done.Size, done.Ticket.Root)
					}
					for _, by := range transports {
						got, err := pullAll(t, d.ticketTo(done.Ticket, by), pull.Options{Copy: true})
						check(t, err)
						if !bytes.Equal(got, content) {
							t.Errorf("by %s: %d other bytes", by, len(got))
						}
					}
					check(t, c.Revoke(ctx, done.Ticket.ID))
				})
			}
		}
	}
}

// A ticket opens its surface and nothing else, for as long as it is there.
func TestTicketsOpenWhatTheyShould(t *testing.T) {
	t.Parallel()
	d := start(t, settings{})
	c := d.dial(t, "unix")
	ctx := t.Context()
	content := someBytes(1 << 20)
	expose := func(o memspan.ExposeOptions) *surface.Ticket {
		t.Helper()
		o.Chunk = 64 << 10
		done, err := c.ExposeBytes(ctx, content, o)
		check(t, err)
		return d.ticketTo(done.Ticket, "tls")
	}
	refused := func(what string, ticket *surface.Ticket, kind error) {
		t.Helper()
		_, err := pullAll(t, ticket, pull.Options{})
		want(t, what, err, kind)
	}
	one, other := expose(memspan.ExposeOptions{}), expose(memspan.ExposeOptions{})

	stolen := *one
	stolen.ID = other.ID
	refused("the secret of another surface", &stolen, memspan.ErrUnauthenticated)
	unknown := *one
	unknown.ID = surface.NewID()
	refused("a surface that is not there", &unknown, memspan.ErrUnauthenticated)

	half, err := one.Derive(surface.Range{Offset: 0, Length: 512 << 10})
	check(t, err)
	got, err := pullAll(t, half, pull.Options{})
	check(t, err)
	if !bytes.Equal(got, content[:512<<10]) {
		t.Errorf("half a surface: %d other bytes", len(got))
	}
	wider := *half
	wider.Caveats = nil
	refused("a ticket whose caveat was taken away", &wider, memspan.ErrUnauthenticated)
	wider.Caveats = []surface.Caveat{surface.Range{Offset: 0, Length: 1 << 20}}
	refused("a ticket whose caveat was widened", &wider, memspan.ErrUnauthenticated)
	late, err := one.Derive(surface.Expiry{Time: time.Now().Add(-time.Second)})
	check(t, err)
	refused("a ticket that has expired", late, memspan.ErrExpired)

	short := expose(memspan.ExposeOptions{Lifetime: 5 * time.Second})
	eventually(t, "the surface has expired", func() bool {
		_, err := pullAll(t, short, pull.Options{})
		return errors.Is(err, memspan.ErrExpired)
	})

	once := expose(memspan.ExposeOptions{ReadOnce: true})
	got, err = pullAll(t, once, pull.Options{})
	check(t, err)
	if !bytes.Equal(got, content) {
		t.Errorf("read once: %d other bytes", len(got))
	}
	refused("a surface that was read once", once, memspan.ErrTaken)

	s, err := pull.Open(ctx, one, pull.Options{})
	check(t, err)
	defer s.Close()
	check(t, c.Revoke(ctx, one.ID))
	refused("a revoked surface", one, memspan.ErrRevoked)
	_, err = s.CopyTo(ctx, io.Discard, surface.Range{})
	want(t, "a revoked surface that was open", err, memspan.ErrRevoked)
	want(t, "to revoke it twice", c.Revoke(ctx, one.ID), memspan.ErrNotFound)
}

// A guest, who has a ticket and no token, can do nothing but pull.
func TestGuestsMayPullAlone(t *testing.T) {
	t.Parallel()
	d := start(t, settings{})
	stranger, err := memspan.Dial(t.Context(), d.Addresses["tcp"], nil)
	if err == nil {
		stranger.Close()
	}
	want(t, "to dial without a token", err, memspan.ErrUnauthenticated)
}

// Who pulls what is still being written gets it as it comes; if the writer goes
// the pull fails.
func TestPullWhileWritten(t *testing.T) {
	t.Parallel()
	d := start(t, settings{})
	for _, by := range transports {
		content := someBytes(3<<20 + 5)
		c := d.dial(t, "unix")
		w, err := c.Expose(t.Context(), -1, memspan.ExposeOptions{Chunk: 64 << 10})
		check(t, err)
		defer w.Close()
		s, err := pull.Open(t.Context(), d.ticketTo(w.Ticket(), by), pull.Options{Copy: true})
		check(t, err)
		defer s.Close()
		first := make([]byte, 100_000)
		read := make(chan error, 1)
		go func() {
			_, err := s.ReadAt(first, 0)
			read <- err
		}()
		_, err = w.Write(content[:200_000])
		check(t, err)
		check(t, <-read)
		if !bytes.Equal(first, content[:len(first)]) {
			t.Errorf("%s: the beginning is not what was written", by)
		}
		all := make(chan []byte, 1)
		go func() {
			var b bytes.Buffer
			_, err := s.CopyTo(t.Context(), &b, surface.Range{})
			read <- err
			all <- b.Bytes()
		}()
		_, err = w.Write(content[200_000:])
		check(t, err)
		_, err = w.Seal()
		check(t, err)
		check(t, <-read)
		if got := <-all; !bytes.Equal(got, content) {
			t.Errorf("%s: %d other bytes", by, len(got))
		}

		gone := d.dial(t, "tcp")
		w, err = gone.Expose(t.Context(), -1, memspan.ExposeOptions{})
		check(t, err)
		s, err = pull.Open(t.Context(), d.ticketTo(w.Ticket(), by), pull.Options{Copy: true})
		check(t, err)
		defer s.Close()
		go func() {
			_, err := s.CopyTo(t.Context(), io.Discard, surface.Range{})
			read <- err
		}()
		check(t, gone.Close())
		want(t, by+": a surface whose writer went", <-read, memspan.ErrPeerLost)
	}
}

// A surface that does not fit is refused, before anything is copied.
func TestSurfaceBudget(t *testing.T) {
	t.Parallel()
	d := start(t, settings{SurfaceBudget: 8 << 20})
	c := d.dial(t, "unix")
	done, err := c.ExposeBytes(t.Context(), make([]byte, 6<<20), memspan.ExposeOptions{})
	check(t, err)
	_, err = c.ExposeBytes(t.Context(), make([]byte, 6<<20), memspan.ExposeOptions{})
	want(t, "a second one", err, memspan.ErrBudget)
	check(t, c.Revoke(t.Context(), done.Ticket.ID))
	_, err = c.ExposeBytes(t.Context(), make([]byte, 6<<20), memspan.ExposeOptions{})
	check(t, err)
}

// A daemon that pulls for its clients hands them the memory, and serves on what it
// has gathered to others.
func TestReplica(t *testing.T) {
	t.Parallel()
	origin, near := start(t, settings{}), start(t, settings{})
	content := someBytes(4<<20 + 17)
	done, err := origin.dial(t, "unix").ExposeBytes(t.Context(), content, memspan.ExposeOptions{Chunk: 64 << 10, Name: "it"})
	check(t, err)
	ticket := origin.ticketTo(done.Ticket, "tls")
	text, err := ticket.Text()
	check(t, err)

	conn, err := dialer.Dial(t.Context(), near.Addresses["unix"], dialer.Options{})
	check(t, err)
	defer conn.Wire.Close()
	var opened control.SurfaceOpened
	check(t, conn.Ask(t.Context(), control.OpPull, control.SurfacePull{Ticket: text}, &opened))
	if !opened.Direct {
		t.Fatal("the daemon does not hand the memory over")
	}
	memory, err := conn.Files.Take()
	check(t, err)
	defer memory.Close()
	file, err := conn.Files.Take()
	check(t, err)
	defer file.Close()
	page, err := surface.OpenAvailability(file)
	check(t, err)
	defer page.Close()
	for i := range int64(65) {
		check(t, page.Wait(t.Context(), i))
	}
	got := make([]byte, len(content))
	_, err = memory.ReadAt(got, 0)
	check(t, err)
	if !bytes.Equal(got, content) {
		t.Error("other bytes")
	}

	// From both at once, and from the replica when its origin is gone.
	by := pull.Options{Copy: true, From: []string{near.Addresses["tls"]}}
	got, err = pullAll(t, ticket, by)
	check(t, err)
	if !bytes.Equal(got, content) {
		t.Error("from two: other bytes")
	}
	check(t, origin.shutdown())
	got, err = pullAll(t, ticket, by)
	check(t, err)
	if !bytes.Equal(got, content) {
		t.Error("from the replica: other bytes")
	}

	c := near.dial(t, "unix")
	check(t, conn.Wire.Close())
	eventually(t, "the replica, which nobody has open, is gone", func() bool {
		list, err := c.Surfaces(t.Context())
		check(t, err)
		return len(list) == 0
	})
}

// A thousand pullers at once get the exact bytes, by memory and by connection, and
// the daemon keeps one copy.
func TestThousandPullers(t *testing.T) {
	t.Parallel()
	d := start(t, settings{})
	c := d.dial(t, "unix")
	content := someBytes(256 << 10)
	done, err := c.ExposeBytes(t.Context(), content, memspan.ExposeOptions{Chunk: 64 << 10})
	check(t, err)
	var all errgroup.Group
	all.SetLimit(50) // at the same time shaking hands; all of them stay
	open := make(chan *pull.Surface, 1000)
	for i := range 1000 {
		transport := transports[i%2]
		all.Go(func() error {
			s, err := pull.Open(t.Context(), d.ticketTo(done.Ticket, transport), pull.Options{})
			if err != nil {
				return err
			}
			open <- s
			got := make([]byte, len(content))
			if _, err := s.ReadAt(got, 0); err != nil {
				return err
			}
			if !bytes.Equal(got, content) || s.Direct() != (transport == "unix") {
				return fmt.Errorf("over %s: other bytes, or not as it should be (direct: %t)", transport, s.Direct())
			}
			return nil
		})
	}
	check(t, all.Wait())
	list, err := c.Surfaces(t.Context())
	check(t, err)
	if st := list[0]; st.Pullers != 1000 || st.Pulls != 1000 || st.Direct != 500 || st.Memory > int64(len(content)) {
		t.Errorf("%+v", st)
	}
	close(open)
	for s := range open {
		check(t, s.Close())
	}
	eventually(t, "nobody has it open", func() bool {
		list, err := c.Surfaces(t.Context())
		check(t, err)
		return list[0].Pullers == 0
	})
}

// Who waits for bytes of a stream is told when the daemon dies, by memory too.
func TestWaitEndsWithTheDaemon(t *testing.T) {
	t.Parallel()
	d := start(t, settings{Process: true})
	w, err := d.dial(t, "unix").Expose(t.Context(), -1, memspan.ExposeOptions{})
	check(t, err)
	for _, by := range []string{"unix", "tcp"} {
		s, err := pull.Open(t.Context(), d.ticketTo(w.Ticket(), by), pull.Options{})
		check(t, err)
		t.Cleanup(func() { check(t, s.Close()) })
		defer func() { want(t, by+": to wait for what never comes", s.Wait(t.Context(), 0, 1), memspan.ErrPeerLost) }()
	}
	d.process.kill()
}

// Who has mapped a surface keeps it, whatever becomes of who exposed it and of the
// daemon.
func TestMapsOutliveTheDaemon(t *testing.T) {
	t.Parallel()
	d := start(t, settings{Process: true})
	c := d.dial(t, "unix")
	content := someBytes(3 << 20)
	done, err := c.ExposeBytes(t.Context(), content, memspan.ExposeOptions{})
	check(t, err)
	s, err := pull.Open(t.Context(), d.ticketTo(done.Ticket, "unix"), pull.Options{})
	check(t, err)
	m, err := s.Map(t.Context())
	check(t, err)
	defer m.Close()
	d.process.kill()
	if b, err := s.Bytes(); err != nil || !bytes.Equal(b, content) || !bytes.Equal(m.Bytes(), content) {
		t.Errorf("the memory is not what it was: %v", err)
	}
	check(t, s.Close())
	if !bytes.Equal(m.Bytes(), content) {
		t.Error("the memory went with the surface")
	}
}

// What a daemon may not keep, or has no room for, it does not pull for anybody; of what
// is encrypted it keeps ciphertext, and who asked it opens that.
func TestReplicasKeepTheRules(t *testing.T) {
	t.Parallel()
	origin, near := start(t, settings{}), start(t, settings{SurfaceBudget: 4 << 20})
	c := origin.dial(t, "unix")
	through := pull.Options{Through: near.Addresses["unix"]}
	content := someBytes(3<<20 + 17)
	expose := func(p []byte, o memspan.ExposeOptions) *surface.Ticket {
		t.Helper()
		done, err := c.ExposeBytes(t.Context(), p, o)
		check(t, err)
		return origin.ticketTo(done.Ticket, "tls")
	}
	once := expose(content, memspan.ExposeOptions{ReadOnce: true})
	_, err := pull.Open(t.Context(), once, through)
	want(t, "a read-once surface through a daemon", err, memspan.ErrUnsupported)
	_, err = pull.Open(t.Context(), expose(someBytes(5<<20), memspan.ExposeOptions{}), through)
	want(t, "more than the daemon has room for", err, memspan.ErrLimit)

	s, err := pull.Open(t.Context(), expose(content, memspan.ExposeOptions{Encrypt: true}), through)
	check(t, err)
	defer s.Close()
	got := make([]byte, len(content))
	_, err = s.ReadAt(got, 0)
	check(t, err)
	if !bytes.Equal(got, content) || !s.Direct() {
		t.Errorf("other bytes, or not the daemon's memory (direct: %t)", s.Direct())
	}
}
