// SPDX-License-Identifier: Apache-2.0

//go:build linux

package e2e

import (
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/time/rate"
)

// A relay carries one direction of a connection. The connection ends when it
// returns. ctx ends with the proxy.
type relay func(ctx context.Context, dst, src net.Conn) error

// proxy listens on loopback and joins what connects with the target, until the
// test ends. It returns its address; both are addresses for memspan.Dial.
func proxy(t testing.TB, target string, up, down relay) string {
	t.Helper()
	address, _ := endingProxy(t, target, up, down)
	return address
}

// endingProxy is proxy for tests that end it before they end: links that stand
// still do not notice when one side is gone.
func endingProxy(t testing.TB, target string, up, down relay) (address string, end func()) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	target = strings.TrimPrefix(target, "tcp://")
	work.Go(func() {
		for {
			near, err := ln.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", target)
			if err != nil {
				t.Error(err)
				near.Close()
				return
			}
			both := func() { near.Close(); far.Close() }
			stop := context.AfterFunc(ctx, both)
			for _, r := range []func(){
				func() { up(ctx, far, near) },
				func() { down(ctx, near, far) },
			} {
				work.Go(func() {
					defer stop()
					defer both()
					r()
				})
			}
		}
	})
	end = func() {
		cancel()
		ln.Close()
		work.Wait()
	}
	t.Cleanup(end)
	return "tcp://" + ln.Addr().String(), end
}

// filter applies f to all that passes. off counts the bytes before p.
func filter(f func(ctx context.Context, p []byte, off int64) error) relay {
	return func(ctx context.Context, dst, src net.Conn) error {
		buf := make([]byte, 16<<10)
		for off := int64(0); ; {
			n, err := src.Read(buf)
			if n > 0 {
				if err := f(ctx, buf[:n], off); err != nil {
					return err
				}
				if _, err := dst.Write(buf[:n]); err != nil {
					return err
				}
				off += int64(n)
			}
			if err != nil {
				return err
			}
		}
	}
}

// straight lets everything pass.
func straight() relay { return filter(func(context.Context, []byte, int64) error { return nil }) }

// counting adds up what passes.
func counting(n *atomic.Int64) relay {
	return filter(func(_ context.Context, p []byte, _ int64) error {
		n.Add(int64(len(p)))
		return nil
	})
}

// throttled lets so many bytes pass in a second, and holds few of them: what
// is sent to it waits with the sender.
func throttled(bytesPerSecond float64) relay {
	l := rate.NewLimiter(rate.Limit(bytesPerSecond), 32<<10)
	pass := filter(func(ctx context.Context, p []byte, _ int64) error { return l.WaitN(ctx, len(p)) })
	return func(ctx context.Context, dst, src net.Conn) error {
		if err := src.(*net.TCPConn).SetReadBuffer(64 << 10); err != nil {
			return err
		}
		return pass(ctx, dst, src)
	}
}

// flipped turns one bit of byte at around.
func flipped(at int64, bit uint) relay {
	return filter(func(_ context.Context, p []byte, off int64) error {
		if i := at - off; i >= 0 && i < int64(len(p)) {
			p[i] ^= 1 << (bit % 8)
		}
		return nil
	})
}

// cut lets n bytes pass and ends the connection.
func cut(n int64) relay {
	return func(_ context.Context, dst, src net.Conn) error {
		_, err := io.CopyN(dst, src, n)
		return err
	}
}

// stalled lets n bytes pass and then no more, while the connection lives.
func stalled(n int64) relay {
	return func(ctx context.Context, dst, src net.Conn) error {
		if _, err := io.CopyN(dst, src, n); err != nil {
			return err
		}
		<-ctx.Done()
		return nil
	}
}
