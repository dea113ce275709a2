// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"bytes"
	"fmt"
	mathrand "math/rand/v2"
	"testing"

	"github.com/memspan/memspan/wire"
)

// Frames that are queued arrive as frames that are written do: the same bytes
// in the same order, whatever is written among them.
func TestQueuedFramesAreThoseWritten(t *testing.T) {
	for _, cfg := range []wire.Config{{}, {Sums: true}, {Sums: true, Compress: true}} {
		t.Run(fmt.Sprintf("%+v", cfg), func(t *testing.T) {
			r := mathrand.New(mathrand.NewPCG(1, 2))
			mc := newMemConn(nil)
			c := wire.NewConn(mc, cfg)
			var frames []frame
			for i := range 2000 {
				f := frame{kind: wire.KindFlush, id: uint64(i), prefix: random(r.IntN(40)), data: random(r.IntN(9000))}
				switch r.IntN(100) {
				case 0:
					f.data = random(wire.MaxData)
				case 1:
					f.data = random(100_000)
				case 2, 3, 4:
					f.data, f.prefix = nil, nil
				}
				frames = append(frames, f)
				before := mc.out.Len()
				h := wire.Header{Kind: f.kind, ID: f.id}
				var err error
				if queued := r.IntN(5) > 0; queued {
					err = c.QueueFrame(h, f.prefix, f.data)
				} else if err = c.WriteFrame(h, f.prefix, f.data); mc.out.Len() == before {
					t.Fatalf("frame %d was not written", i)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			if err := c.Push(); err != nil {
				t.Fatal(err)
			}
			length := mc.out.Len()
			if err := c.Push(); err != nil || mc.out.Len() != length {
				t.Fatalf("pushed twice: %v", err)
			}
			if got := c.Stats().Sent.Frames[wire.KindFlush]; got != uint64(len(frames)) {
				t.Errorf("%d frames counted, %d sent", got, len(frames))
			}
			in := wire.NewConn(newMemConn(mc.out.Bytes()), cfg)
			for i, want := range frames {
				got, err := readFrame(in)
				if err != nil || !got.equal(want) {
					t.Fatalf("frame %d: arrived otherwise: %v", i, err)
				}
			}
		})
	}
}

// FrameReceived is true only if all of the next frame is here.
func TestFrameReceived(t *testing.T) {
	f := frame{kind: wire.KindRead, prefix: random(28), data: random(100)}
	for _, config := range []wire.Config{{Sums: true}, {}} {
		one := encode(t, config, f)
		for _, extra := range []int{0, 1, 31, 32, 100, len(one) - 1, len(one)} {
			stream := append(bytes.Clone(one), one[:extra]...)
			c := wire.NewConn(newMemConn(stream), config)
			if c.FrameReceived() {
				t.Error("before anything was read")
			}
			if _, err := readFrame(c); err != nil {
				t.Fatal(err)
			}
			if got, want := c.FrameReceived(), extra == len(one); got != want {
				t.Errorf("%+v: %d of %d bytes are here: %v", config, extra, len(one), got)
			}
		}
	}
}

// A queue that cannot be written ends the connection's writing.
func TestQueueOfAClosedConnection(t *testing.T) {
	_, c := pipes(t)
	c.Close()
	if err := c.QueueFrame(wire.Header{Kind: wire.KindRead}, random(28)); err != nil {
		t.Fatalf("queue: %v", err)
	}
	if c.Push() == nil || c.Push() != nil && c.WriteFrame(wire.Header{Kind: wire.KindRead}, random(28)) == nil {
		t.Error("a closed connection took frames")
	}
}
