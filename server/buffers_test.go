// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"

	"github.com/memspan/memspan/server"
	"github.com/memspan/memspan/sharedbuf"
	"github.com/memspan/memspan/sharedbuf/host"
	"github.com/memspan/memspan/tier/vram"
	"github.com/memspan/memspan/wire/control"
)

// A guestTest is a server that hosts shared buffers, and a guest.
type guestTest struct {
	*sharedbuf.Client
	t    testing.TB
	dir  string
	addr string
	tcp  string // the same guests' over TCP
	peer *peer  // a session
}

// A fromElsewhere is a listener to which guests come from an address that proves
// nothing.
type fromElsewhere struct{ net.Listener }

func (l fromElsewhere) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return elsewhere{c}, nil
}

type elsewhere struct{ net.Conn }

func (elsewhere) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 1} }

// hostBuffers starts a server with VRAM, if there is Vulkan, and a Disk tier.
func hostBuffers(t testing.TB, cfg server.Config) *guestTest {
	t.Helper()
	cfg.Data = filepath.Join(t.TempDir(), "data")
	if cfg.Buffers == nil {
		cfg.Buffers = new(server.BufferConfig)
	}
	g := &guestTest{t: t, dir: t.TempDir()}
	cfg.Buffers.Host.Dir = g.dir
	srv, socket, _ := listen(t, cfg)
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "guests"))
	if err != nil {
		t.Fatal(err)
	}
	g.addr = ln.Addr().String()
	network, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g.tcp = network.Addr().String()
	served := make(chan error, 2)
	if cfg.Buffers.Host.Trust != nil {
		network = fromElsewhere{network}
	}
	for _, ln := range []net.Listener{ln, network} {
		go func() { served <- srv.ServeBuffers(t.Context(), ln) }()
	}
	t.Cleanup(func() { // t's context has ended
		if err := errors.Join(<-served, <-served); err != nil {
			t.Error(err)
		}
	})
	g.Client = g.dial()
	if tt, ok := t.(*testing.T); ok {
		g.peer = connect(tt, "unix", socket).greet()
	}
	return g
}

// withVRAM is a configuration with device memory.
func withVRAM(t testing.TB) server.Config {
	t.Helper()
	if os.Getenv("MEMSPAN_TEST_NO_VULKAN") == "1" {
		t.Skip("there is no Vulkan")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return server.Config{VRAM: &vram.Config{Command: []string{self}, Budget: 64 << 20}}
}

// dial connects one more guest.
func (g *guestTest) dial() *sharedbuf.Client {
	g.t.Helper()
	c, err := sharedbuf.Dial(g.t.Context(), g.addr, sharedbuf.Options{Dir: g.dir})
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { c.Close() })
	return c
}

// alloc makes a buffer of random bytes.
func (g *guestTest) alloc(size int64) *sharedbuf.Buffer {
	g.t.Helper()
	b, err := g.Alloc(g.t.Context(), size)
	if err != nil {
		g.t.Fatal(err)
	}
	rng := rand.NewChaCha8([32]byte{byte(size)})
	rng.Read(b.Bytes())
	return b
}

// do has a chain carried out that must succeed.
func (g *guestTest) do(b *sharedbuf.Buffer, chain ...sharedbuf.Step) *sharedbuf.Result {
	g.t.Helper()
	r, err := b.Process(g.t.Context(), chain...)
	if err != nil {
		g.t.Fatal(err)
	}
	return r
}

// refused has a chain carried out that must fail with the code.
func (g *guestTest) refused(b *sharedbuf.Buffer, code sharedbuf.Code, chain ...sharedbuf.Step) {
	g.t.Helper()
	if _, err := b.Process(g.t.Context(), chain...); !errors.Is(err, code) {
		g.t.Errorf("%s %.80s: error %v, want %s", chain[0].Operation, chain[0].Arguments, err, code)
	}
}

