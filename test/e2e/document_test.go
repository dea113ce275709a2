// SPDX-License-Identifier: Apache-2.0

//go:build linux

package e2e

import (
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/wire"
)

// documentPattern is what the document's test writes.
const documentPattern = 0x12345678

// A way is a transport with what decides how mappings are made on it.
type way struct {
	name, transport string
	tracking        memspan.Tracking
}

var ways = [...]way{
	{"unix", "unix", memspan.TrackAuto},
	{"tcp-pages", "tcp", memspan.TrackPages},
	{"tcp-compare", "tcp", memspan.TrackCompare},
	{"tls", "tls", memspan.TrackAuto},
}

// The document's 15 steps, and the way back from the device that it leaves
// out: staging span, device-local span by a copy, staging span again.
func TestDocument(t *testing.T) {
	t.Parallel()
	d := start(t, settings{VRAM: true})
	for _, w := range ways {
		for _, tier := range []memspan.Tier{memspan.Host, memspan.VRAM} {
			for _, size := range []int64{4 << 10, 1 << 20, 10 << 20} {
				t.Run(fmt.Sprintf("%s/%v/%dKiB", w.name, tier, size>>10), func(t *testing.T) {
					c := d.dial(t, w.transport, memspan.Options{Tracking: w.tracking})
					document(t, c, tier, size, func(p []byte) {
						for i := 0; i < len(p); i += 4 {
							binary.LittleEndian.PutUint32(p[i:], documentPattern)
						}
					}, func(p []byte) int {
						for i := 0; i < len(p); i += 4 {
							if binary.LittleEndian.Uint32(p[i:]) != documentPattern {
								return i
							}
						}
						return -1
					})
					document(t, c, tier, size,
						func(p []byte) { stamp(p, 0, uint64(size)) },
						func(p []byte) int { return wrong(p, 0, uint64(size)) })
				})
			}
		}
	}
}

func document(t *testing.T, c *memspan.Client, tier memspan.Tier, size int64, fill func([]byte), wrong func([]byte) int) {
	t.Helper()
	ctx := t.Context()
	staging := alloc(t, c, memspan.SpanConfig{Size: size, Tier: memspan.On(tier), Placement: memspan.HostVisible})
	before := c.Traffic()
	m := mapped(t, staging, 0, size, memspan.ReadWrite)
	fill(m.Bytes())
	direct := m.Direct()
	unmap(t, m)
	after := c.Traffic()
	sent := after.Sent.Data - before.Sent.Data
	switch {
	case after.Sent.Frames[wire.KindRead] != before.Sent.Frames[wire.KindRead]:
		t.Error("a span that was never written was read to be mapped")
	case direct && sent > 4<<10:
		t.Errorf("a direct mapping sent %d bytes", sent)
	case !direct && sent < uint64(size):
		t.Errorf("a shadow buffer of %d new bytes sent %d", size, sent)
	}

	device := alloc(t, c, memspan.SpanConfig{Size: size, Tier: memspan.On(tier), Placement: memspan.DeviceLocal})
	done, err := device.Copy(ctx, 0, staging, 0, size)
	check(t, err)
	if !done.Holders.Has(tier) || done.Device != (tier == memspan.VRAM) {
		t.Errorf("the copy is held by %v, done by the device: %v", done.Holders, done.Device)
	}
	_, err = staging.Fill(ctx, 0, size, 0) // what is read below came from the device
	check(t, err)
	_, err = staging.Copy(ctx, 0, device, 0, size)
	check(t, err)

	m = mapped(t, staging, 0, size, memspan.ReadOnly)
	if i := wrong(m.Bytes()); i >= 0 {
		t.Errorf("byte %d came back wrong", i)
	}
	unmap(t, m)
	check(t, device.Free(ctx))
	check(t, staging.Free(ctx))
}

