// SPDX-License-Identifier: Apache-2.0

//go:build linux

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/wire/control"
)

// killWorker kills the daemon's Vulkan worker as kill -9 does, and returns
// which process that was.
func (d *daemon) killWorker(t testing.TB) (pid int) {
	t.Helper()
	eventually(t, "a worker", func() bool { pid = d.worker(t); return pid != 0 })
	p, err := os.FindProcess(pid)
	check(t, err)
	check(t, p.Kill())
	return pid
}

// revived waits until device memory can be had again.
func revived(t testing.TB, c *memspan.Client) {
	t.Helper()
	eventually(t, "device memory", func() bool {
		s, err := c.Alloc(t.Context(), memspan.SpanConfig{Size: 1, Tier: memspan.On(memspan.VRAM)})
		if err == nil {
			check(t, s.Close())
		} else if !errors.Is(err, memspan.ErrTierAbsent) && !errors.Is(err, memspan.ErrDataLoss) {
			t.Fatal(err)
		}
		return err == nil
	})
}

// When the worker is killed, what only device memory held is lost and said to
// be; all else goes on, and a new worker serves new spans.
func TestWorkerKilled(t *testing.T) {
	t.Parallel()
	d := start(t, settings{VRAM: true, Process: true})
	c := d.dial(t, "tcp")
	const size = 2<<20 + 99
	made := func(name string, cfg memspan.SpanConfig) *memspan.Span {
		cfg.Name, cfg.Size = name, size
		s := alloc(t, c, cfg)
		write(t, s, stamped(size, 0, 1), 0)
		return s
	}
	onDevice := memspan.On(memspan.VRAM)
	only := made("only-vram", memspan.SpanConfig{Tier: onDevice})
	through := made("through", memspan.SpanConfig{Tier: onDevice, Home: memspan.On(memspan.Host), Policy: memspan.WriteThrough})
	host := made("host", memspan.SpanConfig{})
	both := made("both", memspan.SpanConfig{Tier: onDevice})
	_, err := both.Download(t.Context())
	check(t, err)
	stale := made("stale", memspan.SpanConfig{Tier: onDevice})
	_, err = stale.Download(t.Context())
	check(t, err)
	write(t, stale, stamped(100, 50, 2), 50) // newer on the device; block 0 alone
	pinned := made("pinned", memspan.SpanConfig{Tier: onDevice})
	near := open(t, d.dial(t, "unix"), pinned)
	m := mapped(t, near, 0, size, memspan.ReadWrite)
	stamp(m.Bytes(), 0, 3)
	flush(t, m)

	d.killWorker(t)
	var lost error
	eventually(t, "the loss", func() bool {
		_, lost = only.ReadAt(t.Context(), []byte{0}, 0)
		return errors.Is(lost, memspan.ErrDataLoss) && stat(t, only).Lost > 0
	})
	refusal(t, "read of what is lost", lost, memspan.ErrDataLoss, "only-vram")
	_, err = only.Map(t.Context(), 0, size, memspan.ReadWrite)
	refusal(t, "map of what is lost", err, memspan.ErrDataLoss, "only-vram")
	if st := stat(t, only); st.Lost != st.Blocks {
		t.Errorf("%d blocks of %d are lost", st.Lost, st.Blocks)
	}
	for _, s := range []*memspan.Span{through, host, both} {
		holds(t, s, 0, size, 1)
	}
	holds(t, near, 0, size, 3)
	if i := wrong(m.Bytes(), 0, 3); i >= 0 {
		t.Errorf("mapped byte %d is wrong", i)
	}
	unmap(t, m)
	holds(t, pinned, 0, size, 3)

	_, err = stale.ReadAt(t.Context(), []byte{0}, 60)
	var e *memspan.Error
	if !errors.As(err, &e) || e.Code != memspan.ErrDataLoss || e.Survivor == 0 || e.Survivor >= e.Version {
		t.Errorf("read of a lost version with an older one left: %v (%+v)", err, e)
	}
	holds(t, stale, 1<<20, size-1<<20, 1) // the other blocks
	_, err = stale.Accept(t.Context())
	check(t, err)
	holds(t, stale, 0, size, 1)

	revived(t, c)
	// Overwriting whole blocks ends a loss, and accepting one.
	write(t, only, stamped(1<<20, 0, 4), 0)
	holds(t, only, 0, 1<<20, 4)
	if st := stat(t, only); st.Lost != st.Blocks-1 {
		t.Errorf("%d blocks of %d are lost after one was overwritten", st.Lost, st.Blocks)
	}
	before := stat(t, only).Version
	done, err := only.Accept(t.Context())
	check(t, err)
	if done.Version <= before {
		t.Errorf("accepted as version %d, it was %d", done.Version, before)
	}
	if !bytes.Equal(read(t, only, 1<<20, size-1<<20), zeros(size-1<<20)) {
		t.Error("what was lost for good does not read as zeros once accepted")
	}
	holds(t, only, 0, 1<<20, 4)
	for i, s := range []*memspan.Span{only, through, both, stale, pinned, made("new", memspan.SpanConfig{Tier: onDevice})} {
		write(t, s, stamped(size, 0, uint64(10+i)), 0)
		holds(t, s, 0, size, uint64(10+i))
	}
}

