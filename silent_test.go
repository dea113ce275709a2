// SPDX-License-Identifier: Apache-2.0

package memspan_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/wire/control"
)

// impatient finds out soon enough for a test that a server is silent, and takes no
// server for silent that merely waits for its turn on a busy machine.
var impatient = &memspan.Options{IOTimeout: 2 * time.Second}

// Requests may take their time as long as the server shows that it lives.
func TestSlowRequest(t *testing.T) {
	t.Parallel()
	c := play(t, impatient, func(p *peer) {
		var slow frame
		signs := 0
		p.serve(func(f frame) bool {
			if p.request(f, nil) == control.OpStats {
				slow = f
				return true
			}
			p.reply(f, struct{}{})
			if signs++; signs == 3 {
				p.reply(slow, control.Stats{Sessions: 1})
			}
			return true
		})
	})
	if _, err := c.Stats(t.Context()); err != nil {
		t.Errorf("a slow request of a server that lives: %v", err)
	}
}

func TestStalledServer(t *testing.T) {
	t.Parallel()
	for name, call := range map[string]func(s *memspan.Span, asked <-chan struct{}) error{
		"control": func(s *memspan.Span, _ <-chan struct{}) error { return second(s.Stat(t.Context())) },
		"read": func(s *memspan.Span, _ <-chan struct{}) error {
			return second(s.ReadAt(t.Context(), make([]byte, 9000), 0))
		},
		"cancel": func(s *memspan.Span, asked <-chan struct{}) error {
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				<-asked
				cancel()
			}()
			return second(s.Lock(ctx, 0, 1, memspan.Shared))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			asked := make(chan struct{})
			c := play(t, impatient, func(p *peer) {
				f, _ := p.next()
				p.reply(f, opened)
				_, ok := p.next()
				for close(asked); ok; {
					_, ok = p.next()
				}
			})
			if err := call(open(t, c), asked); !errors.Is(err, memspan.ErrPeerLost) || !errors.Is(err, memspan.ErrStalled) {
				t.Errorf("a server that is silent: %v", err)
			}
		})
	}
}
