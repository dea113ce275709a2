// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/memspan/memspan/wire"
)

// A sentFrame is a frame as it is on the wire.
type sentFrame struct {
	name  string
	sum   bool
	bytes []byte
}

// sentFrames returns frames of all encodings, as sent with and without a sum.
func sentFrames() (all []sentFrame) {
	prefix := wire.AppendTransfer(nil, wire.MemoryCommand{Memory: 1, Size: 5000})
	for _, sum := range []bool{false, true} {
		for _, f := range []struct {
			name     string
			data     []byte
			encoding wire.Encoding
		}{
			{"raw", random(5000), wire.EncodingRaw},
			{"fill", pattern(5000), wire.EncodingFill},
			{"s2", text(5000), wire.EncodingS2},
			{"no data", nil, wire.EncodingRaw},
		} {
			fr := frame{kind: wire.KindTransfer, id: 9, prefix: prefix, data: f.data}
			all = append(all, sentFrame{fmt.Sprintf("%s, sum %v", f.name, sum), sum, fr.bytes(f.encoding, sum)})
		}
	}
	return all
}

func (s sentFrame) config() wire.Config { return wire.Config{Compress: true, Sums: s.sum} }

// A link that is cut anywhere in a frame ends in an error and never in data.
func TestCutLink(t *testing.T) {
	for _, s := range sentFrames() {
		t.Run(s.name, func(t *testing.T) {
			for cut := range s.bytes {
				_, err := readFrame(wire.NewConn(newMemConn(s.bytes[:cut]), s.config()))
				switch {
				case err == nil:
					t.Fatalf("cut after %d of %d bytes: a frame was delivered", cut, len(s.bytes))
				case cut == 0 && err != io.EOF:
					t.Fatalf("cut between frames: %v, want io.EOF", err)
				case cut > 0 && (!errors.Is(err, wire.PeerLost) || !errors.Is(err, io.ErrUnexpectedEOF)):
					t.Fatalf("cut after %d of %d bytes: %v, want PeerLost", cut, len(s.bytes), err)
				}
			}
			if _, err := readFrame(wire.NewConn(newMemConn(s.bytes), s.config())); err != nil {
				t.Fatalf("not cut: %v", err)
			}
		})
	}
}

// With sums, a byte that changes on its way never goes unnoticed; without,
// one in a header never does.
func TestFlippedBytes(t *testing.T) {
	for _, s := range sentFrames() {
		t.Run(s.name, func(t *testing.T) {
			end := len(s.bytes)
			if !s.sum {
				end = wire.HeaderSize
			}
			for i := range end {
				for _, flip := range []byte{1, 0x80, 0xff} {
					bad := slices.Clone(s.bytes)
					bad[i] ^= flip
					_, err := readFrame(wire.NewConn(newMemConn(bad), s.config()))
					var version *wire.VersionError
					ok := errors.Is(err, wire.Corrupt)
					switch {
					case i < 4:
						ok = errors.Is(err, wire.ErrMagic)
					case i == 4:
						ok = errors.As(err, &version) && version.Got == int(bad[4])
					}
					if !ok {
						t.Fatalf("byte %d of %d changed by %#x: %v", i, len(s.bytes), flip, err)
					}
				}
			}
		})
	}
}

// After an error nothing more is read: where the next frame begins is unknown.
func TestErrorsOfReadingLast(t *testing.T) {
	good := encode(t, wire.Config{}, frame{kind: wire.KindEvent})
	bad := slices.Clone(good)
	bad[10] ^= 1
	c := wire.NewConn(newMemConn(append(bad, good...)), wire.Config{})
	_, first := c.ReadHeader()
	_, second := c.ReadHeader()
	if !errors.Is(first, wire.ErrHeaderSum) || second != first {
		t.Errorf("first %v, then %v", first, second)
	}
	if _, err := c.ReadPrefix(nil); err != first {
		t.Errorf("then %v", err)
	}
	if err := c.ReadData(nil); err != first {
		t.Errorf("then %v", err)
	}
}

func TestSumsAreInsistedOn(t *testing.T) {
	c := wire.NewConn(newMemConn(encode(t, wire.Config{}, frame{kind: wire.KindTransfer, data: random(10)})), wire.Config{Sums: true})
	if _, err := c.ReadHeader(); !errors.Is(err, wire.ErrSum) {
		t.Errorf("%v, want ErrSum", err)
	}
}

