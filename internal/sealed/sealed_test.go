// SPDX-License-Identifier: Apache-2.0

package sealed_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"github.com/memspan/memspan/internal/blocks"
	"github.com/memspan/memspan/internal/sealed"
)

var key = bytes.Repeat([]byte{7}, sealed.KeySize)

func newBox(t interface{ Fatal(...any) }, shared []byte, size int64) *sealed.Box {
	box, err := sealed.New(shared, key, 5, size)
	if err != nil {
		t.Fatal(err)
	}
	return box
}

// sealAll seals all blocks of mem that are not zeros or were sealed before.
func sealAll(box *sealed.Box, mem []byte, turn uint64) error {
	for i := range blocks.Count(int64(len(mem))) {
		block := blocks.Of(mem, i)
		if box.Fresh(i) && len(bytes.Trim(block, "\x00")) == 0 {
			continue
		}
		if err := box.Seal(i, block, turn); err != nil {
			return err
		}
	}
	return box.SealTable(turn)
}

// openAll returns what a box holds, as somebody sees it who knows the turn alone.
func openAll(t interface{ Fatal(...any) }, shared []byte, size int64, turn uint64) ([]byte, error) {
	box, mem := newBox(t, shared, size), make([]byte, size)
	news, err := box.OpenTable(turn)
	for _, i := range news {
		if err == nil {
			err = box.Open(i, blocks.Of(mem, i))
		}
	}
	return mem, err
}

// Example seals a buffer in memory that somebody else can write, and opens it on
// the other side.
func Example() {
	mem := []byte("nobody's business")
	size := int64(len(mem))
	shared := make([]byte, sealed.Size(size))
	here, err := sealed.New(shared, key, 5, size)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(here.Seal(0, mem, 1), here.SealTable(1), bytes.Contains(shared, mem))

	there, err := sealed.New(shared, key, 5, size)
	if err != nil {
		fmt.Println(err)
		return
	}
	got := make([]byte, size)
	news, err := there.OpenTable(1)
	fmt.Println(news, err, there.Open(0, got))
	fmt.Println(string(got))

	shared[len(shared)-1] ^= 1
	fmt.Println(there.Open(0, got))
	// Output:
	// <nil> <nil> false
	// [0] <nil> <nil>
	// nobody's business
	// block 0 of turn 1: sealed: somebody else has changed it, or the key is another
}

// What comes out is what went in, turn after turn, or an error, whatever somebody
// does to the memory who has seen all of it.
func TestNothingElseComesOut(t *testing.T) {
	const size = 2*blocks.Size + 100
	rapid.Check(t, func(t *rapid.T) {
		shared := make([]byte, sealed.Size(size))
		box, mem := newBox(t, shared, size), make([]byte, size)
		var seen [][]byte // the shared memory after each turn
		turns := rapid.IntRange(1, 4).Draw(t, "turns")
		for turn := 1; turn <= turns; turn++ {
			if i := rapid.IntRange(-1, 2).Draw(t, "block"); i >= 0 {
				rand.NewChaCha8([32]byte{byte(turn)}).Read(blocks.Of(mem, i))
				if err := box.Seal(i, blocks.Of(mem, i), uint64(turn)); err != nil {
					t.Fatal(err)
				}
			}
			if err := box.SealTable(uint64(turn)); err != nil {
				t.Fatal(err)
			}
			seen = append(seen, bytes.Clone(shared))
			if got, err := openAll(t, shared, size, uint64(turn)); err != nil || !bytes.Equal(got, mem) {
				t.Fatalf("turn %d: %v, or other bytes", turn, err)
			}
		}
		const table, slot = 3*8 + 16, blocks.Size + 16
		places := [][2]int{{0, table}, {table, table + slot}, {table + slot, table + 2*slot}, {table + 2*slot, len(shared)}}
		for range rapid.IntRange(1, 3).Draw(t, "attacks") {
			from := seen[rapid.IntRange(0, len(seen)-1).Draw(t, "old")]
			a := places[rapid.IntRange(0, 3).Draw(t, "to")]
			switch rapid.SampledFrom([]string{"flip", "roll back", "swap"}).Draw(t, "attack") {
			case "flip":
				shared[rapid.IntRange(a[0], a[1]-1).Draw(t, "at")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
			case "roll back":
				copy(shared[a[0]:a[1]], from[a[0]:a[1]])
			case "swap":
				b := places[rapid.IntRange(0, 3).Draw(t, "from")]
				copy(shared[a[0]:a[1]], from[b[0]:b[1]])
			}
		}
		if got, err := openAll(t, shared, size, uint64(turns)); err == nil && !bytes.Equal(got, mem) {
			t.Fatal("other bytes came out than went in")
		} else if err != nil && !errors.Is(err, sealed.ErrCorrupt) {
			t.Fatal(err)
		}
	})
}

// The attacks that matter, one by one: each is found out.
func TestCorrupt(t *testing.T) {
	const size = 3 * blocks.Size
	const table, slot = 3*8 + 16, blocks.Size + 16
	mem := make([]byte, size)
	rand.NewChaCha8([32]byte{1}).Read(mem)
	for name, attack := range map[string]func(shared, old []byte){
		"a block's byte":       func(shared, _ []byte) { shared[table+5] ^= 1 },
		"a block's tag":        func(shared, _ []byte) { shared[table+slot-1] ^= 1 },
		"the table's byte":     func(shared, _ []byte) { shared[0] ^= 1 },
		"the table's tag":      func(shared, _ []byte) { shared[table-1] ^= 1 },
		"an older table":       func(shared, old []byte) { copy(shared[:table], old) },
		"an older block":       func(shared, old []byte) { copy(shared[table:table+slot], old[table:]) },
		"all of an older turn": func(shared, old []byte) { copy(shared, old) },
		"two blocks swapped": func(shared, old []byte) {
			first := bytes.Clone(shared[table : table+slot])
			copy(shared[table:], shared[table+slot:table+2*slot])
			copy(shared[table+slot:], first)
		},
		"zeros": func(shared, _ []byte) { clear(shared) },
	} {
		shared := make([]byte, sealed.Size(size))
		box := newBox(t, shared, size)
		if err := sealAll(box, mem, 1); err != nil {
			t.Fatal(err)
		}
		old := bytes.Clone(shared)
		if err := sealAll(box, mem, 3); err != nil { // the same bytes, sealed anew
			t.Fatal(err)
		}
		if bytes.Equal(shared[table:], old[table:]) {
			t.Fatal("the same bytes are sealed as the same")
		}
		attack(shared, old)
		if _, err := openAll(t, shared, size, 3); !errors.Is(err, sealed.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	shared := make([]byte, sealed.Size(size))
	if err := sealAll(newBox(t, shared, size), mem, 1); err != nil {
		t.Fatal(err)
	}
	for name, other := range map[string]func() (*sealed.Box, error){
		"another key":    func() (*sealed.Box, error) { return sealed.New(shared, make([]byte, sealed.KeySize), 5, size) },
		"another buffer": func() (*sealed.Box, error) { return sealed.New(shared, key, 6, size) },
	} {
		box, err := other()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := box.OpenTable(1); !errors.Is(err, sealed.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, err := range map[string]error{
		"key":    second(sealed.New(shared, key[1:], 5, size)),
		"memory": second(sealed.New(shared[1:], key, 5, size)),
		"size":   second(sealed.New(nil, key, 5, 0)),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func second(_ *sealed.Box, err error) error { return err }
