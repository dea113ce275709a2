// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package vram

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/memspan/memspan/internal/confine"
	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/tier"
)

// testMemory returns n bytes that hold words of their own place.
func testMemory(t testing.TB, tr *Tier, n int64) tier.Memory {
	t.Helper()
	r, err := memfd.Create("vramtest", n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		tr.Forget(r)
		r.Close()
	})
	for i := range r.Bytes() {
		r.Bytes()[i] = byte(i>>2>>(8*(i&3))) ^ byte(i)
	}
	return tier.Memory{Region: r, Len: n}
}

// testSpace returns a space with all its blocks reserved.
func testSpace(t testing.TB, tr *Tier, blocks int) tier.Space {
	t.Helper()
	s, err := tr.Open(t.Context(), "test", int64(blocks)*tier.BlockSize, tier.AnyMemory)
	if err != nil {
		t.Fatal(err)
	}
	for b := range blocks {
		if err := s.Reserve(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// eventually waits for what another process must make true.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for limit := time.Now().Add(time.Minute); !ok(); <-tick.C {
		if time.Now().After(limit) {
			t.Fatalf("%s: not within a minute", what)
		}
	}
}

func signal(t *testing.T, pid int, sig os.Signal) error {
	t.Helper()
	p, err := os.FindProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Release()
	return p.Signal(sig)
}

// gone reports whether no process, not even a zombie, has the pid.
func gone(t *testing.T, pid int) bool {
	return errors.Is(signal(t, pid, syscall.Signal(0)), os.ErrProcessDone)
}

func procFile(t *testing.T, pid int, name string) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestKill kills the worker while transfers are under way, several times.
func TestKill(t *testing.T) {
	for _, mode := range modes[:2] {
		t.Run(mode.name, func(t *testing.T) {
			const movers, rounds = 6, 3
			var tr *Tier
			var lost atomic.Int64
			var unready tier.Space
			cfg := mode.cfg
			cfg.Lost = func() {
				lost.Add(1)
				if err := unready.Reserve(context.Background(), 0); !errors.Is(err, tier.ErrAbsent) {
					t.Errorf("a call within Lost: %v, want ErrAbsent", err)
				}
			}
			tr = startTest(t, cfg)
			unready, _ = tr.Open(t.Context(), "unready", 1, tier.AnyMemory)
			s := testSpace(t, tr, movers)
			m, out := testMemory(t, tr, tier.BlockSize), testMemory(t, tr, movers*tier.BlockSize)
			for round := range int64(rounds) {
				pid := tr.WorkerPID()
				var wg sync.WaitGroup
				errs := make([]error, movers)
				under := make(chan struct{}, movers)
				for b := range movers {
					wg.Go(func() {
						var once sync.Once
						for errs[b] == nil {
							if errs[b] = s.Write(context.Background(), b, 0, m); errs[b] == nil {
								errs[b] = s.Read(context.Background(), b, 0, out.Slice(int64(b)*tier.BlockSize, tier.BlockSize))
							}
							once.Do(func() { under <- struct{}{} })
						}
					})
				}
				for range movers {
					<-under
				}
				if err := signal(t, pid, os.Kill); err != nil {
					t.Fatal(err)
				}
				wg.Wait()
				for b, err := range errs {
					if !errors.Is(err, tier.ErrLost) {
						t.Errorf("block %d: %v, want ErrLost", b, err)
					}
				}
				eventually(t, "successor", func() bool { return tr.WorkerPID() != 0 && tr.WorkerPID() != pid })
				if got := lost.Load(); got != round+1 {
					t.Fatalf("Lost was called %d times for %d deaths", got, round+1)
				}
				if !gone(t, pid) {
					t.Error("the killed worker is still there")
				}
				if u := tr.Usage(); u.Used != 0 {
					t.Errorf("%d bytes in use by a worker that holds nothing", u.Used)
				}
				if err := s.Read(t.Context(), 0, 0, m.Slice(0, 1)); !errors.Is(err, tier.ErrLost) {
					t.Errorf("read of a lost block: %v, want ErrLost", err)
				}
				for b := range movers {
					if err := s.Reserve(t.Context(), b); err != nil {
						t.Fatal(err)
					}
				}
				back := out.Slice(0, tier.BlockSize)
				clear(back.Bytes())
				if err := errors.Join(s.Write(t.Context(), 0, 0, m), s.Read(t.Context(), 0, 0, back)); err != nil {
					t.Fatal(err)
				} else if string(back.Bytes()) != string(m.Bytes()) {
					t.Fatal("the successor returned other bytes")
				}
			}
			if got := tr.Stats().Workers; got != rounds+1 {
				t.Errorf("%d workers were started, want %d", got, rounds+1)
			}
		})
	}
}

// stop stops all threads of a worker.
func stop(t *testing.T, pid int) {
	t.Helper()
	if err := signal(t, pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "stop", func() bool {
		threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		for _, thread := range threads {
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/status", pid, thread.Name()))
			if err != nil || !strings.Contains(string(status), "State:\tT") {
				return false
			}
		}
		return err == nil
	})
}

// startImpatient starts a tier that has little patience with its worker, and still
// as much as a busy machine takes to load a driver.
func startImpatient(t *testing.T) *Tier {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	tr, err := start(t.Context(), Config{Command: []string{self}}, 12*time.Second)
	needVulkan(t, err)
	t.Cleanup(func() { tr.Close() })
	return tr
}

// TestCloseStopped closes a tier whose worker does not listen.
func TestCloseStopped(t *testing.T) {
	t.Parallel()
	tr := startImpatient(t)
	pid := tr.WorkerPID()
	stop(t, pid)
	tr.Close()
	if !gone(t, pid) {
		t.Error("the stopped worker is still there")
	}
}

// TestStall stops the worker in the middle of calls: they end all the same.
func TestStall(t *testing.T) {
	t.Parallel()
	tr := startImpatient(t)
	s := testSpace(t, tr, 1)
	m := testMemory(t, tr, tier.BlockSize)
	pid := tr.WorkerPID()
	stop(t, pid)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Write(ctx, 0, 0, m) }()
	cancel() // before or after the request is sent: neither may hang
	if err := <-done; !errors.Is(err, tier.ErrLost) && !errors.Is(err, context.Canceled) {
		t.Errorf("write to a stopped worker: %v", err)
	}
	if err := s.Read(t.Context(), 0, 0, m); !errors.Is(err, tier.ErrLost) || !strings.Contains(err.Error(), errStalled.Error()) && !gone(t, pid) {
		t.Errorf("read from a stopped worker: %v, want ErrLost", err)
	}
	eventually(t, "the end of the stopped worker", func() bool { return gone(t, pid) })
}