func zeros(n int) []byte { return make([]byte, n) }

// Workers killed again and again in the middle of transfers: what was
// acknowledged with a copy in RAM is never lost, nothing is ever torn, and
// every error says what it is.
func TestWorkerKilledUnderLoad(t *testing.T) {
	t.Parallel()
	d := start(t, settings{VRAM: true, Process: true})
	boss := d.dial(t, "unix")
	stop := make(chan struct{})
	var work sync.WaitGroup
	for i := range 4 {
		home, policy := memspan.On(memspan.VRAM), memspan.WriteBack
		if i%2 == 0 {
			home, policy = memspan.On(memspan.Host), memspan.WriteThrough
		}
		s := alloc(t, d.dial(t, transports[i%3]), memspan.SpanConfig{
			Name: fmt.Sprint("load-", i), Size: block, Tier: memspan.On(memspan.VRAM), Home: home, Policy: policy,
		})
		work.Go(func() {
			l := load{span: s, rand: rand.New(rand.NewPCG(uint64(i), 15)), safe: policy == memspan.WriteThrough}
			for n := uint64(1); ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				if err := l.step(t, n); err != nil {
					t.Errorf("%s, step %d: %v", s.Name(), n, err)
					return
				}
			}
		})
	}
	for range 20 {
		dead := d.killWorker(t)
		eventually(t, "another worker", func() bool { pid := d.worker(t); return pid != 0 && pid != dead || t.Failed() })
		revived(t, boss)
		if t.Failed() {
			break
		}
	}
	close(stop)
	work.Wait()
}

// A load writes and reads one block, and knows what it may hold.
type load struct {
	span *memspan.Span
	rand *rand.Rand
	safe bool     // what is acknowledged is in RAM too
	may  []uint64 // the seeds of writes that the block may hold; 0: zeros
}

func (l *load) step(t *testing.T, n uint64) error {
	ctx := t.Context()
	if l.may == nil {
		l.may = []uint64{0}
	}
	if l.rand.IntN(2) == 0 {
		_, err := l.span.WriteAt(ctx, stamped(block, 0, n), 0)
		switch {
		case err == nil:
			l.may = []uint64{n}
		case lossy(err):
			l.may = append(l.may, n)
		default:
			return err
		}
		return nil
	}
	p := make([]byte, block)
	_, err := l.span.ReadAt(ctx, p, 0)
	if err != nil && l.safe && len(l.may) == 1 {
		return fmt.Errorf("RAM holds it: %w", err)
	}
	switch {
	case errors.Is(err, memspan.ErrDataLoss):
		if _, err := l.span.Accept(ctx); err != nil && !lossy(err) {
			return fmt.Errorf("accept: %w", err)
		}
		if !l.safe { // else what RAM held before survives
			l.may = append(l.may, 0)
		}
		return nil
	case err != nil && lossy(err):
		return nil
	case err != nil:
		return err
	}
	for _, seed := range l.may {
		if seed != 0 && wrong(p, 0, seed) < 0 || seed == 0 && bytes.Equal(p, zeros(block)) {
			return nil
		}
	}
	// Say what it is, then: an older write, or a mixture.
	for seed := range n {
		if wrong(p, 0, seed) < 0 {
			return fmt.Errorf("the block holds write %d, not one of %d", seed, l.may)
		}
	}
	return fmt.Errorf("the block holds none of %d: it begins with %x", l.may, p[:16])
}

// lossy reports whether err is what a dying worker may cause.
func lossy(err error) bool {
	return errors.Is(err, memspan.ErrDataLoss) || errors.Is(err, memspan.ErrTierAbsent) || errors.Is(err, memspan.ErrDebt)
}

