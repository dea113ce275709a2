// SPDX-License-Identifier: Apache-2.0

package disk_test

import (
	"bytes"
	"crypto/rand"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/memspan/memspan/coherency"
	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/tier"
	"github.com/memspan/memspan/tier/disk"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// failer is what *testing.T and *rapid.T can do.
type failer interface {
	Helper()
	Fatalf(format string, args ...any)
}

func openTier(t failer, cfg disk.Config) *disk.Tier {
	t.Helper()
	d, err := disk.Open(ctx, cfg)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return d
}

func record(name string, size int64) disk.Record {
	r := disk.Record{Name: name, Size: size, Tier: coherency.Disk, Home: coherency.Disk, Policy: coherency.WriteThrough, Published: true, Created: time.Now()}
	rand.Read(r.ID[:])
	return r
}

// newSpan makes a durable span and its space.
func newSpan(t testing.TB, d *disk.Tier, name string, size int64) *disk.Space {
	t.Helper()
	rec := record(name, size)
	s, err := d.Durable(rec)
	if err != nil {
		t.Fatal(err)
	}
	x := d.Begin()
	x.Set(rec)
	if err := x.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	return s
}

// region returns memory that spaces can read and write, which the test's end
// frees.
func region(t testing.TB, n int64) tier.Memory {
	t.Helper()
	r, err := memfd.Create("disktest", n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return tier.Memory{Region: r, Len: n}
}

// holds checks that a block reads as want.
func holds(t failer, s *disk.Space, b int, want []byte, m tier.Memory) {
	t.Helper()
	m = m.Slice(0, int64(len(want)))
	if err := s.Read(ctx, b, 0, m); err != nil {
		t.Fatalf("read block %d: %v", b, err)
	}
	if got := m.Bytes(); !bytes.Equal(got, want) {
		i := 0
		for got[i] == want[i] {
			i++
		}
		t.Fatalf("block %d: byte %d is %#x, want %#x", b, i, got[i], want[i])
	}
}
