// SPDX-License-Identifier: Apache-2.0

package host_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"pgregory.net/rapid"

	"github.com/memspan/memspan/internal/blocks"
	"github.com/memspan/memspan/sharedbuf"
	"github.com/memspan/memspan/sharedbuf/host"
)

// allocSealed makes an encrypted buffer.
func allocSealed(t testing.TB, c *sharedbuf.Client, size int64) *sharedbuf.Buffer {
	t.Helper()
	b, err := c.AllocWith(t.Context(), size, sharedbuf.AllocOptions{Encrypted: true})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// sharedKinds runs a test with files and with buffers without a name.
func sharedKinds(t *testing.T, f func(t *testing.T, ln net.Listener, dir string)) {
	t.Run("file", func(t *testing.T) { f(t, tcp(t), t.TempDir()) })
	t.Run("memfd", func(t *testing.T) { f(t, unixSocket(t), "") })
}

// contents returns what is in shared memory.
func contents(t testing.TB, b *sharedbuf.Buffer) []byte {
	t.Helper()
	info, err := b.File().Stat()
	if err != nil {
		t.Fatal(err)
	}
	all := make([]byte, info.Size())
	if _, err := b.File().ReadAt(all, 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	return all
}

// Whatever guest and host write, both see it, and who looks at the shared memory
// does not.
func TestEncrypted(t *testing.T) {
	ln, dir := unixSocket(t), t.TempDir() // where who connects is told soonest
	begun := make(chan struct{})
	vain := func(c *host.Call) (any, error) {
		if c.Memory() != nil {
			t.Error("an operation is given the sealed memory")
		}
		if _, err := invert(c); err != nil {
			return nil, err
		}
		begun <- struct{}{}
		<-c.Context().Done()
		return nil, context.Cause(c.Context())
	}
	serve(t, ln, host.Config{Dir: dir, Operations: []host.Operation{
		{Name: "poke", Access: host.ReadWrite, Run: poke},
		{Name: "vain", Access: host.ReadWrite, Run: vain},
		{Name: "scribble", Run: invert}, // which does not say that it writes
	}})
	c := dial(t, ln, dir)
	secret := []byte("a secret that is long enough to be found")
	rapid.Check(t, func(rt *rapid.T) {
		size := rapid.SampledFrom([]int64{1, 100, blocks.Size + 77}).Draw(rt, "size")
		b := allocSealed(t, c, size)
		defer b.Free()
		model := make([]byte, size)
		at := func(rt *rapid.T) int64 { return rapid.Int64Range(0, size-1).Draw(rt, "at") }
		rt.Repeat(map[string]func(*rapid.T){
			"store": func(rt *rapid.T) {
				i := at(rt)
				copy(b.Bytes()[i:], secret)
				copy(model[i:], secret)
			},
			"clear": func(rt *rapid.T) {
				clear(b.Bytes())
				clear(model)
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
			"a write that is not said": func(rt *rapid.T) {
				if _, err := b.Process(t.Context(), sharedbuf.Operation("scribble", nil)); !errors.Is(err, sharedbuf.ErrTruncated) {
					rt.Fatal(err)
				}
			},
			"job": func(rt *rapid.T) {
				i := at(rt)
				j, err := b.Start(t.Context(), pokeAt(i))
				if err != nil {
					rt.Fatal(err)
				}
				if _, err := b.Process(t.Context(), sharedbuf.Process()); !errors.Is(err, sharedbuf.ErrBusy) {
					rt.Fatalf("while a job has it: %v", err)
				}
				if _, err = j.Wait(t.Context()); err != nil {
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
			"": func(rt *rapid.T) {
				if !bytes.Equal(b.Bytes(), model) {
					rt.Fatal("the guest has other bytes than were written")
				}
				sum, err := b.Process(t.Context(), sharedbuf.Checksum())
				if err != nil || decode[uint32](t, sum.Value) != castagnoli(model) {
					rt.Fatalf("the host has other bytes than the guest: %v", err)
				}
				if bytes.Contains(contents(t, b), secret[:8]) {
					rt.Fatal("the secret can be read")
				}
			},
		})
	})
}

// A buffer of so many blocks that several processors seal and open them.
func TestEncryptedByMany(t *testing.T) {
	const count, size = 50, 49*blocks.Size + 77
	ln, dir := unixSocket(t), t.TempDir()
	serve(t, ln, host.Config{Dir: dir, Operations: []host.Operation{{Name: "poked", Access: host.ReadWrite, Run: poked}}})
	b := allocSealed(t, dial(t, ln, dir), size)
	scribble(b.Bytes())
	want := bytes.Clone(b.Bytes())
	for round := range 3 {
		if _, err := b.Process(t.Context(), sharedbuf.Operation("poked", nil)); err != nil {
			t.Fatal(err)
		}
		for i := range count {
			blocks.Of(want, i)[0]++
		}
		if !bytes.Equal(b.Bytes(), want) {
			t.Fatalf("round %d: the guest has other bytes than the host has written", round)
		}
		blocks.Of(want, 30+round)[5]++
		blocks.Of(b.Bytes(), 30+round)[5]++
		r, err := b.Process(t.Context(), sharedbuf.Checksum())
		if err != nil || decode[uint32](t, r.Value) != castagnoli(want) {
			t.Fatalf("round %d: the host has other bytes than the guest: %v", round, err)
		}
	}
	// One bad block of all, wherever.
	for _, at := range []int64{0, count / 2, count - 1} {
		const table, slot = 8*count + 16, blocks.Size + 16
		p := []byte{contents(t, b)[table+at*slot] ^ 1}
		if _, err := b.File().WriteAt(p, table+at*slot); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Process(t.Context(), sharedbuf.Process()); !errors.Is(err, sharedbuf.ErrCorrupt) {
			t.Errorf("block %d was changed: %v", at, err)
		}
		if _, err := b.Process(t.Context(), sharedbuf.Process()); err != nil {
			t.Errorf("the next request: %v", err)
		}
	}
}

// What somebody else changes is found out, on either side, and harms no more than
// what was under way.
func TestTampering(t *testing.T) {
	sharedKinds(t, func(t *testing.T, ln net.Listener, dir string) {
		wait := newHeld()
		serve(t, ln, host.Config{Dir: dir, Operations: []host.Operation{{Name: "wait", Run: wait.run}}})
		c := dial(t, ln, dir)
		b := allocSealed(t, c, 3*blocks.Size)
		scribble(b.Bytes())
		flip := func(at int64) {
			t.Helper()
			p := []byte{contents(t, b)[at] ^ 1}
			if _, err := b.File().WriteAt(p, at); err != nil {
				t.Fatal(err)
			}
		}
		want := bytes.Clone(b.Bytes())
		look := func() {
			t.Helper()
			if !bytes.Equal(b.Bytes(), want) {
				t.Error("the buffer has other bytes")
			}
			if r, err := b.Process(t.Context(), sharedbuf.Checksum()); err != nil || decode[uint32](t, r.Value) != castagnoli(want) {
				t.Errorf("the next request: %v", err)
			}
		}
		look()
		// Seen by the host: what is not sealed anew.
		const table = 3*8 + 16
		flip(table + 100)
		if _, err := b.Process(t.Context(), sharedbuf.Checksum()); !errors.Is(err, sharedbuf.ErrCorrupt) {
			t.Errorf("a block that was changed: %v", err)
		}
		look()
		old := contents(t, b)
		b.Bytes()[5]++
		want[5]++
		look()
		if _, err := b.File().WriteAt(old[table:], table); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Process(t.Context(), sharedbuf.Checksum()); !errors.Is(err, sharedbuf.ErrCorrupt) {
			t.Errorf("blocks as they were before: %v", err)
		}
		look()
		// Seen by the guest: what the host has sealed.
		for _, at := range []int64{0, table + 100} {
			j, err := b.Start(t.Context(), sharedbuf.Fill(7))
			if err != nil {
				t.Fatal(err)
			}
			for {
				s, err := j.Status(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if s.Done {
					break
				}
			}
			flip(at)
			if _, err := j.Wait(t.Context()); !errors.Is(err, sharedbuf.ErrCorrupt) {
				t.Errorf("what the host sealed, changed at %d: %v", at, err)
			}
			if r, err := b.Process(t.Context(), sharedbuf.Fill(8), sharedbuf.Verify(8)); err != nil || b.Bytes()[4] != 8 {
				t.Errorf("the next request: %+v, %v", r, err)
			}
		}
	})
}

// A key goes to who must have it, over what nobody else reads.
func TestKeysStaySecret(t *testing.T) {
	address, log := secured(t, host.Config{Token: token, Dir: t.TempDir()}, nil)
	c, err := sharedbuf.Dial(t.Context(), address, sharedbuf.Options{Token: token})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b := allocSealed(t, c, 100_000) // its bytes are sent, and sealed by TLS
	if _, err := b.Process(t.Context(), sharedbuf.Fill(7)); err != nil || b.Bytes()[0] != 7 {
		t.Errorf("over TLS: %v", err)
	}

	// A network that is trusted may be read by others in it.
	ip, ok := ownAddress(t)
	if !ok {
		t.Skip("this machine has no address but loopback ones")
	}
	ln, err := net.Listen("tcp", net.JoinHostPort(ip.String(), "0"))
	if err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	serve(t, ln, host.Config{Dir: dir, Trust: []netip.Prefix{netip.PrefixFrom(ip, ip.BitLen())}})
	for _, dir := range []string{dir, ""} {
		plain := dial(t, ln, dir)
		if _, err := alloc(t, plain, 100).Process(t.Context(), sharedbuf.Process()); err != nil {
			t.Fatal(err)
		}
		if _, err := allocSealed(t, plain, 100).Process(t.Context(), sharedbuf.Process()); !errors.Is(err, sharedbuf.ErrDenied) {
			t.Errorf("over plain TCP, in %q: %v", dir, err)
		}
	}
	const key = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
	request := map[string]any{"api": "shared_buffer", "operation": "process", "file_path": alloc(t, dial(t, ln, dir), 100).Path(),
		"buffer_size": 100, "generation": 1, "key": key}
	if reply := connect(t, ln).ask(request); reply.Code != sharedbuf.ErrDenied {
		t.Errorf("a key over plain TCP: %+v", reply)
	}
	loopback := tcp(t)
	serve(t, loopback, host.Config{Dir: dir})
	for bad, want := range map[string]sharedbuf.Code{key: sharedbuf.ErrSize, key[4:]: sharedbuf.ErrInvalid, "!" + key[1:]: sharedbuf.ErrInvalid} {
		request["key"], request["generation"] = bad, 0
		reply := connect(t, loopback).ask(request)
		if want != sharedbuf.ErrSize && reply.Code != want || strings.Contains(reply.Error, bad[8:]) {
			t.Errorf("key %s: %+v", bad, reply)
		}
	}
	if text := log.String(); strings.Contains(text, token) {
		t.Errorf("the log shows the token: %s", text)
	}
	var shown strings.Builder
	fmt.Fprintf(&shown, "%v %+v %#v", sharedbuf.Request{Key: key}, sharedbuf.Request{Key: key}, sharedbuf.Request{Key: key})
	if strings.Contains(shown.String(), key) {
		t.Errorf("a request shows its key: %s", shown.String())
	}
}

// ownAddress returns an address of this machine that others may know.
func ownAddress(t *testing.T) (netip.Addr, bool) {
	t.Helper()
	all, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && !n.IP.IsLoopback() && n.IP.To4() != nil && !n.IP.IsLinkLocalUnicast() {
			ip, ok := netip.AddrFromSlice(n.IP.To4())
			return ip, ok
		}
	}
	return netip.Addr{}, false
}

// BenchmarkEncrypted is a pass of the host over 64 MiB that are encrypted, of which
// all, few or no bytes changed, against the same over a buffer that is not. "gcm" is
// against what crypto/aes takes alone to seal and open as much, on as many
// processors, from memory into a cache.
func BenchmarkEncrypted(b *testing.B) {
	const size = 64 << 20
	for _, test := range []struct {
		name           string
		every          int
		step           sharedbuf.Step
		sealed, opened int // passes over all of it
	}{
		{"unchanged", 0, sharedbuf.Process(), 0, 1},
		{"1percent", 100 * blocks.Size, sharedbuf.Process(), 0, 1},
		{"all", blocks.Size, sharedbuf.Process(), 1, 1},
		{"allreturned", 0, sharedbuf.Operation("invert", nil), 1, 2},
	} {
		b.Run(test.name, func(b *testing.B) {
			ln, dir := tcp(b), sharedDir(b)
			serve(b, ln, host.Config{Dir: dir, Operations: []host.Operation{{Name: "invert", Access: host.ReadWrite, Run: poked}}})
			c := dial(b, ln, dir)
			plain, encrypted := alloc(b, c, size), allocSealed(b, c, size)
			process := func(buf *sharedbuf.Buffer) func() {
				scribble(buf.Bytes())
				if _, err := buf.Process(b.Context(), test.step); err != nil {
					b.Fatal(err)
				}
				return func() {
					for i := 0; test.every > 0 && i < size; i += test.every {
						buf.Bytes()[i]++
					}
					if _, err := buf.Process(b.Context(), test.step); err != nil {
						b.Fatal(err)
					}
				}
			}
			ours, clear := process(encrypted), process(plain)
			seal, open := bareGCM(b, size)
			var ratio, gcm []float64
			for b.Loop() {
				took := timed(ours)
				ratio = append(ratio, took/timed(clear))
				gcm = append(gcm, took/timed(func() {
					for range test.sealed {
						seal()
					}
					for range test.opened {
						open()
					}
				}))
			}
			slices.Sort(ratio)
			slices.Sort(gcm)
			b.ReportMetric(ratio[len(ratio)/2], "ratio")
			b.ReportMetric(gcm[len(gcm)/2], "gcm")
		})
	}
}

func timed(f func()) float64 {
	start := time.Now()
	f()
	return time.Since(start).Seconds()
}

// bareGCM returns what seals and opens size bytes of memory in blocks with
// AES-256-GCM, by a goroutine for each processor.
func bareGCM(b *testing.B, size int) (seal, open func()) {
	block, err := aes.NewCipher(make([]byte, 32))
	if err != nil {
		b.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		b.Fatal(err)
	}
	nonce := make([]byte, gcm.NonceSize())
	plain := make([]byte, size)
	slot := blocks.Size + gcm.Overhead()
	ciphertext := make([]byte, size/blocks.Size*slot)
	each := func(f func(room []byte, i int) error) func() {
		return func() {
			var g errgroup.Group
			processors := runtime.GOMAXPROCS(0)
			for p := range processors {
				g.Go(func() error {
					room := make([]byte, 0, slot)
					for i := p; i < size/blocks.Size; i += processors {
						if err := f(room, i); err != nil {
							return err
						}
					}
					return nil
				})
			}
			if err := g.Wait(); err != nil {
				b.Fatal(err)
			}
		}
	}
	each(func(_ []byte, i int) error {
		gcm.Seal(ciphertext[i*slot:i*slot], nonce, blocks.Of(plain, i), nil)
		return nil
	})()
	return each(func(room []byte, i int) error {
			gcm.Seal(room, nonce, blocks.Of(plain, i), nil)
			return nil
		}), each(func(room []byte, i int) error {
			_, err := gcm.Open(room, nonce, ciphertext[i*slot:(i+1)*slot], nil)
			return err
		})
}

// poked changes a byte of each block.
func poked(c *host.Call) (any, error) {
	return nil, c.Each(func(_ int64, chunk []byte) error {
		for i := 0; i < len(chunk); i += blocks.Size {
			chunk[i]++
		}
		return nil
	})
}
