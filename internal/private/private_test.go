// SPDX-License-Identifier: Apache-2.0

package private_test

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/internal/private"
)

func Example() {
	mem, err := private.Alloc(1 << 20)
	if err != nil {
		fmt.Println(err)
		return
	}
	mem[1<<20-1] = 7
	fmt.Println(len(mem), mem[0])
	fmt.Println(private.Free(mem))
	// Output:
	// 1048576 0
	// <nil>
}

func TestProtect(t *testing.T) {
	mem, err := private.Alloc(5000)
	if err != nil {
		t.Fatal(err)
	}
	defer private.Free(mem)
	if err := private.Protect(mem, false); err != nil {
		t.Fatal(err)
	}
	fault := memfd.Guard(func() { mem[4999] = 1 })
	if protects := runtime.GOOS != "windows"; (fault != nil) != protects {
		t.Errorf("a store to protected memory: %v", fault)
	}
	if err := private.Protect(mem, true); err != nil {
		t.Fatal(err)
	}
	mem[4999] = 1
}

func TestAllocRefuses(t *testing.T) {
	for _, size := range []int64{0, -1, 1 << 62} {
		if mem, err := private.Alloc(size); err == nil {
			t.Errorf("%d bytes: %d came", size, len(mem))
		}
	}
}