// spans returns the names of the spans that there are, those that nobody can
// find included.
func (g *guestTest) spans() map[string]control.SpanInfo {
	g.t.Helper()
	var list control.Listed
	if err := g.peer.control(control.OpList, control.List{}, &list); err != nil {
		g.t.Fatal(err)
	}
	spans := make(map[string]control.SpanInfo)
	for _, s := range list.Spans {
		spans[s.Name] = s.SpanInfo
	}
	return spans
}

// A buffer that became a span, of any size and on any tier, comes back as it was.
func TestIngestAndExport(t *testing.T) {
	g := hostBuffers(t, withVRAM(t))
	for i, a := range []sharedbuf.IngestArguments{
		{},
		{Tier: "vram"},
		{Tier: "vram", Home: "host", Policy: "write-through"},
		{Tier: "disk"},
		{Tier: "host", Home: "disk", Policy: "write-through"},
		{Tier: "host", Home: "disk"},
	} {
		for _, size := range []int64{1, 4097, 1 << 20, 5<<20 + 7} {
			a.Name = fmt.Sprintf("span %d of %d", i, size)
			b := g.alloc(size)
			want := bytes.Clone(b.Bytes())
			r := g.do(b, sharedbuf.Ingest(a))
			var in sharedbuf.Ingested
			if err := json.Unmarshal(r.Value, &in); err != nil || in.Bytes != size || in.Copied != size || r.Bytes != size {
				t.Errorf("%+v: answered %+v with %d bytes processed, %v", a, in, r.Bytes, err)
			}
			info := g.spans()[a.Name]
			if info.ID != in.Span || info.Size != size {
				t.Errorf("%+v: there is %+v", a, info)
			}
			clear(b.Bytes())
			if r := g.do(b, sharedbuf.Export(a.Name)); r.Bytes != size || !bytes.Equal(b.Bytes(), want) {
				t.Errorf("%+v, %d bytes: other bytes came back, %d processed", a, size, r.Bytes)
			}
			if err := b.Free(); err != nil {
				t.Error(err)
			}
		}
	}
}