// TestIdleWorkerLives sees that a worker without calls is not taken for one
// that stalls.
func TestIdleWorkerLives(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	l, err := startLink([]string{self}, 10*time.Millisecond, new(counters), discard)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-l.dead:
		t.Errorf("the idle worker is dead: %v", l.ended)
	case <-time.After(100 * time.Millisecond):
	}
	l.close()
}

func TestClose(t *testing.T) {
	tr := startTest(t, Config{Lost: func() { t.Error("Lost was called for a worker that was closed") }})
	s := testSpace(t, tr, 2)
	m := testMemory(t, tr, tier.BlockSize)
	pid := tr.WorkerPID()
	var wg sync.WaitGroup
	under := make(chan struct{}, 2)
	for b := range 2 {
		wg.Go(func() {
			var err error
			for n := 0; err == nil; n++ {
				if err = s.Write(context.Background(), b, 0, m); n == 0 {
					under <- struct{}{}
				}
			}
			if !errors.Is(err, tier.ErrLost) && !errors.Is(err, os.ErrClosed) {
				t.Errorf("write during close: %v", err)
			}
		})
	}
	<-under
	<-under
	if err := tr.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
	if !gone(t, pid) {
		t.Error("the worker is still there")
	}
	if err := tr.Close(); err != nil {
		t.Error(err)
	}
	if err := s.Reserve(t.Context(), 0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("reserve after close: %v, want os.ErrClosed", err)
	}
	if _, err := tr.Open(t.Context(), "late", 1, tier.AnyMemory); !errors.Is(err, os.ErrClosed) {
		t.Errorf("open after close: %v, want os.ErrClosed", err)
	}
	s.Drop(0)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if tr.WorkerPID() != 0 || tr.Usage().Used != 0 {
		t.Errorf("a closed tier has worker %d and uses %d bytes", tr.WorkerPID(), tr.Usage().Used)
	}
}

