// SPDX-License-Identifier: Apache-2.0

package mapping_test

import (
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/memspan/memspan/mapping"
)

// use makes a shadow of n bytes, touches all of it and closes it.
func use(t testing.TB, p *mapping.Pool, n int64) {
	t.Helper()
	sh, err := mapping.NewShadow(p, 0, n, blockSize, true, mapping.Auto)
	if err != nil {
		t.Fatal(err)
	}
	touch(t, sh)
	if err := sh.Close(); err != nil {
		t.Fatal(err)
	}
}

func touch(t testing.TB, sh *mapping.Shadow) {
	t.Helper()
	if err := sh.Arm(); err != nil {
		t.Fatal(err)
	}
	for i := range sh.Bytes() {
		sh.Bytes()[i] = 1
	}
}

func TestPoolIsBounded(t *testing.T) {
	const limit = 3 << 20
	p := mapping.NewPool(limit)
	defer p.Close()
	var open []*mapping.Shadow
	for i := range int64(10) {
		sh, err := mapping.NewShadow(p, 0, 1<<20-i, blockSize, true, mapping.Auto)
		if err != nil {
			t.Fatal(err)
		}
		touch(t, sh)
		open = append(open, sh)
	}
	if p.Idle() != 0 {
		t.Errorf("%d bytes idle, none was returned", p.Idle())
	}
	most := int64(0)
	for _, sh := range open {
		if err := sh.Close(); err != nil {
			t.Fatal(err)
		}
		most = max(most, p.Idle())
	}
	if most == 0 || most > limit {
		t.Errorf("up to %d bytes idle, the limit is %d", most, limit)
	}
	use(t, p, limit+1)
	if p.Idle() > limit {
		t.Errorf("%d bytes idle after one too large", p.Idle())
	}
}

func TestPoolGivesBackWhatIsIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := mapping.NewPool(1 << 30)
		use(t, p, 1<<20)
		first := p.Idle()
		time.Sleep(6 * time.Second) // of the bubble's clock
		use(t, p, 1<<22)
		if p.Idle() <= first {
			t.Errorf("%d bytes idle, %d before", p.Idle(), first)
		}
		second := p.Idle() - first
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if p.Idle() != second {
			t.Errorf("%d bytes idle, want the second's %d only", p.Idle(), second)
		}
		use(t, p, 1<<22) // once more from the pool, which starts its time anew
		time.Sleep(6 * time.Second)
		synctest.Wait()
		if p.Idle() == 0 {
			t.Error("what was used 6 seconds ago is gone")
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if p.Idle() != 0 {
			t.Errorf("%d bytes still idle", p.Idle())
		}
		use(t, p, 1<<20)
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if p.Idle() != 0 {
			t.Errorf("%d bytes idle after Close", p.Idle())
		}
	})
}

func TestClosedPool(t *testing.T) {
	p := mapping.NewPool(1 << 30)
	sh, err := mapping.NewShadow(p, 0, 100, blockSize, true, mapping.Auto)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	touch(t, sh)
	if err := sh.Close(); err != nil {
		t.Error(err)
	}
	if p.Idle() != 0 {
		t.Errorf("%d bytes idle in a closed pool", p.Idle())
	}
	if _, err := mapping.NewShadow(p, 0, 1, blockSize, true, mapping.Auto); !errors.Is(err, mapping.ErrClosed) {
		t.Errorf("NewShadow from a closed pool: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

func TestPoolConcurrently(t *testing.T) {
	p := newPool(t)
	var wg sync.WaitGroup
	for g := range byte(4) {
		wg.Go(func() {
			for i := range int64(50) {
				sh, err := mapping.NewShadow(p, i, blockSize+i, blockSize, true, mapping.Auto)
				if err != nil {
					t.Error(err)
					return
				}
				if err := sh.Arm(); err != nil {
					t.Error(err)
				}
				for k := range sh.Bytes() {
					if sh.Bytes()[k] != 0 {
						t.Errorf("byte %d of a fresh mapping is %d", k, sh.Bytes()[k])
						break
					}
				}
				for k := range sh.Bytes() {
					sh.Bytes()[k] = g + 1
				}
				if err := sh.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}
