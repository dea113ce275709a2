// SPDX-License-Identifier: Apache-2.0

package surface_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/internal/memlimit"
	"github.com/memspan/memspan/surface"
	"golang.org/x/sync/errgroup"
)

// A surface for which there is no room is refused before anything is taken, and
// the error names the limit.
func TestRoomIsMadeSureOfFirst(t *testing.T) {
	refused := func(what, limit string, err error) {
		t.Helper()
		var room *surface.RoomError
		if !errors.As(err, &room) || !errors.Is(err, surface.ErrRoom) || !strings.Contains(err.Error(), limit) {
			t.Errorf("%s: error %v, want one that names %q", what, err, limit)
		}
	}
	s := newStore(t, 10<<20)
	_, err := s.Create(t.Context(), surface.Spec{Size: 10<<20 + 1})
	refused("budget", "budget", err)
	e := create(t, s, surface.Spec{Size: 8 << 20})
	_, err = s.Create(t.Context(), surface.Spec{Size: 3 << 20})
	refused("what is left of the budget", "budget", err)
	stream := create(t, s, surface.Spec{Size: -1})
	refused("a stream", "when the stream began", stream.Append(t.Context(), make([]byte, 3<<20)))
	e.Fail(errors.New("enough"))
	stream.Fail(errors.New("enough"))
	s.Close() // waits for the hashing of what came
	if used, pending := s.Used(); used != 0 || pending != 0 {
		t.Errorf("%d bytes are kept, %d of them pending", used, pending)
	}
	s = newStore(t, 10<<20)
	f := writeFile(t, make([]byte, 11<<20))
	e = create(t, s, surface.Spec{Size: 11 << 20, Sparse: true})
	refused("a file", "budget", e.CopyFile(t.Context(), f))
	if st := e.Stat(); st.Copied != 0 || st.Memory != 0 {
		t.Errorf("%d bytes were copied first, %d taken", st.Copied, st.Memory)
	}

	_, err = s.Create(t.Context(), surface.Spec{Size: 4 << 30, Chunk: surface.MinChunk, Sparse: true})
	refused("digests", "budget", err)
	_, err = newStore(t, 0).Create(t.Context(), surface.Spec{Size: surface.MaxSize, Sparse: true})
	refused("address space", "address space", err)
	e = create(t, s, surface.Spec{Size: 11 << 20, Sparse: true})
	refused("appending to what was to be sparse", "budget", e.Append(t.Context(), make([]byte, 11<<20)))

	for name, m := range map[string]memlimit.Memory{"machine": {Available: 1 << 20}, "control group": {Available: 1 << 30, Group: 1 << 20}} {
		s := newStore(t, 0)
		s.SetMemory(m)
		_, err := s.Create(t.Context(), surface.Spec{Size: 1<<20 + 1})
		refused(name, name, err)
	}
}

// A source that changes while it is copied is found, and nobody gets a mixture
// that is called whole.
func TestChangedSourceIsFound(t *testing.T) {
	const size = 300_000
	for name, change := range map[string]func(t *testing.T, f *os.File){
		"written": func(t *testing.T, f *os.File) { f.WriteAt([]byte("x"), 5) },
		"longer":  func(t *testing.T, f *os.File) { f.Truncate(size + 1) },
		"shorter": func(t *testing.T, f *os.File) { f.Truncate(size / 2) },
		"written, and its time set back": func(t *testing.T, f *os.File) {
			info, err := f.Stat()
			if err != nil {
				t.Fatal(err)
			}
			f.WriteAt([]byte("x"), 5)
			if err := os.Chtimes(f.Name(), info.ModTime(), info.ModTime()); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t, 0)
			f := writeFile(t, random(size, 1))
			e := create(t, s, surface.Spec{Size: size, Chunk: surface.MinChunk})
			o := open(t, s, e.Ticket())
			var once sync.Once
			err := e.CopyFileBy(t.Context(), f, func(p []byte, off int64) (int, error) {
				once.Do(func() { change(t, f) })
				return f.ReadAt(p, off)
			})
			if !errors.Is(err, surface.ErrChanged) {
				t.Fatalf("error %v, want ErrChanged", err)
			}
			if _, err := e.Seal(t.Context()); !errors.Is(err, surface.ErrFailed) {
				t.Errorf("sealed all the same: %v", err)
			}
			if _, err := o.Progress(); !errors.Is(err, surface.ErrFailed) || !errors.Is(err, surface.ErrChanged) {
				t.Errorf("a puller is told %v", err)
			}
		})
	}
	s := newStore(t, 0)
	e := create(t, s, surface.Spec{Size: size})
	if err := e.CopyFile(t.Context(), writeFile(t, make([]byte, size-1))); !errors.Is(err, surface.ErrChanged) {
		t.Errorf("another size than announced: %v", err)
	}
}

