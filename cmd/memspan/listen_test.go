// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// Where a killed daemon left its socket, one of those that start at once takes
// its place, and nobody takes it from that one.
func TestOneDaemonTakesAStaleSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	for round := range 200 {
		stale, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		stale.(*net.UnixListener).SetUnlinkOnClose(false)
		stale.Close()
		const many = 4
		var listeners [many]listener
		var errs [many]error
		start := make(chan struct{})
		var work sync.WaitGroup
		for i := range many {
			work.Go(func() {
				<-start
				listeners[i], errs[i] = listenUnix(t.Context(), path)
			})
		}
		close(start)
		work.Wait()
		won := 0
		for _, err := range errs {
			switch {
			case err == nil:
				won++
			case !strings.Contains(err.Error(), "a daemon"):
				t.Errorf("round %d: %v", round, err)
			}
		}
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Errorf("round %d: nobody answers: %v", round, err)
		} else {
			conn.Close()
		}
		for i, err := range errs {
			if err == nil {
				listeners[i].Close()
			}
		}
		if won != 1 {
			t.Fatalf("round %d: %d daemons of %d have the socket", round, won, many)
		}
	}
}