// Devices whose memory the CPU cannot map, or not coherently, give the same
// bytes by other paths.
func TestHiddenMemoryProperties(t *testing.T) {
	t.Parallel()
	for _, s := range []settings{
		{VRAM: true, HideVisible: true},
		{VRAM: true, HideCoherent: true},
		{VRAM: true, HideVisible: true, HideCoherent: true},
	} {
		t.Run(fmt.Sprintf("visible-%v,coherent-%v", !s.HideVisible, !s.HideCoherent), func(t *testing.T) {
			d := start(t, s)
			for _, w := range ways {
				c := d.dial(t, w.transport, memspan.Options{Tracking: w.tracking})
				for _, size := range []int64{4 << 10, 3<<20 + 8} {
					document(t, c, memspan.VRAM, size,
						func(p []byte) { stamp(p, 0, uint64(size)) },
						func(p []byte) int { return wrong(p, 0, uint64(size)) })
				}
			}
			// And by those paths: the daemon counts what it does.
			c := d.dial(t, "unix")
			const size = 3<<20 + 8
			before := moved(t, c)
			local := alloc(t, c, memspan.SpanConfig{Size: size, Tier: memspan.On(memspan.VRAM), Placement: memspan.DeviceLocal})
			write(t, local, stamped(size, 0, 1), 0)
			holds(t, local, 0, size, 1)
			after := moved(t, c)
			mapped, staged := after.Mapped-before.Mapped, after.Staged-before.Staged
			if mapped+staged < 2*size {
				t.Errorf("%d bytes mapped and %d staged, want all of %d there and back", mapped, staged, size)
			}
			if s.HideVisible && (mapped > 0 || after.Submits == before.Submits) {
				t.Errorf("%d bytes went through memory that is hidden; %+v", mapped, after)
			}
			if mapped > 0 && after.Flushes == before.Flushes {
				t.Errorf("memory that is not coherent was not flushed: %+v", after)
			}
		})
	}
}

// moved returns what the daemon's VRAM tier has done so far.
func moved(t testing.TB, c *memspan.Client) control.VRAM {
	t.Helper()
	st, err := c.Stats(t.Context())
	check(t, err)
	if st.VRAM == nil {
		t.Fatal("no statistics of device memory")
	}
	return *st.VRAM
}

// The two-sided states of the document, through the client.
func TestStates(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	d := start(t, settings{VRAM: true})
	c := d.dial(t, "unix")
	const size = 1<<20 + 10
	s := alloc(t, c, memspan.SpanConfig{Name: "states", Size: size, Tier: memspan.On(memspan.VRAM)})
	is := func(want memspan.State) {
		t.Helper()
		got, err := s.State(ctx)
		check(t, err)
		if got != want {
			t.Fatalf("state %v, want %v (%+v)", got, want, stat(t, s).Tiers)
		}
	}
	commit := func(done memspan.Commit, err error) {
		t.Helper()
		check(t, err)
		if !done.Holders.Any() {
			t.Errorf("nobody holds version %d", done.Version)
		}
	}
	hostStore := func(seed uint64) { // through memory that is mapped
		m := mapped(t, s, 0, size, memspan.ReadWrite)
		stamp(m.Bytes(), 0, seed)
		unmap(t, m)
	}
	write(t, s, stamped(size, 0, 1), 0)
	is(memspan.DeviceOnly)
	commit(s.Download(ctx))
	is(memspan.Synced)
	write(t, s, stamped(size, 0, 2), 0)
	is(memspan.DeviceDirty)
	_, err := s.Upload(ctx)
	refusal(t, "upload over the device's edits", err, memspan.ErrConflict, "states", "force")
	holds(t, s, 0, size, 2)
	commit(s.Download(ctx))
	is(memspan.Synced)
	holds(t, s, 0, size, 2)

	hostStore(3)
	is(memspan.HostDirty)
	_, err = s.Download(ctx)
	refusal(t, "download over the host's edits", err, memspan.ErrConflict, "states", "force")
	holds(t, s, 0, size, 3)
	commit(s.Upload(ctx))
	is(memspan.Synced)
	holds(t, s, 0, size, 3)
	hostStore(4)
	commit(s.ForceDownload(ctx)) // the device's bytes win
	holds(t, s, 0, size, 3)
	is(memspan.Synced)
	write(t, s, stamped(size, 0, 5), 0)
	is(memspan.DeviceDirty)
	commit(s.ForceUpload(ctx)) // the host's bytes win
	holds(t, s, 0, size, 3)
	is(memspan.Synced)

	hostStore(6)
	before, err := s.Sync(ctx)
	check(t, err)
	is(memspan.Synced)
	holds(t, s, 0, size, 6)
	write(t, s, stamped(size, 0, 7), 0)
	after, err := s.Sync(ctx)
	check(t, err)
	if after <= before {
		t.Errorf("epoch %d ended after epoch %d", after, before)
	}
	epoch, err := c.Sync(ctx)
	check(t, err)
	if epoch <= after {
		t.Errorf("epoch %d ended after epoch %d", epoch, after)
	}
	check(t, s.Release(ctx))
	is(memspan.HostOnly)
	holds(t, s, 0, size, 7)
	if held := stat(t, s).Tiers[memspan.VRAM.String()]; held.Bytes != 0 {
		t.Errorf("released, the device still has %+v", stat(t, s).Tiers)
	}
	st, err := c.Stats(ctx)
	check(t, err)
	if st.Coherency.Total != 1 || st.Coherency.HostOnly != 1 || st.Tiered.TotalBlocks != 2 || st.Tiered.Epoch != epoch {
		t.Errorf("statistics: %+v", st)
	}
	commit(s.Upload(ctx))
	is(memspan.Synced)
	write(t, s, stamped(size, 0, 8), 0)
	check(t, s.Release(ctx)) // written back first
	is(memspan.HostOnly)
	holds(t, s, 0, size, 8)
}