func TestEncodedDataMustBeAgreedOn(t *testing.T) {
	f := frame{kind: wire.KindTransfer, data: text(10_000)}
	c := wire.NewConn(newMemConn(f.bytes(wire.EncodingS2, false)), wire.Config{})
	if _, err := c.ReadHeader(); !errors.Is(err, wire.ErrMalformed) {
		t.Errorf("%v, want ErrMalformed", err)
	}
}

// s2 data that announces another length than the header, or is no s2 at all.
func TestBombs(t *testing.T) {
	bomb := []byte{0xff, 0xff, 0xff, 0xff, 0x0f, 1, 2, 3} // 4 GiB - 1
	longer := frame{data: text(100_000)}.bytes(wire.EncodingS2, false)[wire.HeaderSize:]
	for name, payload := range map[string][]byte{"4 GiB": bomb, "longer": longer, "garbage": {0x90, 0x4e, 0xff, 0xff}, "cut": longer[:len(longer)-1]} {
		h := wire.Header{Kind: wire.KindTransfer, Encoding: wire.EncodingS2, Length: uint32(len(payload)), Raw: 10_000}
		c := wire.NewConn(newMemConn(append(h.Append(nil), payload...)), wire.Config{Compress: true})
		if _, err := readFrame(c); !errors.Is(err, wire.ErrEncoding) || !errors.Is(err, wire.Corrupt) {
			t.Errorf("%s: %v, want ErrEncoding", name, err)
		}
	}
}

// What a message announces costs nothing until the bytes come.
func TestAnnouncedLengthsTakeNoMemory(t *testing.T) {
	head := wire.Header{Kind: wire.KindFlush, Length: wire.MaxPrefix, Prefix: wire.MaxPrefix}.Append(nil)
	c := wire.NewConn(newMemConn(head), wire.Config{})
	if took := allocated(func() {
		if _, err := c.ReadHeader(); err != nil {
			t.Fatal(err)
		}
		if _, err := c.ReadPrefix(nil); !errors.Is(err, wire.PeerLost) {
			t.Fatal(err)
		}
	}); took > 64<<10 {
		t.Errorf("a header of a prefix of %d bytes took %d bytes of memory", wire.MaxPrefix, took)
	}

	runs := binary.AppendUvarint(make([]byte, 24), 1<<19)
	if took := allocated(func() {
		if _, err := wire.ParseFlush(append(runs, 0, 1, 1, 1), nil); !errors.Is(err, wire.ErrMalformed) {
			t.Fatal(err)
		}
	}); took > 64<<10 {
		t.Errorf("a flush of %d runs took %d bytes of memory", 1<<19, took)
	}
}

// allocated returns how much memory f takes, with that of others meanwhile.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// in calls f in a goroutine of its own and returns its error's channel.
func in(f func() error) <-chan error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	return done
}

func discardFrame(c *wire.Conn) error {
	_, err := readFrame(c)
	return err
}

const stallTimeout = 30 * time.Second

func pipes(t *testing.T) (raw net.Conn, c *wire.Conn) {
	a, b := net.Pipe()
	c = wire.NewConn(b, wire.Config{IOTimeout: stallTimeout, Sums: true})
	t.Cleanup(func() { a.Close(); c.Close() })
	return a, c
}

// A peer that stops anywhere within a frame ends it with Stalled, no earlier
// than the timeout and not much later.
func TestStalledSender(t *testing.T) {
	whole := encode(t, wire.Config{Sums: true}, frame{kind: wire.KindTransfer, prefix: random(28), data: random(20_000)})
	for _, sent := range []int{1, 31, 32, 40, 60, 61, 10_000, len(whole) - 4, len(whole) - 1} {
		synctest.Test(t, func(t *testing.T) {
			raw, c := pipes(t)
			done := in(func() error { return discardFrame(c) })
			if _, err := raw.Write(whole[:sent]); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			err := <-done
			if !errors.Is(err, wire.Stalled) || errors.Is(err, wire.PeerLost) {
				t.Errorf("stalled after %d bytes: %v", sent, err)
			}
			if took := time.Since(start); took < stallTimeout || took > stallTimeout*3/2 {
				t.Errorf("stalled after %d bytes: found out after %v", sent, took)
			}
		})
	}
}

