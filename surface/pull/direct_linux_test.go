// SPDX-License-Identifier: Apache-2.0

package pull_test

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/internal/fdpass"
	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/surface"
	"github.com/memspan/memspan/surface/pull"
	"github.com/memspan/memspan/wire"
	"github.com/memspan/memspan/wire/control"
)

// A surface that is all there is mapped once, by who asks for its memory.
func TestMappedOnce(t *testing.T) {
	d := serve(t)
	e, err := d.client.ExposeBytes(t.Context(), random(3*mib), memspan.ExposeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	before := mappings(t)
	s := open(t, at(e.Ticket, d.unix), pull.Options{})
	opened := mappings(t)
	m, err := s.Map(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	info, err := m.File().Stat()
	if err != nil {
		t.Fatal(err)
	}
	inode := fmt.Sprint(info.Sys().(*syscall.Stat_t).Ino)
	if after := mappings(t); opened[inode] != before[inode] || after[inode] != before[inode]+1 {
		t.Errorf("mappings of the memory: %d, %d once it is open, %d once it is mapped", before[inode], opened[inode], after[inode])
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if after := mappings(t); after[inode] != before[inode] {
		t.Errorf("%d mappings of the memory are left", after[inode]-before[inode])
	}
}

// mappings counts this process' mappings by the inodes of their files.
func mappings(t *testing.T) map[string]int {
	t.Helper()
	text, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	count := make(map[string]int)
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[len(fields)-2]+fields[len(fields)-1], "/memfd:") {
			count[fields[4]]++
		}
	}
	return count
}

// A server that hands over other memory than it says is found out before a byte of it is
// touched.
func TestOtherMemory(t *testing.T) {
	content := random(64 * kib)
	h := expose(t, content, 4*kib, nil)
	for _, c := range []struct {
		name   string
		size   int64
		frozen bool
	}{{"short", 60 * kib, true}, {"empty", 0, true}, {"not sealed", 64 * kib, false}} {
		t.Run(c.name, func(t *testing.T) {
			memory, err := memfd.Blank("other")
			if err != nil {
				t.Fatal(err)
			}
			defer memory.Close()
			if err := memory.Truncate(c.size); err != nil {
				t.Fatal(err)
			}
			if c.frozen {
				if err := memfd.Freeze(memory); err != nil {
					t.Fatal(err)
				}
			}
			ticket := h.rooted(h.hand(t, memory))
			if ticket.Machine, err = surface.ThisMachine(); err != nil {
				t.Fatal(err)
			}
			s := open(t, ticket, pull.Options{})
			if !s.Direct() {
				t.Fatal("not direct")
			}
			if _, err := s.Bytes(); err == nil {
				t.Error("Bytes of other memory")
			}
			if _, err := s.Map(t.Context()); err == nil {
				t.Error("Map of other memory")
			}
			if _, err := s.ReadAt(make([]byte, 1), 62*kib); err == nil {
				t.Error("ReadAt of other memory")
			}
			if err := s.Verify(t.Context()); err == nil {
				t.Error("other memory is verified")
			}
		})
	}
}

// hand serves the surface's puller, once, with a memory that is said to be it, and returns
// the address.
func (h *host) hand(t *testing.T, memory *os.File) string {
	t.Helper()
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	work.Go(func() {
		nc, err := ln.AcceptUnix()
		if err != nil {
			return
		}
		c := wire.NewConn(fdpass.New(nc), wire.Config{})
		defer c.Close()
		for {
			hd, err := c.ReadHeader()
			if err != nil || c.Discard() != nil {
				return
			}
			if hd.Kind == wire.KindHello {
				answer(c, hd, control.Welcome{Protocol: wire.Version, BlockSize: 1 << 20, Direct: true})
				continue
			}
			h.mu.Lock()
			opened := control.SurfaceOpened{Handle: 7, Direct: true, Header: h.manifest.AppendHeader(nil), State: h.stateLocked(0)}
			h.mu.Unlock()
			data, _ := json.Marshal(opened)
			c.WriteFrameFiles(wire.Header{Kind: hd.Kind, ID: hd.ID, Flags: wire.FlagReply}, data, memory, memory)
		}
	})
	t.Cleanup(func() {
		ln.Close()
		work.Wait()
	})
	return "unix:" + ln.Addr().String()
}
