// SPDX-License-Identifier: Apache-2.0

package host_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"

	"github.com/memspan/memspan/sharedbuf"
	"github.com/memspan/memspan/sharedbuf/host"
)

// Many callers, alone and together, some of whom give up at any moment: each gets his
// own answer or ErrCanceled, and the connection stays as it is.
func TestTurnsUnderCancellation(t *testing.T) {
	plain, local := tcp(t), unixSocket(t)
	serve(t, plain, host.Config{})
	serve(t, local, host.Config{})
	tls, _ := secured(t, host.Config{Token: token}, nil)
	for name, address := range map[string]string{"tcp": plain.Addr().String(), "unix": local.Addr().String(), "tls": tls} {
		t.Run(name, func(t *testing.T) {
			c, err := sharedbuf.Dial(t.Context(), address, sharedbuf.Options{Token: token})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			for _, callers := range []int{1, 2, 5} {
				var work sync.WaitGroup
				for k := range callers {
					work.Go(func() {
						b := alloc(t, c, 5000)
						defer b.Free()
						for i := range 200 {
							ctx, cancel := context.WithCancel(t.Context())
							var canceler sync.WaitGroup
							if i%3 == 0 {
								canceler.Go(cancel)
							}
							var err error
							if i%5 == 4 {
								_, err = b.Process(ctx, sharedbuf.Fill(uint32(k*1000+i)), sharedbuf.Verify(uint32(k*1000+i)))
							} else {
								want, got := fmt.Sprint(k, i), ""
								if got, err = c.Echo(ctx, want); err == nil && got != want {
									t.Errorf("caller %d, round %d: somebody else's answer %q", k, i, got)
								}
							}
							cancel()
							canceler.Wait()
							if err != nil && (i%3 != 0 || !errors.Is(err, sharedbuf.ErrCanceled)) {
								t.Errorf("caller %d, round %d: %v", k, i, err)
							}
						}
					})
				}
				work.Wait()
			}
		})
	}
}

// A host that has restarted since the last request is found by the next one, whether
// somebody read the connection or not.
func TestRestartBetweenRequests(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("where a reader always has the turn, he may notice too late")
	}
	for name, listen := range map[string]func(testing.TB) net.Listener{"tcp": tcp, "unix": unixSocket} {
		t.Run(name, func(t *testing.T) {
			ln := listen(t)
			address := ln.Addr()
			_, stop := serve(t, ln, host.Config{})
			c := dial(t, ln, "")
			for i := range 20 {
				if text, err := c.Echo(t.Context(), "hello"); err != nil || text != "hello" {
					t.Fatalf("restart %d: %q, %v", i, text, err)
				}
				stop()
				ln, err := net.Listen(address.Network(), address.String())
				if err != nil {
					t.Fatal(err)
				}
				_, stop = serve(t, ln, host.Config{})
			}
		})
	}
}

// A caller who reads for himself hands others their answers, and leaves those that
// nobody waits for to be read, though a host gives them late or in pieces.
func TestAnswersOutOfOrder(t *testing.T) {
	ln := tcp(t)
	requests := make(chan *sharedbuf.Request)
	answers := make(chan []byte)
	var stub sync.WaitGroup
	stub.Go(func() {
		defer close(requests)
		nc, err := ln.Accept()
		ln.Close()
		if err != nil {
			t.Error(err)
			return
		}
		defer nc.Close()
		g := newRawGuest(t, nc)
		stub.Go(func() {
			for answer := range answers {
				nc.Write(answer) // the guest may have gone
			}
		})
		for {
			body, err := sharedbuf.ReadFrame(g.in, sharedbuf.MaxRequest)
			if err != nil {
				if !errors.Is(err, io.EOF) {
					t.Error(err)
				}
				return
			}
			r, err := sharedbuf.ParseRequest(body)
			if err != nil {
				t.Error(err)
				return
			}
			requests <- r
		}
	})
	c, err := sharedbuf.Dial(t.Context(), ln.Addr().String(), sharedbuf.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		close(answers)
		for range requests {
		}
		stub.Wait()
	}()
	echo := func(ctx context.Context, text string) chan error {
		done := make(chan error, 1)
		go func() {
			got, err := c.Echo(ctx, text)
			if err == nil && got != text {
				err = fmt.Errorf("%q was answered by %q", text, got)
			}
			done <- err
		}()
		return done
	}
	reply := func(r *sharedbuf.Request) []byte { return sharedbuf.AppendReply(nil, r.ID, r.Input, nil) }
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()

	// The first caller has the turn; the second's answer comes first.
	first := echo(t.Context(), "first")
	r1 := <-requests
	second := echo(t.Context(), "second")
	r2 := <-requests
	answers <- reply(r2)
	if err := <-second; err != nil {
		t.Fatal(err)
	}
	answers <- reply(r1)
	if err := <-first; err != nil {
		t.Fatal(err)
	}

	// One who gives up, in the midst of his answer. Who comes after him gets his own.
	third := echo(ctx, "third")
	r3 := <-requests
	late := reply(r3)
	answers <- late[:7]
	cancel()
	if err := <-third; !errors.Is(err, sharedbuf.ErrCanceled) {
		t.Fatalf("given up: %v", err)
	}
	rc := <-requests
	if rc.API != sharedbuf.APICancel || rc.Cancel != r3.ID {
		t.Fatalf("after it was given up: %+v", rc)
	}
	answers <- late[7:]
	answers <- sharedbuf.AppendReply(nil, rc.ID, struct{}{}, nil)
	for i := range 3 {
		next := echo(t.Context(), fmt.Sprint("next ", i))
		answers <- reply(<-requests)
		if err := <-next; err != nil {
			t.Fatal(err)
		}
	}

	// An answer that comes twice is one too many: the connection is given up before
	// the next request, and nobody answers another.
	last := echo(t.Context(), "last")
	r := <-requests
	answers <- append(reply(r), reply(r)...)
	if err := <-last; err != nil {
		t.Fatal(err)
	}
	if _, err := c.Echo(t.Context(), "x"); !errors.Is(err, sharedbuf.ErrPeerLost) {
		t.Errorf("after an answer to nothing: %v", err)
	}
}