// TestNothingIsLeft reserves and drops 10,000 blocks of all lengths.
func TestNothingIsLeft(t *testing.T) {
	tr := startTest(t, Config{Budget: 256 << 20})
	pid := tr.WorkerPID()
	resident := func() int {
		fields := strings.Fields(procFile(t, pid, "statm"))
		pages, err := strconv.Atoi(fields[1])
		if err != nil {
			t.Fatal(err)
		}
		return pages * os.Getpagesize()
	}
	round := func(count int) {
		for i := range count {
			size := []int64{1, tier.BlockSize, 70_001, 40 * tier.BlockSize, 4096}[i%5]
			s, err := tr.Open(t.Context(), "test", size, tier.Placement(i%3))
			if err != nil {
				t.Fatal(err)
			}
			for b := range int((size-1)/tier.BlockSize + 1) {
				if err := s.Reserve(t.Context(), b); err != nil {
					t.Fatal(err)
				}
			}
			s.Close()
		}
	}
	round(10)
	before := resident()
	round(1130) // 8.8 blocks each
	if s := tr.Stats(); s.Slots != 0 || s.Slabs > 1 {
		t.Errorf("%d slots and %d slabs are left", s.Slots, s.Slabs)
	}
	if used := tr.Usage().Used; used > slabSizeFor(256<<20) {
		t.Errorf("%d bytes are left in use", used)
	}
	if after := resident(); after > before+32<<20 {
		t.Errorf("the worker grew from %d to %d MiB", before>>20, after>>20)
	}
}

func TestForget(t *testing.T) {
	tr := startTest(t, Config{})
	s := testSpace(t, tr, 1)
	maps := func(r *memfd.Region) bool {
		return strings.Contains(procFile(t, tr.WorkerPID(), "maps"), "memfd:forgettable")
	}
	for range 3 {
		r, err := memfd.Create("forgettable", 4096)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Write(t.Context(), 0, 0, tier.Memory{Region: r, Len: 4096}); err != nil {
			t.Fatal(err)
		}
		if !maps(r) {
			t.Error("the worker does not map the region it copied from")
		}
		tr.Forget(r)
		if maps(r) {
			t.Error("the worker maps a region it was to forget")
		}
		tr.Forget(r) // no region of the worker's any more
		r.Close()
	}
}

// TestPaths sees which way bytes take on which kind of device.
func TestPaths(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			tr := startTest(t, mode.cfg)
			s := testSpace(t, tr, 2)
			m := testMemory(t, tr, tier.BlockSize)
			ctx := t.Context()
			if err := errors.Join(s.Write(ctx, 0, 1, m.Slice(0, 1000)), s.Read(ctx, 0, 1, m.Slice(5, 1000))); err != nil {
				t.Fatal(err)
			}
			moved := tr.Stats()
			if err := errors.Join(s.Fill(ctx, 0, 3, 500, 1), s.Copy(ctx, 1, 0, s, 0, 3, 500)); err != nil {
				t.Fatal(err)
			}
			done := tr.Stats()
			if staged := mode.cfg.HideHostVisible; staged != (moved.Staged == 2000) || staged != (moved.Mapped == 0) || moved.Staged+moved.Mapped != 2000 || staged != (moved.Submits > 0) {
				t.Errorf("after a write and a read: %+v", moved)
			}
			// Of a write that covers parts of atoms: the invalidation before
			// and the flush after; of a read, the invalidation.
			if want := map[bool]int64{true: 3}[mode.cfg.HideHostCoherent]; moved.Flushes != want {
				t.Errorf("after a write and a read: %d flushes, want %d", moved.Flushes, want)
			}
			if done.Device != 1000 || done.Submits < moved.Submits+1 || done.Slots != 2 {
				t.Errorf("after a fill and a copy: %+v", done)
			}
		})
	}
}

