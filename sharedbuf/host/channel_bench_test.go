// SPDX-License-Identifier: Apache-2.0

package host_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"testing"

	"github.com/memspan/memspan/internal/blocks"
	"github.com/memspan/memspan/sharedbuf"
	"github.com/memspan/memspan/sharedbuf/host"
)

// BenchmarkChannel is a pass of the host over 64 MiB whose bytes are sent: all of
// them, few and none changed. "ratio" is against a bare copy of all bytes over
// such a connection.
func BenchmarkChannel(b *testing.B) {
	const size = 64 << 20
	noise := make([]byte, size)
	scribble(noise)
	text := bytes.Repeat([]byte("what repeats itself is compressed; "), size/35+1)[:size]
	for _, test := range []struct {
		name   string
		change func(mem []byte, round int)
	}{
		{"noise", func(mem []byte, round int) {
			copy(mem, noise)
			for i := 0; i < size; i += blocks.Size {
				mem[i] = byte(round) // each block is another one than before
			}
		}},
		{"text", func(mem []byte, round int) {
			copy(mem, text)
			for i := 0; i < size; i += blocks.Size {
				mem[i] = byte(round)
			}
		}},
		{"1percent", func(mem []byte, round int) {
			for range size / 4096 / 100 {
				mem[rand.IntN(size)]++
			}
		}},
		{"nothing", func([]byte, int) {}},
	} {
		b.Run(test.name, func(b *testing.B) {
			ln := &counter{Listener: tcp(b)}
			serve(b, ln, host.Config{})
			buf := alloc(b, dial(b, ln, ""), size)
			copy(buf.Bytes(), noise)
			round := 0
			process := func() {
				if _, err := buf.Process(b.Context(), sharedbuf.Process()); err != nil {
					b.Fatal(err)
				}
			}
			process()
			raw := rawCopy(b, noise)
			ln.reset()
			pairedAfter(b, func() {
				round++
				test.change(buf.Bytes(), round)
			}, process, raw)
			in, _ := ln.reset()
			b.ReportMetric(float64(in)/float64(round), "wire-bytes/op")
		})
	}
}

// rawCopy returns what sends mem over a connection on loopback, to who reads it
// into memory and answers with a byte.
func rawCopy(b *testing.B, mem []byte) func() {
	ln := tcp(b)
	done := make(chan struct{})
	go func() {
		defer close(done)
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		defer nc.Close()
		to := make([]byte, len(mem))
		for {
			if _, err := io.ReadFull(nc, to); err != nil {
				return
			}
			nc.Write(to[:1])
		}
	}()
	nc, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		nc.Close()
		ln.Close()
		<-done
	})
	return func() {
		if _, err := nc.Write(mem); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(nc, make([]byte, 1)); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkBlockSize has a few bytes changed in 64 MiB, as many as the name says,
// and counts what is sent: what a block's size is chosen by, together with
// BenchmarkChannel.
func BenchmarkBlockSize(b *testing.B) {
	const size = 64 << 20
	for _, stores := range []int{1, 100, 10_000} {
		b.Run(fmt.Sprintf("%d", stores), func(b *testing.B) {
			ln := &counter{Listener: tcp(b)}
			serve(b, ln, host.Config{})
			buf := alloc(b, dial(b, ln, ""), size)
			scribble(buf.Bytes())
			rounds := 0
			for b.Loop() {
				for range stores {
					buf.Bytes()[rand.IntN(size)]++
				}
				if rounds == 1 {
					ln.reset() // all of it was sent
				}
				if _, err := buf.Process(b.Context(), sharedbuf.Process()); err != nil {
					b.Fatal(err)
				}
				rounds++
			}
			in, _ := ln.reset()
			b.ReportMetric(float64(in)/float64(max(rounds-1, 1)), "wire-bytes/op")
		})
	}
}
