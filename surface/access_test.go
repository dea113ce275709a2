// SPDX-License-Identifier: Apache-2.0

package surface_test

import (
	"bytes"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/memspan/memspan/surface"
)

// exposed returns a sealed surface of random bytes.
func exposed(t testing.TB, s *surface.Store, spec surface.Spec, seed uint64) (*surface.Exposure, []byte) {
	t.Helper()
	e := create(t, s, spec)
	want := random(spec.Size, seed)
	if err := e.Append(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Seal(t.Context()); err != nil {
		t.Fatal(err)
	}
	return e, want
}

// Without a valid proof one error says nothing of what there is, or was.
func TestNothingIsToldWithoutAProof(t *testing.T) {
	s := newStore(t, 0)
	here, _ := exposed(t, s, surface.Spec{Size: 1}, 1)
	revoked, _ := exposed(t, s, surface.Spec{Size: 1}, 1)
	if err := s.Revoke(revoked.ID()); err != nil {
		t.Fatal(err)
	}
	failed := create(t, s, surface.Spec{Size: 1})
	failed.Fail(errors.New("cut link"))
	var texts []string
	for _, id := range []surface.ID{here.ID(), revoked.ID(), failed.ID(), surface.NewID()} {
		_, err := s.Open(ask(&surface.Ticket{ID: id, Secret: surface.Secret{1}}))
		if !errors.Is(err, surface.ErrTicket) {
			t.Fatalf("error %v, want ErrTicket", err)
		}
		texts = append(texts, string(bytes.ReplaceAll([]byte(err.Error()), []byte(id.String()), nil)))
	}
	for _, text := range texts {
		if text != texts[0] {
			t.Errorf("errors differ: %q and %q", text, texts[0])
		}
	}
	for _, id := range []surface.ID{here.ID(), revoked.ID(), failed.ID()} {
		if !s.Knows(id) {
			t.Errorf("the store does not know of %v", id)
		}
	}
	if s.Knows(surface.NewID()) {
		t.Error("the store knows of what never was")
	}
	// Who proves it is told.
	if _, err := s.Open(ask(revoked.Ticket())); !errors.Is(err, surface.ErrRevoked) {
		t.Errorf("revoked: %v", err)
	}
	if _, err := s.Open(ask(failed.Ticket())); !errors.Is(err, surface.ErrFailed) {
		t.Errorf("failed: %v", err)
	}
	if err := s.Revoke(surface.NewID()); !errors.Is(err, surface.ErrNotFound) {
		t.Errorf("revoked what there is not: %v", err)
	}
}

func TestGuessersAreKeptWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := surface.NewStore(surface.Config{})
		defer s.Close()
		e, _ := exposed(t, s, surface.Spec{Size: 1}, 1)
		wrong, right := ask(e.Ticket()), ask(e.Ticket())
		wrong.Proof[0] ^= 1
		var err error
		for tries := 0; !errors.Is(err, surface.ErrBusy); tries++ {
			if tries > 100 {
				t.Fatal("an asker may be wrong for ever")
			}
			_, err = s.Open(wrong)
		}
		o, err := s.Open(right)
		if err != nil {
			t.Fatalf("who has a ticket waits for guessers: %v", err)
		}
		o.Close()
		if _, err := s.Open(wrong); !errors.Is(err, surface.ErrBusy) {
			t.Errorf("a right proof made up for wrong ones: %v", err)
		}
		wrong.Who = "somebody else"
		if _, err := s.Open(wrong); !errors.Is(err, surface.ErrTicket) {
			t.Errorf("others are kept waiting: %v", err)
		}
		time.Sleep(time.Minute)
		wrong.Who = "test"
		if _, err = s.Open(wrong); !errors.Is(err, surface.ErrTicket) {
			t.Errorf("after a minute: %v", err)
		}
	})
}

