// SPDX-License-Identifier: Apache-2.0

package span_test

import (
	"testing"

	"github.com/memspan/memspan/coherency"
	"github.com/memspan/memspan/span"
)

// Every way to read and to write is counted once, at the span and at the tier
// that did it; so is every copy between tiers.
func TestTraffic(t *testing.T) {
	st := newStore(t)
	s := alloc(t, st, span.Info{Size: 2 * block, Tier: coherency.VRAM, Home: coherency.Host})
	other := alloc(t, st, span.Info{Size: block, Tier: coherency.Host, Home: coherency.Host})
	type flow struct{ host, vram span.Traffic }
	now := func() (f flow) {
		var ok bool
		if f.host, ok = st.Traffic(coherency.Host); !ok {
			t.Fatal("no host tier")
		}
		f.vram, _ = st.Traffic(coherency.VRAM)
		return f
	}
	const kept = 100 // bytes used where less than a block will do
	for _, step := range []struct {
		name          string
		do            func()
		read, written int64 // of s
		flow          flow
	}{
		{"zeros are read", func() { read(t, s, 0, kept) }, kept, 0, flow{}},
		{"a whole block is written", func() { write(t, s, 0, pattern(block, 1)) }, 0, block, flow{vram: span.Traffic{In: block}}},
		{"a part of a new block is written", func() { write(t, s, block, pattern(kept, 1)) }, 0, kept,
			flow{vram: span.Traffic{In: block + kept}}}, // the rest is filled first
		{"the device is read", func() { read(t, s, 0, kept) }, kept, 0, flow{vram: span.Traffic{Out: kept}}},
		{"a block is brought to RAM", func() { follow(t, s.Prefetch, coherency.Host, 0, block) }, 0, 0,
			flow{vram: span.Traffic{Out: block}, host: span.Traffic{In: block}}},
		{"RAM is read", func() { read(t, s, 0, kept) }, kept, 0, flow{host: span.Traffic{Out: kept}}},
		{"RAM is lent", func() {
			if ok, err := s.Lend(t.Context(), 0, kept, nothing, func([]byte) {}); !ok || err != nil {
				t.Fatal(ok, err)
			}
			s.CountLent(kept)
		}, kept, 0, flow{host: span.Traffic{Out: kept}}},
		{"runs are flushed", func() {
			runs := []span.Run{{Offset: 1, Length: 2}, {Offset: 8, Length: 3}}
			if _, err := openShadow(t, s).Flush(t.Context(), 0, span.AnyVersion, runs, memory(t, pattern(5, 1)), false); err != nil {
				t.Fatal(err)
			}
		}, 0, 5, flow{vram: span.Traffic{In: 5}}},
		{"it is copied from", func() {
			if _, err := other.Copy(t.Context(), 0, s, 0, kept); err != nil {
				t.Fatal(err)
			}
		}, kept, 0, flow{vram: span.Traffic{Out: kept}, host: span.Traffic{In: kept}}},
		{"it is filled", func() {
			if _, err := s.Fill(t.Context(), 0, kept, 1); err != nil {
				t.Fatal(err)
			}
		}, 0, kept, flow{vram: span.Traffic{In: kept}}},
	} {
		before, from := statOf(t, s), now()
		step.do()
		after, to := statOf(t, s), now()
		if read, written := after.Read-before.Read, after.Written-before.Written; read != step.read || written != step.written {
			t.Errorf("%s: %d bytes read, %d written; want %d, %d", step.name, read, written, step.read, step.written)
		}
		got := flow{
			host: span.Traffic{In: to.host.In - from.host.In, Out: to.host.Out - from.host.Out},
			vram: span.Traffic{In: to.vram.In - from.vram.In, Out: to.vram.Out - from.vram.Out},
		}
		if got != step.flow {
			t.Errorf("%s: %+v, want %+v", step.name, got, step.flow)
		}
	}
	if _, ok := st.Traffic(coherency.Disk); ok {
		t.Error("there is a disk tier")
	}
}

// A direct mapping's stores are known when it is released: by the block.
func TestTrafficOfDirectMappings(t *testing.T) {
	st := newStore(t)
	s := alloc(t, st, span.Info{Size: 3 * block, Tier: coherency.Host, Home: coherency.Host})
	d, p := mapDirect(t, s, 0, 3*block)
	if _, err := d.Flush(t.Context()); err != nil { // sums are known from here on
		t.Fatal(err)
	}
	before := statOf(t, s).Written
	p[block]++
	c, err := d.Flush(t.Context())
	if err != nil || c.Stored != block {
		t.Errorf("%d bytes stored, %v; want a block", c.Stored, err)
	}
	if got := statOf(t, s).Written - before; got != block {
		t.Errorf("%d bytes written, want a block", got)
	}
}

func statOf(t *testing.T, s *span.Span) span.Stat {
	t.Helper()
	st, err := s.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return st
}