// Only the first frame has to come soon: later a peer may be silent for ever.
func TestIdlePeer(t *testing.T) {
	f := frame{kind: wire.KindRead, prefix: random(28)}
	one := encode(t, wire.Config{Sums: true}, f)
	synctest.Test(t, func(t *testing.T) {
		_, c := pipes(t)
		if err := discardFrame(c); !errors.Is(err, wire.Stalled) {
			t.Errorf("no first frame: %v, want Stalled", err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		raw, c := pipes(t)
		for range 3 {
			done := in(func() error { return discardFrame(c) })
			if _, err := raw.Write(one); err != nil {
				t.Fatal(err)
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			done = in(func() error { return discardFrame(c) })
			time.Sleep(24 * time.Hour)
			select {
			case err := <-done:
				t.Fatalf("an idle connection ended: %v", err)
			default:
			}
			if _, err := raw.Write(one); err != nil {
				t.Fatal(err)
			}
			if err := <-done; err != nil {
				t.Fatalf("after a day: %v", err)
			}
		}
	})
}

// A peer that is slow, but moves, never times out, in either direction.
func TestSlowPeer(t *testing.T) {
	f := frame{kind: wire.KindTransfer, prefix: random(28), data: random(200)}
	whole := encode(t, wire.Config{Sums: true}, f)
	synctest.Test(t, func(t *testing.T) {
		raw, c := pipes(t)
		done := in(func() error { return discardFrame(c) })
		for i := range whole { // two hours
			time.Sleep(stallTimeout * 9 / 10)
			if _, err := raw.Write(whole[i : i+1]); err != nil {
				t.Fatalf("byte %d: %v", i, err)
			}
		}
		if err := <-done; err != nil {
			t.Error(err)
		}

		done = in(func() error { return f.write(c) })
		got := make([]byte, len(whole))
		for i := range got {
			time.Sleep(stallTimeout * 9 / 10)
			if _, err := raw.Read(got[i : i+1]); err != nil {
				t.Fatalf("byte %d: %v", i, err)
			}
		}
		if err := <-done; err != nil || !bytes.Equal(got, whole) {
			t.Errorf("sent: %v", err)
		}
	})
}

// A peer that stops reading ends a write with Stalled, and all later ones.
func TestStalledReceiver(t *testing.T) {
	for _, f := range []frame{
		{kind: wire.KindRead, prefix: random(28)},
		{kind: wire.KindTransfer, prefix: random(28), data: random(wire.MaxData)},
	} {
		synctest.Test(t, func(t *testing.T) {
			raw, c := pipes(t)
			done := in(func() error { return f.write(c) })
			if _, err := io.ReadFull(raw, make([]byte, 10)); err != nil {
				t.Fatal(err)
			}
			if err := <-done; !errors.Is(err, wire.Stalled) {
				t.Errorf("write: %v, want Stalled", err)
			}
			go io.Copy(io.Discard, raw)
			if err := f.write(c); !errors.Is(err, wire.Stalled) {
				t.Errorf("the write after: %v, want Stalled", err)
			}
		})
	}
}

// A deadline that the owner sets, for instance for a handshake, holds.
func TestOwnersDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		raw, c := pipes(t)
		if err := c.NetConn().SetDeadline(time.Now().Add(stallTimeout / 2)); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		err := discardFrame(c)
		if !errors.Is(err, wire.Stalled) || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%v, want a deadline exceeded", err)
		}
		if took := time.Since(start); took != stallTimeout/2 {
			t.Errorf("took %v", took)
		}
		raw.Close()
	})
}

// The low-water mark of a TCP socket must not make a slow peer look like one
// that stalled, nor keep the last bytes of a frame back for ever.
func TestSlowPeerOverTCP(t *testing.T) {
	for _, timeout := range []time.Duration{400 * time.Millisecond, 0} {
		for {
			pause, err := slowPeerOverTCP(t, timeout)
			if err == nil {
				break
			}
			// On a machine so busy that this process did not get to send for most
			// of the timeout, the peer did stall: more time, and again.
			if pause < timeout/2 || timeout > 10*time.Second {
				t.Fatalf("with a timeout of %v, and %v at most between sends: %v", timeout, pause, err)
			}
			timeout *= 3
		}
	}
}

