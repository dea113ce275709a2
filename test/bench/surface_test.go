// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/surface"
	"github.com/memspan/memspan/surface/pull"
)

// exposed exposes size bytes that do not compress, and returns a ticket for the
// address of one transport.
func exposed(b *testing.B, a addresses, transport string, size int64) *surface.Ticket {
	b.Helper()
	c := dial(b, a, "unix", memspan.Options{})
	d, err := memspan.NewDraft(size)
	check(b, err)
	rand.NewChaCha8([32]byte{1}).Read(d.Bytes())
	e, err := d.Expose(b.Context(), c, memspan.ExposeOptions{})
	check(b, err)
	return at(a, e.Ticket, transport)
}

// at returns a ticket of the same surface for the address of one transport.
func at(a addresses, t *surface.Ticket, transport string) *surface.Ticket {
	there := *t
	there.Addresses = []string{map[string]string{
		"unix": "unix:" + a.Socket,
		"tcp":  "tcp://" + a.TCP,
		"tls":  "tls://" + a.TLS + "#" + a.Fingerprint,
	}[transport]}
	return &there
}

// fetchHashed fetches size bytes by bare sockets; beside that all processors hash
// them, a chunk at a time, with the library that we use, and give them to put.
func (r *rawConn) fetchHashed(size int64, put func(p []byte, off int64)) {
	type part struct {
		p   []byte
		off int64
	}
	free, full := make(chan []byte, 16), make(chan part, 2)
	for range cap(free) {
		free <- make([]byte, chunk)
	}
	var work sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		work.Go(func() {
			for part := range full {
				surface.Sum(part.p)
				put(part.p, part.off)
				free <- part.p
			}
		})
	}
	r.request(rawFetch, int(size))
	for off := int64(0); off < size; off += chunk {
		p := <-free
		if err := receiveRaw(r.c, r.socket, p); err != nil {
			fatal(err)
		}
		full <- part{p, off}
	}
	close(full)
	work.Wait()
}

// BenchmarkPull pulls 1 GiB, verified, against bare sockets and the hash library
// in a pipeline that puts it to the same kind of place.
func BenchmarkPull(b *testing.B) {
	const size = 1 << 30
	for _, transport := range []string{"tcp", "tls"} {
		for _, target := range []string{"nowhere", "memory", "file"} {
			b.Run(transport+"/"+target, func(b *testing.B) {
				a, _ := child(b, "server")
				raw, _ := child(b, "raw")
				t := exposed(b, a, transport, size)
				r := dialRaw(b, raw, transport)
				dir, err := os.MkdirTemp("/dev/shm", "memspan-bench-")
				if err != nil {
					b.Fatal(err)
				}
				b.Cleanup(func() { os.RemoveAll(dir) })
				path := filepath.Join(dir, "file")
				pair(b, size, func() {
					s, err := pull.Open(b.Context(), t, pull.Options{Copy: true})
					if err != nil {
						fatal(err)
					}
					defer s.Close()
					switch target {
					case "nowhere":
						err = s.Gather(b.Context(), nil, func(int64, surface.Chunk) error { return nil })
					case "memory":
						var m *pull.Memory
						if m, err = s.ToMemory(b.Context(), surface.Range{}); err == nil {
							m.Close()
						}
					case "file":
						err = s.ToFile(b.Context(), path, surface.Range{})
						os.Remove(path)
					}
					if err != nil {
						fatal(err)
					}
				}, func() {
					if target == "nowhere" {
						r.fetchHashed(size, func([]byte, int64) {})
						return
					}
					f, err := memfd.Blank("raw")
					if target == "file" {
						f, err = os.Create(path)
					}
					if err != nil {
						fatal(err)
					}
					r.fetchHashed(size, func(p []byte, off int64) {
						if _, err := f.WriteAt(p, off); err != nil {
							fatal(err)
						}
					})
					if target == "file" {
						f.Sync()
					}
					f.Close()
					os.Remove(path)
				})
			})
		}
	}
}

// BenchmarkPullAttach opens and maps a surface of 1 GiB on one machine, and reads
// its first byte, against the same with 4 KiB.
func BenchmarkPullAttach(b *testing.B) {
	a, _ := child(b, "server")
	attach := func(t *surface.Ticket) func() {
		return func() {
			s, err := pull.Open(b.Context(), t, pull.Options{})
			if err != nil {
				fatal(err)
			}
			mem, err := s.Bytes()
			if err != nil {
				fatal(err)
			}
			sink = mem[0]
			s.Close()
		}
	}
	large, small := exposed(b, a, "unix", 1<<30), exposed(b, a, "unix", 4<<10)
	pair(b, 0, attach(large), attach(small))
}

var sink byte