// A reader of a source that fails ends the surface.
func TestFailingSourceEndsTheSurface(t *testing.T) {
	s := newStore(t, 0)
	e := create(t, s, surface.Spec{Size: 1 << 20, Chunk: surface.MinChunk})
	open(t, s, e.Ticket()) // and stays so
	why := errors.New("bad sector")
	err := e.CopyFrom(t.Context(), nil, func(p []byte, off int64) error {
		if off >= 100*surface.MinChunk {
			return why
		}
		return nil
	})
	if !errors.Is(err, why) {
		t.Fatalf("error %v, want the reader's", err)
	}
	if _, err := s.Open(ask(e.Ticket())); !errors.Is(err, why) {
		t.Errorf("a puller is told %v", err)
	}
	if list := s.List(); len(list) != 1 || list[0].State != surface.Failed || !errors.Is(list[0].Reason, why) || list[0].Pullers != 0 {
		t.Errorf("listed as %+v", list)
	}
}

// Who waits for chunks that will not come is told, in shared memory and here.
func TestFailureWakesWhoWaits(t *testing.T) {
	s := newStore(t, 0)
	e := create(t, s, surface.Spec{Size: -1})
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
	p, err := o.Progress()
	if err != nil {
		t.Fatal(err)
	}
	why := errors.New("killed")
	waits := make(chan error, 2)
	go func() { waits <- a.Wait(t.Context(), 0) }()
	go func() { _, err := o.Wait(t.Context(), p.Sequence); waits <- err }()
	e.Fail(why)
	for range 2 {
		if err := <-waits; !errors.Is(err, surface.ErrFailed) {
			t.Errorf("error %v, want ErrFailed", err)
		}
	}
	if a.State() != surface.Failed {
		t.Errorf("state %v", a.State())
	}
	// Waiting ends with its context as well.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	e2 := create(t, s, surface.Spec{Size: -1})
	o2 := open(t, s, e2.Ticket())
	p2, _ := o2.Progress()
	if _, err := o2.Wait(ctx, p2.Sequence); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want that of the context", err)
	}
}