// slowPeerOverTCP sends a frame piece by piece, taking longer in all than the
// timeout. It returns the longest pause that it made, and what its reader says.
func slowPeerOverTCP(t *testing.T, timeout time.Duration) (pause time.Duration, _ error) {
	f := frame{kind: wire.KindTransfer, prefix: random(28), data: random(200_000)}
	a, b := dialTCP(t)
	c := wire.NewConn(b, wire.Config{IOTimeout: timeout})
	defer a.Close()
	defer c.Close()
	done := in(func() error {
		got, err := readFrame(c)
		if err == nil && !got.equal(f) {
			err = errors.New("wrong bytes")
		}
		return err
	})
	last := time.Now()
	for piece := range slices.Chunk(f.bytes(wire.EncodingRaw, false), 10_000) {
		time.Sleep(timeout/8 + time.Millisecond)
		if _, err := a.Write(piece); err != nil {
			break // the reader has given up: it says why
		}
		now := time.Now()
		last, pause = now, max(pause, now.Sub(last))
	}
	err := <-done
	return pause, err
}

// A reader that did not run for longer than the timeout reads what came
// meanwhile: it is not the peer that stalled.
func TestStoppedReader(t *testing.T) {
	a, b := dialTCP(t)
	const timeout = 20 * time.Millisecond
	late := &lateConn{Conn: b, wait: 3 * timeout}
	c := wire.NewConn(late, wire.Config{IOTimeout: timeout})
	t.Cleanup(func() { a.Close(); c.Close() })
	f := frame{kind: wire.KindRead, prefix: random(28)}
	if _, err := a.Write(f.bytes(wire.EncodingRaw, false)); err != nil {
		t.Fatal(err)
	}
	if got, err := readFrame(c); err != nil || !got.equal(f) {
		t.Errorf("read when the time was over: %v", err)
	}
}

// A lateConn is read after the deadline that was set for it, once.
type lateConn struct {
	net.Conn
	wait time.Duration
}

func (c *lateConn) Read(b []byte) (int, error) {
	if wait := c.wait; wait > 0 {
		c.wait = 0
		time.Sleep(wait) // as if the process had been stopped here
	}
	return c.Conn.Read(b)
}

func TestStalledReceiverOverTCP(t *testing.T) {
	for _, dial := range []func(testing.TB) (net.Conn, net.Conn){dialTCP, dialUnix} {
		a, b := dial(t)
		c := wire.NewConn(b, wire.Config{IOTimeout: 50 * time.Millisecond})
		t.Cleanup(func() { a.Close(); c.Close() })
		var err error
		for err == nil { // until the socket's buffers are full
			err = c.WriteFrame(wire.Header{Kind: wire.KindTransfer}, nil, make([]byte, wire.MaxData))
		}
		if !errors.Is(err, wire.Stalled) {
			t.Errorf("%v, want Stalled", err)
		}
	}
}

// Interrupting ends a wait between two frames, and nothing else: a frame that
// has begun is read whole, and the connection goes on.
func TestInterrupt(t *testing.T) {
	f := frame{kind: wire.KindRead, prefix: random(28)}
	one := encode(t, wire.Config{Sums: true}, f)
	synctest.Test(t, func(t *testing.T) {
		raw, c := pipes(t)
		send := func(b []byte) {
			t.Helper()
			if _, err := raw.Write(b); err != nil {
				t.Fatal(err)
			}
		}
		done := in(func() error { return discardFrame(c) })
		send(one)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		for range 3 {
			done = in(func() error { return discardFrame(c) })
			synctest.Wait() // for the frame to begin
			c.Interrupt()
			if err := <-done; err != wire.ErrInterrupted {
				t.Fatalf("interrupted while idle: %v", err)
			}
			c.Interrupt() // nobody reads
			if err := discardFrame(c); err != wire.ErrInterrupted {
				t.Fatalf("interrupted before: %v", err)
			}
			done = in(func() error { return discardFrame(c) })
			send(one[:40])
			synctest.Wait()
			c.Interrupt()
			synctest.Wait()
			send(one[40:])
			if err := <-done; err != nil {
				t.Fatalf("interrupted within a frame: %v", err)
			}
			if err := discardFrame(c); err != wire.ErrInterrupted {
				t.Fatalf("after the frame: %v", err)
			}
			done = in(func() error { return discardFrame(c) })
			time.Sleep(24 * time.Hour)
			send(one)
			if err := <-done; err != nil {
				t.Fatalf("a day after: %v", err)
			}
		}
	})
}