// A range ticket opens the chunks that it touches, by copy, and nothing else.
func TestRangeTicketsOpenTheirRange(t *testing.T) {
	s := newStore(t, 0)
	const chunk = surface.MinChunk
	e, want := exposed(t, s, surface.Spec{Size: 10*chunk - 5, Chunk: chunk}, 7)
	ticket, err := e.Ticket().Derive(surface.Range{Offset: 3*chunk + 7, Length: 2 * chunk})
	if err != nil {
		t.Fatal(err)
	}
	o := open(t, s, ticket)
	if o.Direct() {
		t.Error("a part is given direct")
	}
	if _, _, err := files(o); !errors.Is(err, surface.ErrState) {
		t.Errorf("files of a part: %v", err)
	}
	for i := range int64(10) {
		off, n := i*chunk, min(chunk, int64(len(want))-i*chunk)
		got, err := read(o, off, n)
		if within := i >= 3 && i <= 5; within && (err != nil || !bytes.Equal(got, want[off:off+n])) {
			t.Errorf("chunk %d: %v", i, err)
		} else if !within && !errors.Is(err, surface.ErrRange) {
			t.Errorf("chunk %d, outside: %d bytes, %v", i, len(got), err)
		}
	}
	for _, r := range [][2]int64{{3*chunk - 1, 2}, {6*chunk - 1, 2}, {0, int64(len(want))}, {-1, 1}, {3 * chunk, 0}, {3 * chunk, -1}, {1 << 62, 1 << 62}, {3 * chunk, 1<<63 - 1}} {
		if got, err := read(o, r[0], r[1]); !errors.Is(err, surface.ErrRange) {
			t.Errorf("[%d, +%d): %d bytes, %v", r[0], r[1], len(got), err)
		}
	}
	empty, err := ticket.Derive(surface.Range{Offset: 4 * chunk, Length: 0})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := read(open(t, s, empty), 4*chunk, 1); !errors.Is(err, surface.ErrRange) {
		t.Errorf("an empty range: %v", err)
	}
}

// A read-once surface is one puller's, who gets each byte once, and gone after him.
func TestReadOnce(t *testing.T) {
	s := newStore(t, 0)
	const chunk = surface.MinChunk
	e, want := exposed(t, s, surface.Spec{Size: 8 * chunk, Chunk: chunk, ReadOnce: true}, 8)
	for range 2 { // looking takes nothing
		idle := open(t, s, e.Ticket())
		if _, err := idle.Digests(nil, 0, 8); err != nil {
			t.Error(err)
		}
		idle.Close()
	}
	late := open(t, s, e.Ticket())
	o := open(t, s, e.Ticket())
	if _, _, err := files(o); !errors.Is(err, surface.ErrState) {
		t.Errorf("files: %v", err)
	}
	got := make([]byte, len(want))
	for _, i := range []int64{3, 4, 1, 0, 7, 2, 5, 6} {
		for off := i * chunk; off < (i+1)*chunk; off += chunk / 2 {
			b, err := read(o, off, chunk/2)
			if err != nil {
				t.Fatal(err)
			}
			copy(got[off:], b)
			if _, err := s.Open(ask(e.Ticket())); !errors.Is(err, surface.ErrTaken) {
				t.Fatalf("a second puller: %v", err)
			}
			if _, err := read(late, 0, int64(len(want))); !errors.Is(err, surface.ErrTaken) {
				t.Fatalf("who came too late: %v", err)
			}
			for _, again := range [][2]int64{{off, chunk / 2}, {off, 1}, {off + chunk/2 - 1, 1}, {max(off-1, 0), chunk}} {
				if _, err := read(o, again[0], again[1]); err == nil {
					t.Fatalf("[%d, +%d) was given out twice", again[0], again[1])
				}
			}
		}
	}
	if !bytes.Equal(got, want) {
		t.Error("other bytes")
	}
	o.Close()
	if used, _ := s.Used(); used != 0 {
		t.Errorf("%d bytes are kept", used)
	}
	if _, err := s.Open(ask(e.Ticket())); !errors.Is(err, surface.ErrTaken) {
		t.Errorf("after it was read: %v", err)
	}
}

