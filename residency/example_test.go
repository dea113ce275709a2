// SPDX-License-Identifier: Apache-2.0

package residency_test

import (
	"fmt"

	"github.com/memspan/memspan/residency"
)

// A tier with room for four blocks makes room for a fifth. Block 2 is pinned.
func Example() {
	q := residency.New[int]()
	for _, block := range []int{1, 2, 3, 4, 1, 3} {
		q.Use(block)
	}
	pinned := map[int]bool{2: true}
	for _, block := range q.Victims(3) {
		if pinned[block] {
			continue
		}
		q.Remove(block) // evicted
		fmt.Println("evicted", block)
		break
	}
	q.Use(5)
	fmt.Println(q.Len(), "blocks are resident")
	// Output:
	// evicted 4
	// 4 blocks are resident
}
