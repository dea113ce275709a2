// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/memspan/memspan/wire"
)

// lend sends f from memory that is overwritten as soon as Lend returns.
// It reports whether Lend took it.
func lend(c *wire.Conn, l *wire.Loan, f frame) (bool, error) {
	data, spare := slices.Clone(f.data), make([]byte, len(f.data))
	if !c.Lend(l, wire.Header{Kind: f.kind, Flags: f.flags, ID: f.id}, f.prefix, data, spare) {
		return false, nil
	}
	clear(data)
	return true, l.Settle()
}

// A frame from lent memory is like any other, whenever the memory is recalled,
// and other frames follow it.
func TestLend(t *testing.T) {
	for _, tr := range transports() {
		t.Run(tr.name, func(t *testing.T) {
			client, server := tr.conns(t)
			f := frame{kind: wire.KindRead, flags: wire.FlagReply, id: 7, prefix: random(4), data: random(wire.MaxData)}
			const rounds = 40
			lent := make(chan int, 1)
			sent := in(func() error {
				n := 0
				defer func() { lent <- n }()
				for i := range rounds {
					var l wire.Loan
					recalled := make(chan struct{})
					go func() {
						if i%2 == 1 { // at any moment
							l.Recall()
							l.Recall()
						}
						close(recalled)
					}()
					took, err := lend(server, &l, f)
					<-recalled
					if err != nil {
						return err
					}
					if took {
						n++
					} else if err := f.write(server); err != nil {
						return err
					}
				}
				return nil
			})
			for i := range rounds {
				got, err := readFrame(client)
				if err != nil || !got.equal(f) {
					t.Fatalf("frame %d: error %v, equal %v", i, err, got.equal(f))
				}
			}
			if err := <-sent; err != nil {
				t.Fatal(err)
			}
			n, tls := <-lent, tr.name == "tls" || tr.name == "tls+s2"
			if tls != (n == 0) || !tls && n < rounds/2 {
				t.Errorf("%d of %d frames were lent", n, rounds)
			}
			if s := server.Stats().Sent; s.Frames[wire.KindRead] != rounds || s.Data != rounds*wire.MaxData {
				t.Errorf("counted as %d frames, %d bytes", s.Frames[wire.KindRead], s.Data)
			}
		})
	}
}

// Lend returns when the memory is recalled, though the peer does not read on,
// wherever in the frame it stopped. Settle waits for it, and it gets what was in
// the memory while it was lent.
func TestRecall(t *testing.T) {
	f := frame{kind: wire.KindRead, flags: wire.FlagReply, id: 7, prefix: random(4), data: random(wire.MaxData)}
	for _, sums := range []bool{false, true} {
		whole := f.bytes(wire.EncodingRaw, sums)
		for _, taken := range []int{0, 10, wire.HeaderSize, wire.HeaderSize + 4, wire.HeaderSize + 5, len(whole) / 2, len(whole) - 4, len(whole) - 1} {
			synctest.Test(t, func(t *testing.T) {
				raw, nc := net.Pipe()
				c := wire.NewConn(nc, wire.Config{Sums: sums, IOTimeout: time.Hour})
				defer raw.Close()
				defer c.Close()
				var l wire.Loan
				data, spare := slices.Clone(f.data), make([]byte, len(f.data))
				lent := make(chan bool, 1)
				go func() { lent <- c.Lend(&l, wire.Header{Kind: f.kind, Flags: f.flags, ID: f.id}, f.prefix, data, spare) }()
				got := make([]byte, len(whole))
				if _, err := io.ReadFull(raw, got[:taken]); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				if len(lent) != 0 {
					t.Fatalf("%d of %d bytes taken: Lend does not wait for the rest", taken, len(whole))
				}
				l.Recall()
				l.Recall()
				synctest.Wait()
				if len(lent) != 1 || !<-lent {
					t.Fatalf("%d of %d bytes taken: Lend goes on after the recall", taken, len(whole))
				}
				clear(data)
				l.Recall() // too late, and harmless
				settled := in(l.Settle)
				if _, err := io.ReadFull(raw, got[taken:]); err != nil {
					t.Fatal(err)
				}
				if err := <-settled; err != nil || !bytes.Equal(got, whole) {
					t.Errorf("%d of %d bytes taken: error %v, equal %v", taken, len(whole), err, bytes.Equal(got, whole))
				}
				next := in(func() error { return f.write(c) }) // the connection's deadline is as before
				if _, err := io.ReadFull(raw, got); err != nil || !bytes.Equal(got, whole) {
					t.Errorf("the frame after: %v, equal %v", err, bytes.Equal(got, whole))
				}
				if err := <-next; err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// A peer that stops reading ends a loan with Stalled, recalled or not, and a
// connection that breaks ends it at once.
func TestLendToABrokenPeer(t *testing.T) {
	f := frame{kind: wire.KindRead, id: 7, prefix: random(4), data: random(wire.MaxData)}
	for name, broken := range map[string]struct {
		do   func(raw net.Conn, l *wire.Loan)
		want error
	}{
		"stalled":               {func(net.Conn, *wire.Loan) {}, wire.Stalled},
		"stalled, and recalled": {func(_ net.Conn, l *wire.Loan) { l.Recall() }, wire.Stalled},
		"closed":                {func(raw net.Conn, _ *wire.Loan) { raw.Close() }, net.ErrClosed}, // net.Pipe's word for a peer that is gone
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				raw, c := pipes(t)
				var l wire.Loan
				done := in(func() error {
					_, err := lend(c, &l, f)
					return err
				})
				if _, err := io.ReadFull(raw, make([]byte, 100)); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				broken.do(raw, &l)
				if err := <-done; !errors.Is(err, broken.want) {
					t.Errorf("%v, want %v", err, broken.want)
				}
				var again wire.Loan
				if took, _ := lend(c, &again, f); took {
					t.Error("a broken connection takes a loan")
				}
			})
		})
	}
}

// What was recalled before it was lent is not lent, nor what is better sent
// otherwise.
func TestLendRefuses(t *testing.T) {
	client, server := (transport{"", dialTCP, wire.Config{Compress: true}}).conns(t)
	var recalled wire.Loan
	recalled.Recall()
	for name, c := range map[string]struct {
		loan *wire.Loan
		data []byte
	}{
		"recalled": {&recalled, random(wire.MaxData)},
		"small":    {new(wire.Loan), random(100)},
		"too much": {new(wire.Loan), random(wire.MaxData + 1)},
		"pattern":  {new(wire.Loan), pattern(wire.MaxData)},
	} {
		if took, err := lend(server, c.loan, frame{kind: wire.KindRead, data: c.data}); took || err != nil {
			t.Errorf("%s: taken %v, error %v", name, took, err)
		}
	}
	f := frame{kind: wire.KindRead, data: random(100)}
	if err := f.write(server); err != nil { // nothing is left of those
		t.Fatal(err)
	}
	if got, err := readFrame(client); err != nil || !got.equal(f) {
		t.Errorf("the frame after: %v, equal %v", err, got.equal(f))
	}
}
