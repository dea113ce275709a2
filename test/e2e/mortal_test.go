// SPDX-License-Identifier: Apache-2.0

//go:build linux

package e2e

import (
	"context"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/memspan/memspan"
)

// A mortal is a daemon that is killed and started again on the same data
// directory.
type mortal struct {
	settings settings
	mu       sync.Mutex
	d        *daemon
	closed   chan struct{} // while clients are asked to leave; closed when they may come back
}

func startMortal(t testing.TB, s settings) *mortal {
	t.Helper()
	s.Process, s.Data = true, t.TempDir()
	return &mortal{settings: s, d: start(t, s)}
}

// dialer returns how clients reach whichever daemon there is.
func (m *mortal) dialer(transport string) func(context.Context) (*memspan.Client, error) {
	return func(ctx context.Context) (*memspan.Client, error) {
		m.mu.Lock()
		address := m.d.Addresses[transport]
		m.mu.Unlock()
		return memspan.Dial(ctx, address, &memspan.Options{Token: token})
	}
}

func (m *mortal) set(d *daemon) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.d = d
	if m.closed != nil {
		close(m.closed)
		m.closed = nil
	}
}

// stop shuts the daemon down, as soon as those who heed closing have left.
func (m *mortal) stop() error {
	m.mu.Lock()
	m.closed = make(chan struct{})
	m.mu.Unlock()
	return m.d.shutdown()
}

// closing returns nil, or what is closed when clients, who shall leave now, may
// come back.
func (m *mortal) closing() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.closed
}

// kill kills the daemon as kill -9 does, and waits until it is dead.
func (m *mortal) kill() { m.d.process.kill() }

// restart starts it again. At times it is killed while it starts, too.
func (m *mortal) restart(t testing.TB, r *rand.Rand) {
	t.Helper()
	for r.IntN(8) == 0 {
		early := m.spawn(t)
		time.Sleep(upTo(r, 50*time.Millisecond))
		early.kill()
	}
	m.set(start(t, m.settings))
}

// spawn starts a daemon and does not wait until it is there.
func (m *mortal) spawn(t testing.TB) *process {
	t.Helper()
	if binary := os.Getenv("MEMSPAN_BINARY"); binary != "" {
		return startProcess(t, serveCommand(t, binary, m.settings))
	}
	return serverProcess(t, m.settings)
}

// upTo returns a random duration below d.
func upTo(r *rand.Rand, d time.Duration) time.Duration { return time.Duration(r.Int64N(int64(d))) }
