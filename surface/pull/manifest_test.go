// SPDX-License-Identifier: Apache-2.0

package pull_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/memspan/memspan/surface"
	"github.com/memspan/memspan/surface/pull"
	"github.com/memspan/memspan/wire"
	"github.com/memspan/memspan/wire/control"
)

// A manifest that is not the ticket's opens nothing, unless another source has
// the right one; without a root in the ticket its own address is caught lying
// by the end at the latest.
func TestLyingManifest(t *testing.T) {
	content := random(200 * kib)
	good := expose(t, content, 16*kib, nil)
	flip := func(first int64, digests []byte) []byte {
		digests[0] ^= 1
		return digests
	}
	wrongRoot := func(st *control.SurfaceState) {
		if st.Sealed {
			st.Root = bytes.Clone(st.Root)
			st.Root[3] ^= 1
		}
	}
	short := func(first int64, digests []byte) []byte { return digests[:len(digests)-1] }
	for name, lie := range map[string]func(h *host){
		"digests":     func(h *host) { h.onDigests = flip },
		"root":        func(h *host) { h.onState = wrongRoot },
		"few digests": func(h *host) { h.onDigests = short },
		"name":        func(h *host) { m := *h.manifest; m.Name = "other"; h.manifest = &m },
		"size":        func(h *host) { h.onState = func(st *control.SurfaceState) { st.Size += 16 * kib } },
		"count":       func(h *host) { h.onState = func(st *control.SurfaceState) { st.Count++ } },
		"runs": func(h *host) {
			h.onState = func(st *control.SurfaceState) { st.Have = []control.ChunkRun{{First: -1, Count: 5}} }
		},
		"empty runs":    func(h *host) { h.onState = func(st *control.SurfaceState) { st.Have = []control.ChunkRun{{First: 1}} } },
		"vast runs":     func(h *host) { h.onState = func(st *control.SurfaceState) { st.Have[0].Count = 1<<63 - 1 } },
		"no root":       func(h *host) { h.onState = func(st *control.SurfaceState) { st.Root = nil } },
		"more and none": func(h *host) { h.onState = func(st *control.SurfaceState) { st.Have, st.More = nil, true } },
	} {
		t.Run(name, func(t *testing.T) {
			bad := good.mirror(nil)
			lie(bad)
			if s, err := pull.Open(t.Context(), good.rooted(bad.tcp()), pull.Options{Dial: impatient}); !errors.Is(err, wire.Corrupt) && !errors.Is(err, wire.Invalid) {
				if err == nil {
					s.Close()
				}
				t.Errorf("Open of a ticket with a root: %v", err)
			}
			if name != "name" { // which no one but the root vouches for
				s := open(t, good.rootless(bad.tcp()), pull.Options{Dial: impatient})
				if _, err := s.ToMemory(t.Context(), all); !errors.Is(err, wire.Corrupt) && !errors.Is(err, wire.Invalid) {
					t.Errorf("ToMemory by a ticket without a root: %v", err)
				}
			}
			s := open(t, good.rooted(bad.tcp()), pull.Options{From: []string{good.tcp()}, Dial: impatient})
			checkTargets(t, s, content)
			// Who is not named by the ticket is believed nothing.
			s = open(t, good.rootless(good.tcp()), pull.Options{From: []string{bad.tcp()}, Dial: impatient})
			checkTargets(t, s, content)
		})
	}
}

// Who claims more chunks than there can be room for the digests of, or has no end of news of
// what it has, is not listened to for ever.
func TestEndlessManifest(t *testing.T) {
	content := random(64 * kib)
	good := expose(t, content, 4*kib, nil)
	vast := good.mirror(nil)
	vast.onState = func(st *control.SurfaceState) {
		st.Size, st.Count = surface.MaxSize, surface.MaxSize/good.manifest.Chunk
	}
	endless := good.mirror(nil)
	endless.onState = func(st *control.SurfaceState) {
		st.Have, st.More = []control.ChunkRun{{Count: 1}}, true
	}
	for name, bad := range map[string]struct {
		host *host
		want wire.Code
	}{"vast": {vast, wire.Limit}, "endless": {endless, wire.Invalid}} {
		for _, ticket := range []*surface.Ticket{good.rooted(bad.host.tcp()), good.rootless(bad.host.tcp())} {
			s, err := pull.Open(t.Context(), ticket, pull.Options{Dial: impatient})
			if err == nil {
				_, err = s.CopyTo(t.Context(), io.Discard, all)
				s.Close()
			}
			if !errors.Is(err, bad.want) {
				t.Errorf("%s: %v, want %v", name, err, bad.want)
			}
		}
		s := open(t, good.rooted(good.tcp()), pull.Options{From: []string{bad.host.tcp()}, Dial: impatient})
		checkTargets(t, s, content)
	}
}
