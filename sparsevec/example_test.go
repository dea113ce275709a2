// SPDX-License-Identifier: Apache-2.0

package sparsevec_test

import (
	"fmt"
	"log"

	"github.com/memspan/memspan/sparsevec"
)

func ExampleVec() {
	data, err := sparsevec.Vec{Pos: []uint64{1, 5}, Neg: []uint64{2}}.MarshalBinary()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("% x\n", data)

	var v sparsevec.Vec
	if err := v.UnmarshalBinary(data); err != nil {
		log.Fatal(err)
	}
	fmt.Println(v.Pos, v.Neg)

	// Output:
	// 02 00 00 00 01 00 00 00 01 00 00 00 05 00 00 00 02 00 00 00
	// [1 5] [2]
}