// Time ends surfaces and tickets, for who opens them and for who has.
func TestTimeEndsThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := surface.NewStore(surface.Config{})
		defer s.Close()
		later, _ := exposed(t, s, surface.Spec{Size: 1, Expires: time.Now().Add(2 * time.Hour)}, 1)
		e, _ := exposed(t, s, surface.Spec{Size: 1, Expires: time.Now().Add(time.Hour)}, 1)
		short, err := e.Ticket().Derive(surface.Expiry{Time: time.Now().Add(time.Minute)})
		if err != nil {
			t.Fatal(err)
		}
		long, byTicket := open(t, s, e.Ticket()), open(t, s, short)
		ended := make(chan error)
		go func() {
			p, _ := long.Progress()
			_, err := long.Wait(t.Context(), p.Sequence)
			ended <- err
		}()
		p, err := byTicket.Progress()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := byTicket.Wait(t.Context(), p.Sequence); !errors.Is(err, surface.ErrExpired) {
			t.Errorf("waiting by a ticket: %v", err)
		}
		if _, err := byTicket.Wait(t.Context(), p.Sequence-1); !errors.Is(err, surface.ErrExpired) {
			t.Errorf("waiting by a ticket for what is: %v", err)
		}
		if _, err := byTicket.Progress(); !errors.Is(err, surface.ErrExpired) {
			t.Errorf("progress by a ticket whose time is over: %v", err)
		}
		if _, _, err := byTicket.Runs(0, 1); !errors.Is(err, surface.ErrExpired) {
			t.Errorf("runs by a ticket whose time is over: %v", err)
		}
		if _, err := byTicket.Digests(nil, 0, 1); !errors.Is(err, surface.ErrExpired) {
			t.Errorf("digests by a ticket whose time is over: %v", err)
		}
		if _, err := s.Open(ask(short)); !errors.Is(err, surface.ErrExpired) {
			t.Errorf("the ticket's time is over: %v", err)
		}
		if _, err := read(byTicket, 0, 1); !errors.Is(err, surface.ErrExpired) {
			t.Errorf("read by a ticket whose time is over: %v", err)
		}
		if _, err := read(long, 0, 1); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Hour)
		if err := <-ended; !errors.Is(err, surface.ErrExpired) {
			t.Errorf("waiting: %v", err)
		}
		if _, err := read(long, 0, 1); !errors.Is(err, surface.ErrExpired) {
			t.Errorf("read: %v", err)
		}
		if _, err := s.Open(ask(e.Ticket())); !errors.Is(err, surface.ErrExpired) {
			t.Errorf("open: %v", err)
		}
		if list := s.List(); len(list) != 1 || list[0].ID != later.ID() {
			t.Errorf("there are %+v", list)
		}
		if _, err := s.Create(t.Context(), surface.Spec{Expires: time.Now()}); !errors.Is(err, surface.ErrExpired) {
			t.Errorf("made what has expired: %v", err)
		}
		used, _ := s.Used()

		if err := s.Revoke(later.ID()); err != nil {
			t.Error(err)
		}
		if left, _ := s.Used(); left != 0 || used == 0 {
			t.Errorf("%d bytes are kept by idle openings, %d before", left, used)
		}
		long.Close()
		byTicket.Close()
	})
}

// Revoking ends reading and waiting; what is mapped stays, and its page tells.
func TestRevoke(t *testing.T) {
	s := newStore(t, 0)
	e := create(t, s, surface.Spec{Size: 2 * surface.MinChunk, Chunk: surface.MinChunk})
	want := random(surface.MinChunk, 9)
	if err := e.Append(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	o := open(t, s, e.Ticket())
	_, page, err := files(o)
	if err != nil {
		t.Fatal(err)
	}
	a, err := surface.OpenAvailability(page)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	p, _ := o.Progress()
	waits := make(chan error, 2)
	go func() { waits <- a.Wait(t.Context(), 1) }()
	go func() { _, err := o.Wait(t.Context(), p.Sequence); waits <- err }()
	err = o.ReadStored(0, surface.MinChunk, func(stored []byte) error {
		if err := s.Revoke(e.ID()); err != nil {
			t.Error(err)
		}
		o.Close()
		if !bytes.Equal(stored, want) {
			t.Error("what is being read changed")
		}
		if used, _ := s.Used(); used == 0 {
			t.Error("memory that is being read is given back")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if _, _, err := o.Runs(0, 1); !errors.Is(err, surface.ErrRevoked) {
		t.Errorf("runs: %v", err)
	}
	if _, err := o.Digests(nil, 0, 1); !errors.Is(err, surface.ErrRevoked) {
		t.Errorf("digests: %v", err)
	}
	for range 2 {
		if err := <-waits; !errors.Is(err, surface.ErrRevoked) {
			t.Errorf("waiting: %v", err)
		}
	}
	if _, err := read(o, 0, 1); !errors.Is(err, surface.ErrRevoked) {
		t.Errorf("read: %v", err)
	}
	if _, _, err := files(o); !errors.Is(err, surface.ErrRevoked) {
		t.Errorf("files: %v", err)
	}
	if err := e.Append(t.Context(), want); !errors.Is(err, surface.ErrRevoked) {
		t.Errorf("append: %v", err)
	}
	if _, err := e.Seal(t.Context()); !errors.Is(err, surface.ErrRevoked) {
		t.Errorf("seal: %v", err)
	}
	if used, pending := s.Used(); used != 0 || pending != 0 {
		t.Errorf("%d bytes are kept, %d of them pending", used, pending)
	}
}