// What the write policies promise, Flush's answer says.
func TestPolicies(t *testing.T) {
	t.Parallel()
	d := start(t, settings{VRAM: true})
	c := d.dial(t, "tcp")
	const size = 1<<20 + 10
	for _, f := range []struct {
		policy     memspan.WritePolicy
		tier, home memspan.Tier
		holders    []memspan.Tier
		debt       bool
	}{
		{memspan.WriteBack, memspan.VRAM, memspan.Host, []memspan.Tier{memspan.VRAM}, false},
		{memspan.WriteThrough, memspan.VRAM, memspan.Host, []memspan.Tier{memspan.VRAM, memspan.Host}, false},
		{memspan.WriteThrough, memspan.Host, memspan.VRAM, []memspan.Tier{memspan.VRAM, memspan.Host}, false},
		{memspan.WriteAll, memspan.VRAM, memspan.Host, []memspan.Tier{memspan.VRAM, memspan.Host}, false},
	} {
		s := alloc(t, c, memspan.SpanConfig{Size: size, Tier: memspan.On(f.tier), Home: memspan.On(f.home), Policy: f.policy})
		m := mapped(t, s, 0, size, memspan.ReadWrite)
		stamp(m.Bytes(), 0, 1)
		done := flush(t, m)
		var want memspan.TierMask
		for _, tier := range f.holders {
			want.Add(tier)
		}
		if done.Holders != want || done.Version != 1 {
			t.Errorf("%v, tier %v, home %v: version %d is held by %v, want %v", f.policy, f.tier, f.home, done.Version, done.Holders, want)
		}
		unmap(t, m)
		_, err := s.Sync(t.Context())
		check(t, err)
		if st := stat(t, s); st.Debt != 0 {
			t.Errorf("%v: %d blocks of debt after sync", f.policy, st.Debt)
		}
	}
}

// A budget that does not hold a span refuses it, whole, and goes on.
func TestBudgets(t *testing.T) {
	t.Parallel()
	const budget = 128 << 20
	d := start(t, settings{VRAM: true, VRAMBudget: budget, HostBudget: budget})
	c := d.dial(t, "tls")
	for _, tier := range []memspan.Tier{memspan.VRAM, memspan.Host} {
		cfg := memspan.SpanConfig{Size: 100 << 20, Tier: memspan.On(tier)}
		first := alloc(t, c, cfg)
		for range 3 {
			cfg.Name = "too much"
			_, err := c.Alloc(t.Context(), cfg)
			refusal(t, tier.String(), err, memspan.ErrBudget, "alloc", "too much")
		}
		write(t, first, stamped(1<<20, 99<<20, 1), 99<<20)
		holds(t, first, 99<<20, 1<<20, 1)
		check(t, first.Free(t.Context()))
		second := alloc(t, c, memspan.SpanConfig{Size: 100 << 20, Tier: memspan.On(tier)})
		if !bytes.Equal(read(t, second, 99<<20, 1<<20), zeros(1<<20)) {
			t.Errorf("%v: a new span shows an old one's bytes", tier)
		}
		check(t, second.Close())
		st, err := c.Stats(t.Context())
		check(t, err)
		if b := st.Budgets[tier.String()]; b.Used > b.Budget || b.Budget != budget {
			t.Errorf("%v: budget %+v", tier, b)
		}
		if st.Coherency.Total != 0 {
			t.Errorf("%v: %d spans are left", tier, st.Coherency.Total)
		}
	}
}
