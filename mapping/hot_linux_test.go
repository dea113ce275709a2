// SPDX-License-Identifier: Apache-2.0

package mapping_test

import (
	"bytes"
	"math/rand/v2"
	"syscall"
	"testing"

	"github.com/memspan/memspan/mapping"
)

// What is rewritten whole again and again is not protected in between: stores
// to it fault no more. Whatever is written then, and wherever, is found.
func TestRewrittenWhole(t *testing.T) {
	needs(t, mapping.Pages)
	const n = 4<<20 + 100
	srv := newServer(n)
	sh := srv.open(t, newPool(t), 0, n, mapping.Adaptive)
	mem := sh.Bytes()
	random := rand.New(rand.NewPCG(1, 2))
	rewrite := func() (faults int64) {
		value := byte(random.Uint32())
		before := minorFaults(t)
		for i := range mem {
			mem[i] += value | 1
		}
		return minorFaults(t) - before
	}
	check := func(what string) {
		t.Helper()
		srv.flush(t, sh, 0, n)
		wantEqual(t, what, srv, mem)
	}
	first := rewrite()
	check("first")
	rewrite()
	check("again")
	check("nothing")
	if third := rewrite(); third > first/4 {
		t.Errorf("%d faults when all was rewritten, %d the first time", third, first)
	}
	check("a third time")
	for i := range 6 {
		for range i {
			mem[random.IntN(n)]++
		}
		check("a byte here and there")
	}
	mem[n-1]++
	copy(mem[100<<10:], bytes.Repeat([]byte{9}, 300<<10))
	check("a part")
	mem[200<<10]++
	srv.flush(t, sh, 200<<10-5, 10)
	wantEqual(t, "a range within", srv, mem)
	rewrite()
	check("all once more")
}

func minorFaults(t *testing.T) int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return u.Minflt
}