// A buffer without a name can give its memory to a span: no byte is copied, and
// the span lives on when the guest is gone. What cannot be given is copied.
func TestIngestMoves(t *testing.T) {
	g := hostBuffers(t, server.Config{})
	const size = 3<<20 + 5
	for i, tt := range []struct {
		dir    string
		args   sharedbuf.IngestArguments
		copied int64
	}{
		{"", sharedbuf.IngestArguments{Move: true}, 0},
		{"", sharedbuf.IngestArguments{Move: true, Home: "disk"}, 0},
		{"", sharedbuf.IngestArguments{Move: true, Home: "disk", Policy: "write-through"}, size},
		{"", sharedbuf.IngestArguments{Move: true, Tier: "disk"}, size},
		{"", sharedbuf.IngestArguments{}, size},
		{g.dir, sharedbuf.IngestArguments{Move: true}, size},
	} {
		tt.args.Name = fmt.Sprint("span ", i)
		c, err := sharedbuf.Dial(t.Context(), g.addr, sharedbuf.Options{Dir: tt.dir})
		if err != nil {
			t.Fatal(err)
		}
		b, err := c.Alloc(t.Context(), size)
		if err != nil {
			t.Fatal(err)
		}
		rand.NewChaCha8([32]byte{byte(i)}).Read(b.Bytes())
		want := bytes.Clone(b.Bytes())
		r := g.do(b, sharedbuf.Ingest(tt.args))
		var in sharedbuf.Ingested
		if err := json.Unmarshal(r.Value, &in); err != nil || in.Copied != tt.copied || r.Bytes != size {
			t.Errorf("%+v: %+v, %d bytes processed, %v", tt.args, in, r.Bytes, err)
		}
		if tt.copied == 0 { // in place: one memory
			b.Bytes()[size-1]++
			want[size-1]++
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		back := g.alloc(size)
		if g.do(back, sharedbuf.Export(tt.args.Name)); !bytes.Equal(back.Bytes(), want) {
			t.Errorf("%+v: other bytes", tt.args)
		}
		var stat control.SpanStat
		if err := g.peer.control(control.OpStat, control.Handle{Handle: g.peer.open(tt.args.Name)}, &stat); err != nil || stat.Version != 1 {
			t.Errorf("%+v: version %d, %v", tt.args, stat.Version, err)
		}
	}
}

// Buffers whose bytes are sent become spans and are worked on like others.
func TestSpansOfSentBuffers(t *testing.T) {
	g := hostBuffers(t, withVRAM(t))
	c, err := sharedbuf.Dial(t.Context(), g.tcp, sharedbuf.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b, err := c.Alloc(t.Context(), 3<<20+2)
	if err != nil {
		t.Fatal(err)
	}
	rand.NewChaCha8([32]byte{}).Read(b.Bytes())
	want := bytes.Clone(b.Bytes())
	g.do(b, sharedbuf.Ingest(sharedbuf.IngestArguments{Name: "s", Move: true}), transform(compiled(t, "affine"), 5, 6))
	changed := bytes.Clone(want)
	if affine(changed, 5, 6); !bytes.Equal(b.Bytes(), changed) {
		t.Error("the transform's bytes did not come back")
	}
	if g.do(b, sharedbuf.Export("s")); !bytes.Equal(b.Bytes(), want) {
		t.Error("the span's bytes did not come back")
	}
}

// Guests whom a trusted network alone lets in have no spans, unless they are to.
func TestTrustedNetworksHaveNoSpans(t *testing.T) {
	for _, spans := range []bool{false, true} {
		g := hostBuffers(t, server.Config{Buffers: &server.BufferConfig{
			TrustSpans: spans, Host: host.Config{Trust: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}},
		}})
		own := g.alloc(1000)
		g.do(own, sharedbuf.Ingest(sharedbuf.IngestArguments{Name: "s"}))
		c, err := sharedbuf.Dial(t.Context(), g.tcp, sharedbuf.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		b, err := c.Alloc(t.Context(), 1000)
		if err != nil {
			t.Fatal(err)
		}
		export, replace := sharedbuf.Export("s"), sharedbuf.Ingest(sharedbuf.IngestArguments{Name: "s", Replace: true})
		if spans {
			g.do(b, export, sharedbuf.Fill(7), replace)
			g.do(own, export)
			if got := own.Bytes()[0]; got != 7 {
				t.Errorf("the span begins with %d, not with what it was replaced by", got)
			}
			continue
		}
		g.refused(b, sharedbuf.ErrDenied, export)
		g.refused(b, sharedbuf.ErrDenied, sharedbuf.Fill(7), replace)
		job, err := b.Start(t.Context(), export)
		if err == nil {
			_, err = job.Wait(t.Context())
		}
		if !errors.Is(err, sharedbuf.ErrDenied) {
			t.Errorf("in the background: %v", err)
		}
		if !bytes.Equal(b.Bytes(), make([]byte, 1000)) {
			t.Error("the buffer was written")
		}
		g.do(b, sharedbuf.Fill(7)) // what is his own he may have worked on
	}
}

// What becomes of a span's name.
func TestIngestNames(t *testing.T) {
	g := hostBuffers(t, server.Config{})
	one, two := g.alloc(1000), g.alloc(2000)
	g.do(one, sharedbuf.Ingest(sharedbuf.IngestArguments{Name: "s"}))
	g.refused(two, sharedbuf.ErrExists, sharedbuf.Ingest(sharedbuf.IngestArguments{Name: "s"}))
	g.refused(two, sharedbuf.ErrSize, sharedbuf.Export("s"))
	if info := g.spans()["s"]; info.Size != 1000 {
		t.Errorf("the span is %+v", info)
	}
	g.do(two, sharedbuf.Ingest(sharedbuf.IngestArguments{Name: "s", Replace: true}))
	if spans := g.spans(); len(spans) != 1 || spans["s"].Size != 2000 {
		t.Errorf("there are %+v", spans)
	}
	g.refused(one, sharedbuf.ErrSize, sharedbuf.Export("s"))
	g.do(two, sharedbuf.Export(g.spans()["s"].ID))
}

// What guests ask for and cannot have, each with its kind of error; nothing is
// left of it.
func TestBufferOperationsRefuse(t *testing.T) {
	g := hostBuffers(t, server.Config{HostBudget: 8 << 20, Limits: server.Limits{SpanSize: 16 << 20}})
	b, large := g.alloc(1<<20), g.alloc(12<<20)
	in := func(a sharedbuf.IngestArguments) sharedbuf.Step { return sharedbuf.Ingest(a) }
	g.refused(b, sharedbuf.ErrInvalid, in(sharedbuf.IngestArguments{}))
	g.refused(b, sharedbuf.ErrInvalid, in(sharedbuf.IngestArguments{Name: "a\nb"}))
	g.refused(b, sharedbuf.ErrInvalid, in(sharedbuf.IngestArguments{Name: "s", Tier: "tape"}))
	g.refused(b, sharedbuf.ErrInvalid, in(sharedbuf.IngestArguments{Name: "s", Home: "tape"}))
	g.refused(b, sharedbuf.ErrInvalid, in(sharedbuf.IngestArguments{Name: "s", Policy: "write-never"}))
	g.refused(b, sharedbuf.ErrUnsupported, in(sharedbuf.IngestArguments{Name: "s", Tier: "vram"}))
	g.refused(b, sharedbuf.ErrInvalid, sharedbuf.Operation("ingest", map[string]int{"speed": 1}))
	g.refused(b, sharedbuf.ErrNotFound, sharedbuf.Export("s"))
	g.refused(b, sharedbuf.ErrInvalid, sharedbuf.Operation("export", 7))
	g.refused(b, sharedbuf.ErrUnsupported, sharedbuf.Transform(sharedbuf.TransformArguments{SPIRV: []byte{1}}))
	g.refused(b, sharedbuf.ErrInvalid, sharedbuf.Transform(sharedbuf.TransformArguments{}))
	g.refused(b, sharedbuf.ErrInvalid, sharedbuf.Transform(sharedbuf.TransformArguments{Kernel: "k", SPIRV: []byte{1}}))
	g.refused(b, sharedbuf.ErrNotFound, sharedbuf.Transform(sharedbuf.TransformArguments{Kernel: "k"}))
	// The Disk tier takes what RAM cannot, as for spans of others.
	g.do(large, in(sharedbuf.IngestArguments{Name: "large"}))
	if spans := g.spans(); len(spans) != 1 {
		t.Errorf("left over: %+v", spans)
	}
}

// A file that is cut short while the host works on it fails what is done with it,
// and nothing is left of a span.
func TestTruncatedMeanwhile(t *testing.T) {
	var dir string
	cut := host.Operation{Name: "cut", Access: host.ReadWrite, Run: func(*host.Call) (any, error) {
		names, err := filepath.Glob(filepath.Join(dir, "victim"))
		if err != nil || len(names) != 1 {
			return nil, fmt.Errorf("%v, %w", names, err)
		}
		return nil, os.Truncate(names[0], 1<<20+4096)
	}}
	g := hostBuffers(t, server.Config{Buffers: &server.BufferConfig{Host: host.Config{Operations: []host.Operation{cut}}}})
	dir = g.dir
	b := g.alloc(4 << 20)
	g.do(b, sharedbuf.Ingest(sharedbuf.IngestArguments{Name: "whole"}))
	path := filepath.Join(dir, "victim")
	for _, tier := range []string{"host", "disk"} {
		for _, step := range []sharedbuf.Step{
			sharedbuf.Ingest(sharedbuf.IngestArguments{Name: "torn", Tier: tier}), sharedbuf.Export("whole"),
		} {
			if err := os.WriteFile(path, make([]byte, 4<<20), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := g.ProcessFile(t.Context(), path, sharedbuf.Operation("cut", nil), step)
			if !errors.Is(err, sharedbuf.ErrTruncated) {
				t.Errorf("%s %s: %v", step.Operation, step.Arguments, err)
			}
		}
	}
	if spans := g.spans(); len(spans) != 1 || spans["whole"].Size != 4<<20 {
		t.Errorf("there are %+v", spans)
	}
	want := bytes.Clone(b.Bytes())
	clear(b.Bytes())
	if g.do(b, sharedbuf.Export("whole")); !bytes.Equal(b.Bytes(), want) {
		t.Error("the span that was exported has changed")
	}
}

// A server without shared buffers serves none.
func TestNoBuffers(t *testing.T) {
	srv, _, _ := listen(t, server.Config{})
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "guests"))
	if err != nil {
		t.Fatal(err)
	}
	if err := srv.ServeBuffers(t.Context(), ln); err == nil {
		t.Error("no error")
	}
	if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the listener: %v", err)
	}
	_, err = server.New(t.Context(), server.Config{Buffers: &server.BufferConfig{Kernels: map[string][]byte{"k": []byte("none")}}})
	if !errors.Is(err, vram.ErrKernel) {
		t.Errorf("a kernel that is none: %v", err)
	}
}

