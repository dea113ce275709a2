// SPDX-License-Identifier: Apache-2.0

//go:build amd64 || arm64

package callstack_test

import (
	"fmt"
	"os"
	"runtime"
	"runtime/metrics"
	"testing"

	"github.com/memspan/memspan/internal/callstack"
)

// stacks tells how many bytes the goroutines' stacks have.
func stacks() uint64 {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/stacks:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

func TestReserve(t *testing.T) {
	before := stacks()
	grown := make(chan uint64)
	end := make(chan struct{})
	go func() {
		callstack.Reserve()
		callstack.Reserve()
		grown <- stacks()
		<-end
	}()
	if n := <-grown - before; n < callstack.Room || n > 4*callstack.Room {
		t.Errorf("the stack has grown by %d bytes, want somewhat more than %d", n, callstack.Room)
	}
	close(end)
}

func TestReserveTouchesNothing(t *testing.T) {
	const goroutines = 64
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	resident := rss(t)
	ready, end := make(chan struct{}), make(chan struct{})
	for range goroutines {
		go func() {
			callstack.Reserve()
			ready <- struct{}{}
			<-end
		}()
	}
	for range goroutines {
		<-ready
	}
	runtime.ReadMemStats(&after)
	if n := after.StackInuse - before.StackInuse; n < goroutines*callstack.Room {
		t.Errorf("%d stacks have %d bytes", goroutines, n)
	}
	if n := rss(t) - resident; n > goroutines*callstack.Room/4 {
		t.Errorf("%d bytes of RAM are taken for %d stacks", n, goroutines)
	}
	close(end)
}

func BenchmarkReserve(b *testing.B) {
	for b.Loop() {
		callstack.Reserve()
	}
}

// rss tells how many bytes of RAM this process has.
func rss(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Skip(err)
	}
	var size, resident int
	if _, err := fmt.Sscan(string(b), &size, &resident); err != nil {
		t.Fatal(err)
	}
	return resident * os.Getpagesize()
}
