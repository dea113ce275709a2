// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/memspan/memspan/server"
	"github.com/memspan/memspan/sharedbuf"
)

func transform(code []byte, push ...sharedbuf.U32) sharedbuf.Step {
	return sharedbuf.Transform(sharedbuf.TransformArguments{SPIRV: code, Push: push})
}

// What a kernel makes of a buffer is what Go makes of it, whatever its size.
func TestTransform(t *testing.T) {
	g := hostBuffers(t, withVRAM(t))
	code := compiled(t, "affine")
	for _, size := range []int64{1, 3, 4, 4097, 1 << 20, 1<<20 + 1, 3 << 20, 9<<20 + 7} {
		b := g.alloc(size)
		want := bytes.Clone(b.Bytes())
		factor, term := rand.Uint32(), rand.Uint32()
		affine(want, factor, term)
		r := g.do(b, transform(code, sharedbuf.U32(factor), sharedbuf.U32(term)))
		if !bytes.Equal(b.Bytes(), want) || r.Bytes != size || r.Value != nil {
			t.Errorf("%d bytes: they are other than expected, or %+v", size, r)
		}
		if err := b.Free(); err != nil {
			t.Error(err)
		}
	}
}

// A kernel works on what the operation before it wrote, and is seen by the next;
// the server's own kernels have names.
func TestTransformInAChain(t *testing.T) {
	cfg := withVRAM(t)
	cfg.Buffers = &server.BufferConfig{Kernels: map[string][]byte{"affine": compiled(t, "affine")}}
	g := hostBuffers(t, cfg)
	b := g.alloc(2<<20 + 40)
	r := g.do(b, sharedbuf.Fill(7), sharedbuf.Transform(sharedbuf.TransformArguments{Kernel: "affine", Push: []sharedbuf.U32{3, 5}}),
		sharedbuf.Checksum(), sharedbuf.Ingest(sharedbuf.IngestArguments{Name: "s", Tier: "vram"}))
	want := bytes.Repeat([]byte{7, 0, 0, 0}, len(b.Bytes())/4)
	affine(want, 3, 5)
	if !bytes.Equal(b.Bytes(), want) {
		t.Error("the bytes are others")
	}
	check := g.alloc(int64(len(want)))
	copy(check.Bytes(), want)
	if sum := g.do(check, sharedbuf.Checksum()).Value; !bytes.Equal(sum, r.Steps[2].Value) {
		t.Errorf("the checksum was %s, want %s", r.Steps[2].Value, sum)
	}
	clear(b.Bytes())
	if g.do(b, sharedbuf.Export("s")); !bytes.Equal(b.Bytes(), want) {
		t.Error("the span has other bytes")
	}
}