func TestDevice(t *testing.T) {
	tr := startTest(t, Config{})
	d := tr.Device()
	if d.Name == "" || len(d.Heaps) == 0 || len(d.Types) == 0 || d.MaxAllocations == 0 || d.NonCoherentAtom == 0 {
		t.Errorf("%+v", d)
	}
	if u := tr.Usage(); u.Used != 0 || u.Budget <= 0 {
		t.Errorf("%+v", u)
	}
	again := startTest(t, Config{Device: d.UUID})
	if got := again.Device(); got.Index != d.Index {
		t.Errorf("device of UUID %s: %+v", d.UUID, got)
	}
	self, _ := os.Executable()
	if _, err := Start(t.Context(), Config{Command: []string{self}, Device: "voodoo"}); !errors.Is(err, tier.ErrAbsent) || !strings.Contains(err.Error(), d.Name) {
		t.Errorf("a device that is not there: %v", err)
	}
}

func TestProbe(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	devices, err := Probe(t.Context(), Config{Command: []string{self}})
	needVulkan(t, err)
	if len(devices) == 0 || devices[0].Name == "" || devices[0].API == 0 {
		t.Errorf("%+v", devices)
	}
}

// TestNoDriver hides the drivers from the loader.
func TestNoDriver(t *testing.T) {
	t.Setenv("VK_DRIVER_FILES", "/dev/null")
	t.Setenv("VK_ICD_FILENAMES", "/dev/null")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	_, startErr := Start(t.Context(), Config{Command: []string{self}})
	_, probeErr := Probe(t.Context(), Config{Command: []string{self}})
	for _, err := range []error{startErr, probeErr} {
		if !errors.Is(err, tier.ErrAbsent) || !strings.Contains(err.Error(), "apt install") {
			t.Errorf("without a driver: %v", err)
		}
	}
}

func TestConfined(t *testing.T) {
	tr := startTest(t, Config{})
	status := procFile(t, tr.WorkerPID(), "status")
	for _, want := range []string{"NoNewPrivs:\t1\n", "Seccomp:\t2\n"} {
		if !strings.Contains(status, want) {
			t.Errorf("the worker's status lacks %q", want)
		}
	}
}

// badWorker is a worker that does not do what it should.
func badWorker(how string) int {
	conn, err := confine.Parent()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer conn.Close()
	request := make([]byte, requestSize)
	io.ReadFull(conn, request)
	r := reply{id: 1}
	switch how {
	case "exit":
		fmt.Fprintln(os.Stderr, "no luck")
		return 3
	case "panic":
		panic("a crash")
	case "garbage":
		conn.Write([]byte(strings.Repeat("\xff", 4096)))
	case "huge":
		r.payload = math.MaxUint32
		conn.Write(r.append(nil))
	case "stranger":
		r.id = 77
		conn.Write(r.append(nil))
	case "hole":
		r.payload = 100
		conn.Write(append(r.append(nil), "ten bytes."...))
		return 0
	case "nonsense":
		r.payload = 3
		conn.Write(append(r.append(nil), "[[["...))
	case "silent":
	}
	bufio.NewReader(conn).WriteTo(io.Discard) // until the tier lets go
	return 0
}

func TestBadWorkers(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for how, want := range map[string]string{
		"exit": "no luck", "panic": "panic: a crash", "garbage": "", "huge": "4294967295", "stranger": "77", "hole": "", "nonsense": "",
		"silent": errStalled.Error(),
	} {
		t.Run(how, func(t *testing.T) {
			stall := stallLimit
			if how == "silent" {
				stall = 200 * time.Millisecond
			}
			_, err := start(t.Context(), Config{Command: []string{self, how}}, stall)
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want an error with %q", err, want)
			}
		})
	}
	if _, err := Start(t.Context(), Config{Command: []string{"/nonexistent"}}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a worker that does not exist: %v", err)
	}
}

func TestStartCancelled(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Start(ctx, Config{Command: []string{self, "silent"}}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want context.Canceled", err)
	}
}
