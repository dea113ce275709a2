// SPDX-License-Identifier: Apache-2.0

package private_test

import (
	"fmt"
	"testing"

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

func TestAllocRefuses(t *testing.T) {
	for _, size := range []int64{0, -1, 1 << 62} {
		if mem, err := private.Alloc(size); err == nil {
			t.Errorf("%d bytes: %d came", size, len(mem))
		}
	}
}