// Copies between spans of device memory are the device's work, and fills;
// copies in RAM are not.
func TestCopyIsDoneOnTheDevice(t *testing.T) {
	t.Parallel()
	d := start(t, settings{VRAM: true})
	c := d.dial(t, "unix")
	const size = 3<<20 + 5
	for _, tier := range []memspan.Tier{memspan.VRAM, memspan.Host} {
		cfg := memspan.SpanConfig{Size: size, Tier: memspan.On(tier)}
		from, to := alloc(t, c, cfg), alloc(t, c, cfg)
		write(t, from, stamped(size, 0, 1), 0)
		done, err := to.Copy(t.Context(), 0, from, 0, size)
		check(t, err)
		if done.Device != (tier == memspan.VRAM) {
			t.Errorf("%v: copy by the device: %v", tier, done.Device)
		}
		holds(t, to, 0, size, 1)
		done, err = to.Fill(t.Context(), 3, size-7, documentPattern)
		check(t, err)
		if done.Device != (tier == memspan.VRAM) {
			t.Errorf("%v: fill by the device: %v", tier, done.Device)
		}
		got := read(t, to, 0, size)
		expected := stamped(size, 0, 1)
		for i := 3; i < size-4; i++ {
			expected[i] = byte(uint32(documentPattern) >> ((i - 3) % 4 * 8))
		}
		if i := differ(got, expected); i >= 0 {
			t.Errorf("%v: byte %d is %#x after the fill, want %#x", tier, i, got[i], expected[i])
		}
	}
	st, err := c.Stats(t.Context())
	check(t, err)
	if st.Coherency.Total != 4 || st.Coherency.DeviceOnly != 2 || st.Coherency.HostOnly != 2 {
		t.Errorf("statistics: %+v", st.Coherency)
	}
}

// The issue "data corruption on transfer": bytes cross as they are, whatever
// the boundaries.
func TestDocumentBoundaries(t *testing.T) {
	t.Parallel()
	d := start(t, settings{VRAM: true})
	for _, tier := range []memspan.Tier{memspan.Host, memspan.VRAM} {
		for _, transport := range transports {
			c := d.dial(t, transport)
			const size = 2<<20 + 4097
			s := alloc(t, c, memspan.SpanConfig{Size: size, Tier: memspan.On(tier)})
			model := make([]byte, size)
			for i, r := range [...][2]int{{0, 1}, {size - 1, 1}, {1<<20 - 1, 2}, {4095, 4098}, {1<<20 + 3, 1<<20 + 1}, {17, size - 31}, {5, 7}} {
				off, n := r[0], r[1]
				p := stamped(n, int64(off), uint64(i))
				write(t, s, p, int64(off))
				copy(model[off:], p)
				if i := differ(read(t, s, 0, size), model); i >= 0 {
					t.Fatalf("%v over %s: after a write of [%d, +%d) byte %d is wrong", tier, transport, off, n, i)
				}
			}
		}
	}
}

// The issue "memory not HOST_VISIBLE": a span that the CPU cannot map on the
// device is staged and maps all the same. And "shadow buffer not freed": Unmap
// ends a mapping for both sides, whatever became of the span.
func TestDocumentMappingsEnd(t *testing.T) {
	t.Parallel()
	d := start(t, settings{VRAM: true, HideVisible: true})
	for _, transport := range transports {
		c := d.dial(t, transport)
		s := alloc(t, c, memspan.SpanConfig{Size: 1 << 20, Tier: memspan.On(memspan.VRAM), Placement: memspan.DeviceLocal})
		m := mapped(t, s, 100, 5000, memspan.ReadWrite)
		stamp(m.Bytes(), 100, 3)
		unmap(t, m)
		if m.Bytes() != nil {
			t.Errorf("%s: an unmapped mapping has bytes", transport)
		}
		want(t, transport+": unmap of unmapped", m.Unmap(t.Context()), memspan.ErrNotMapped)
		holds(t, s, 100, 5000, 3)

		m = mapped(t, s, 0, 1<<20, memspan.ReadWrite)
		check(t, s.Free(t.Context()))
		over(t, m)
		want(t, transport+": the mapping of a freed span", m.Err(), memspan.ErrFreed)
		m.Bytes()[0] = 1 // still memory
		// The end of a freed span's mapping says that what was stored is lost.
		if err := m.Discard(t.Context()); err != nil {
			want(t, transport+": discard of a freed span's mapping", err, memspan.ErrFreed)
		}
		st, err := c.Stats(t.Context())
		check(t, err)
		if st.Mappings != 0 {
			t.Errorf("%s: the server knows of %d mappings", transport, st.Mappings)
		}
	}
}