// Chains of ingests and exports do what a model of spans does.
func TestSpansOfBuffersModel(t *testing.T) {
	g := hostBuffers(t, server.Config{})
	const size = 1<<20 + 100
	b := g.alloc(size)
	rapid.Check(t, func(t *rapid.T) {
		spans := make(map[string][]byte)
		names := rapid.SampledFrom([]string{"a", "b", "c"})
		prefix := fmt.Sprint(rand.Uint64())
		t.Repeat(map[string]func(*rapid.T){
			"fill": func(t *rapid.T) {
				if _, err := b.Process(g.t.Context(), sharedbuf.Fill(rapid.Uint32().Draw(t, "pattern"))); err != nil {
					t.Fatal(err)
				}
			},
			"ingest": func(t *rapid.T) {
				name, replace := names.Draw(t, "name"), rapid.Bool().Draw(t, "replace")
				_, err := b.Process(g.t.Context(), sharedbuf.Ingest(sharedbuf.IngestArguments{
					Name: prefix + name, Replace: replace, Tier: rapid.SampledFrom([]string{"host", "disk"}).Draw(t, "tier"),
				}))
				if spans[name] != nil && !replace {
					if !errors.Is(err, sharedbuf.ErrExists) {
						t.Fatalf("ingest of a name that is taken: %v", err)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				spans[name] = bytes.Clone(b.Bytes())
			},
			"export": func(t *rapid.T) {
				name := names.Draw(t, "name")
				_, err := b.Process(g.t.Context(), sharedbuf.Export(prefix+name))
				if spans[name] == nil {
					if !errors.Is(err, sharedbuf.ErrNotFound) {
						t.Fatalf("export of no span: %v", err)
					}
					return
				}
				if err != nil || !bytes.Equal(b.Bytes(), spans[name]) {
					t.Fatalf("other bytes were exported, %v", err)
				}
			},
		})
	})
}

// affine does what affine.comp does to a buffer.
func affine(p []byte, factor, term uint32) {
	le := binary.LittleEndian
	for i := 0; i < len(p); i += 4 {
		var word [4]byte
		copy(word[:], p[i:])
		le.PutUint32(word[:], le.Uint32(word[:])*factor+term+uint32(i/4))
		copy(p[i:], word[:])
	}
}

// compiled returns a kernel's code.
func compiled(t testing.TB, name string) []byte {
	t.Helper()
	code, err := os.ReadFile(filepath.Join("..", "tier", "vram", "testdata", name+".spv"))
	if err != nil {
		t.Fatal(err)
	}
	return code
}