// Closing the store ends what is under way, and waits for it.
func TestCloseEndsEverything(t *testing.T) {
	s := surface.NewStore(surface.Config{})
	e := create(t, s, surface.Spec{Size: -1, Chunk: surface.MinChunk})
	var openings []*surface.Opening
	var group errgroup.Group
	for range 4 {
		o, err := s.Open(ask(e.Ticket()))
		if err != nil {
			t.Fatal(err)
		}
		openings = append(openings, o)
		group.Go(func() error {
			for p, err := o.Progress(); ; p, err = o.Wait(context.Background(), p.Sequence) {
				if err != nil {
					return err
				}
			}
		})
	}
	begun := make(chan struct{})
	var once sync.Once
	group.Go(func() error {
		for {
			if err := e.Append(context.Background(), make([]byte, 100_000)); err != nil {
				return err
			}
			once.Do(func() { close(begun) })
		}
	})
	<-begun
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := group.Wait(); !errors.Is(err, surface.ErrClosed) {
		t.Errorf("error %v, want ErrClosed", err)
	}
	for _, o := range openings {
		o.Close()
		o.Close()
	}
	if used, pending := s.Used(); used != 0 || pending != 0 {
		t.Errorf("%d bytes are kept, %d of them pending", used, pending)
	}
	if _, err := s.Create(t.Context(), surface.Spec{}); !errors.Is(err, surface.ErrClosed) {
		t.Errorf("made a surface in a closed store: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// A thousand pullers of a stream all get its bytes.
func TestThousandPullers(t *testing.T) {
	s := newStore(t, 0)
	e := create(t, s, surface.Spec{Size: -1, Chunk: 16 << 10})
	want := random(512<<10+1, 11)
	var group errgroup.Group
	for range 1000 {
		o := open(t, s, e.Ticket())
		group.Go(func() error {
			defer o.Close()
			var seen int64
			err := follow(t.Context(), o, func(off int64, b []byte) {
				if off == seen && bytes.Equal(b, want[off:off+int64(len(b))]) {
					seen += int64(len(b))
				}
			})
			if err == nil && seen != int64(len(want)) {
				err = errors.New("other bytes")
			}
			return err
		})
	}
	for at := 0; at < len(want); at += 50_000 {
		if err := e.Append(t.Context(), want[at:min(at+50_000, len(want))]); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := e.Seal(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if st := e.Stat(); st.Pulls != 1000 || st.Pullers != 0 || st.Given != 1000*int64(len(want)) {
		t.Errorf("stat %+v", st)
	}
}

// Many bring a replica's chunks at once, some of them lies; readers see right
// bytes only.
func TestReplicaIsFilledByMany(t *testing.T) {
	s, r := newStore(t, 0), newStore(t, 0)
	const chunk = surface.MinChunk
	e, want := exposed(t, s, surface.Spec{Size: 64*chunk + 1, Chunk: chunk}, 12)
	m := e.Manifest()
	c, err := r.Replica(t.Context(), m, e.Ticket())
	if err != nil {
		t.Fatal(err)
	}
	o := open(t, r, e.Ticket())
	var group errgroup.Group
	for w := range 8 {
		group.Go(func() error {
			for k := range m.Count() {
				i := (k*int64(2*w+1) + int64(w)) % m.Count()
				off, n := m.StoredRange(i)
				stored := bytes.Clone(want[off : off+n])
				if w%2 == 1 {
					stored[0] ^= 1
				}
				err := c.Put(t.Context(), i, surface.NewChunk(stored))
				if w%2 == 1 && errors.Is(err, surface.ErrCorrupt) {
					err = nil
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	got := readAll(t, o)
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("other bytes")
	}
	memory, _, err := files(o)
	if err != nil {
		t.Fatal(err)
	}
	if p, err := memfd.Adopt(memory); err != nil {
		t.Errorf("a whole replica is not frozen: %v", err)
	} else {
		p.Close()
	}
	if st := c.Stat(); st.Have != m.Count() || !st.Replica || st.Copied != m.StoredSize() {
		t.Errorf("stat %+v", st)
	}
}

func TestOpenAvailabilityRefusesWhatIsNone(t *testing.T) {
	give, err := memfd.Publish("none", 8192)
	if err != nil {
		t.Fatal(err)
	}
	defer give.Close()
	for _, size := range []int64{0, 4096, 8192} {
		if err := give.Grow(size); err != nil {
			t.Fatal(err)
		}
		if a, err := surface.OpenAvailability(give.File()); !errors.Is(err, surface.ErrFormat) {
			t.Errorf("%d zeros were opened: %v, %v", size, a, err)
		}
	}
	if _, err := surface.OpenAvailability(writeFile(t, make([]byte, 8192))); err == nil {
		t.Error("a file that can be cut short was opened")
	}
}

// Digests take room, few or many, and give it back.
func TestDigestsTakeRoom(t *testing.T) {
	s := newStore(t, 1<<20)
	const size = 100 * surface.MinChunk
	sparse := create(t, s, surface.Spec{Size: size, Chunk: surface.MinChunk, Sparse: true})
	if used, _ := s.Used(); used != 100*surface.DigestSize {
		t.Errorf("%d bytes for 100 holes", used)
	}
	stream := create(t, s, surface.Spec{Size: -1, Chunk: surface.MinChunk})
	if err := stream.Append(t.Context(), make([]byte, size+1)); err != nil {
		t.Fatal(err)
	}
	if used, _ := s.Used(); used != 201*surface.DigestSize+101*surface.MinChunk {
		t.Errorf("%d bytes with a stream of 101 chunks", used)
	}
	if err := sparse.CopyFrom(t.Context(), [][2]int64{}, nil); err != nil {
		t.Fatal(err)
	}
	m, err := sparse.Seal(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r := newStore(t, 1<<20)
	if _, err := r.Replica(t.Context(), m, sparse.Ticket()); err != nil {
		t.Fatal(err)
	}
	if used, _ := r.Used(); used != 100*surface.DigestSize {
		t.Errorf("%d bytes for a replica of 100 holes", used)
	}
	for _, s := range []*surface.Store{s, r} {
		s.Close()
		if used, pending := s.Used(); used != 0 || pending != 0 {
			t.Errorf("%d bytes are kept, %d of them pending", used, pending)
		}
	}
}