// Many guests' kernels run at once, and each sees its own buffer.
func TestManyTransforms(t *testing.T) {
	g := hostBuffers(t, withVRAM(t))
	code := compiled(t, "affine")
	var group errgroup.Group
	for i := range uint32(12) {
		c := g.dial()
		group.Go(func() error {
			b, err := c.Alloc(t.Context(), int64(i+1)<<19)
			if err != nil {
				return err
			}
			want := bytes.Clone(b.Bytes())
			for round := range uint32(3) {
				if _, err := b.Process(t.Context(), transform(code, sharedbuf.U32(i+3), sharedbuf.U32(round))); err != nil {
					return err
				}
				affine(want, i+3, round)
			}
			if !bytes.Equal(b.Bytes(), want) {
				return fmt.Errorf("guest %d: other bytes", i)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}

// More kernels than the device keeps, each asked for by several guests at a time,
// are all run.
func TestManyKernels(t *testing.T) {
	g := hostBuffers(t, withVRAM(t))
	var group errgroup.Group
	for i := range 4 {
		c := g.dial()
		group.Go(func() error {
			b, err := c.Alloc(t.Context(), 1000)
			if err != nil {
				return err
			}
			want := bytes.Clone(b.Bytes())
			for n := range 60 {
				code := slices.Clone(compiled(t, "affine"))
				code[8] = byte(n * (i%2 + 1) % 24) // who made it, which changes nothing
				if _, err := b.Process(t.Context(), transform(code, 3, sharedbuf.U32(n))); err != nil {
					return err
				}
				affine(want, 3, uint32(n))
			}
			if !bytes.Equal(b.Bytes(), want) {
				return fmt.Errorf("guest %d: other bytes", i)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}

// What is no kernel is refused, by the server or the driver.
func TestTransformRefuses(t *testing.T) {
	g := hostBuffers(t, withVRAM(t))
	b := g.alloc(100)
	want := bytes.Clone(b.Bytes())
	code := compiled(t, "affine")
	odd := slices.Clone(code)
	odd[20] ^= 0xff // the first instruction
	g.refused(b, sharedbuf.ErrInvalid, transform([]byte("no kernel")))
	g.refused(b, sharedbuf.ErrInvalid, transform(odd))
	g.refused(b, sharedbuf.ErrInvalid, transform(code[:len(code)-5]))
	g.refused(b, sharedbuf.ErrInvalid, transform(code, make([]sharedbuf.U32, sharedbuf.MaxTransformPush+1)...))
	g.do(b, transform(code, make([]sharedbuf.U32, sharedbuf.MaxTransformPush)...)) // to zeros and their place
	if bytes.Equal(b.Bytes(), want) {
		t.Error("the largest push is not taken")
	}
}

// workers returns the processes that this one has started as VRAM workers.
func workers(t *testing.T) []int {
	t.Helper()
	var list []int
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Skip(err)
	}
	for _, task := range tasks {
		children, _ := os.ReadFile("/proc/self/task/" + task.Name() + "/children") // the thread may have ended
		for pid := range strings.FieldsSeq(string(children)) {
			n, err := strconv.Atoi(pid)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, n)
		}
	}
	return list
}

// kernelWorker has a kernel run, the first, and returns the worker that ran it.
func kernelWorker(g *guestTest) *os.Process {
	g.t.Helper()
	t := g.t.(*testing.T)
	before := workers(t)
	g.do(g.alloc(4), transform(compiled(t, "affine")))
	for _, pid := range workers(t) {
		if !slices.Contains(before, pid) {
			worker, err := os.FindProcess(pid)
			if err != nil {
				t.Fatal(err)
			}
			return worker
		}
	}
	t.Fatal("no worker of its own runs kernels")
	return nil
}

// Transforms that are given up while the driver compiles their kernels end, and
// others take their places; what was compiled meanwhile is there for the next.
func TestCanceledWhileCompiling(t *testing.T) {
	g := hostBuffers(t, withVRAM(t))
	worker := kernelWorker(g)
	code := slices.Clone(compiled(t, "affine"))
	var buffers []*sharedbuf.Buffer
	for range 12 { // more than can be under way, of two for each kernel
		buffers = append(buffers, g.alloc(4096))
	}
	// It compiles for long, but for less than makes it one that has stalled: what is
	// done meanwhile is done at once.
	if err := worker.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	var jobs []*sharedbuf.Job
	for i, b := range buffers {
		code[8] = byte(i / 2)
		job, err := b.Start(t.Context(), transform(code, 3, 1))
		if err != nil {
			t.Fatal(err)
		}
		jobs = append(jobs, job)
	}
	var work errgroup.Group
	for i, job := range jobs {
		work.Go(func() error {
			if err := job.Cancel(t.Context()); err != nil {
				return err
			}
			if _, err := job.Wait(t.Context()); !errors.Is(err, sharedbuf.ErrCanceled) {
				return fmt.Errorf("job %d: %w", i, err)
			}
			return nil
		})
	}
	if err := errors.Join(work.Wait(), worker.Signal(syscall.SIGCONT)); err != nil {
		t.Fatal(err)
	}
	for i := range 6 {
		code[8] = byte(i)
		b := g.alloc(4096)
		want := bytes.Clone(b.Bytes())
		affine(want, 3, 1)
		if g.do(b, transform(code, 3, 1)); !bytes.Equal(b.Bytes(), want) {
			t.Errorf("kernel %d made other bytes", i)
		}
	}
}

// The worker that a kernel runs in dies: the guest is told, and nothing else
// comes of it. Spans in device memory stay, the next kernel runs.
func TestKernelWorkerKilled(t *testing.T) {
	g := hostBuffers(t, withVRAM(t))
	code := compiled(t, "affine")
	b, slow := g.alloc(3<<20), g.alloc(8<<20)
	g.do(b, sharedbuf.Ingest(sharedbuf.IngestArguments{Name: "s", Tier: "vram"}))
	want := bytes.Clone(b.Bytes())
	worker := kernelWorker(g)
	job, err := slow.Start(t.Context(), transform(compiled(t, "spin")))
	if err != nil {
		t.Fatal(err)
	}
	if err := worker.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := job.Wait(t.Context()); !errors.Is(err, sharedbuf.ErrDeviceLost) {
		t.Errorf("the transform: %v", err)
	}
	clear(b.Bytes())
	if g.do(b, sharedbuf.Export("s")); !bytes.Equal(b.Bytes(), want) {
		t.Error("the span has changed")
	}
	affine(want, 3, 1)
	if g.do(b, transform(code, 3, 1)); !bytes.Equal(b.Bytes(), want) {
		t.Error("the next transform made other bytes")
	}
	g.do(slow, sharedbuf.Process()) // it is there, if half done
}

// A kernel that does not end does not keep the server from stopping.
func TestShutdownEndsKernels(t *testing.T) {
	cfg := withVRAM(t)
	cfg.Buffers, cfg.HostBudget = new(server.BufferConfig), 64<<20
	srv, err := server.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "guests"))
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.ServeBuffers(t.Context(), ln) }()
	c, err := sharedbuf.Dial(t.Context(), ln.Addr().String(), sharedbuf.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b, err := c.Alloc(t.Context(), 8<<20)
	if err != nil {
		t.Fatal(err)
	}
	before := len(workers(t))
	if _, err := b.Process(t.Context(), transform(compiled(t, "affine"), 1, 1)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Start(t.Context(), transform(compiled(t, "spin"))); err != nil {
		t.Fatal(err)
	}
	if len(workers(t)) <= before {
		t.Error("no worker runs kernels")
	}
	if err := errors.Join(srv.Shutdown(t.Context()), <-served); err != nil {
		t.Error(err)
	}
	if n := len(workers(t)); n != 0 {
		t.Errorf("%d workers are left", n)
	}
}
