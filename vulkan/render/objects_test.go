// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"errors"
	"testing"

	"pgregory.net/rapid"

	"github.com/memspan/memspan/vulkan/registry"
)

func id(generation, index uint64) uint64 { return generation<<32 | index }

func TestTable(t *testing.T) {
	table := &table{limit: 4}
	device := &object{id: id(1, 0), kind: 1, real: 10}
	table.add(device)
	buffer := &object{id: id(1, 3), kind: 2, real: 20, parent: device}
	table.add(buffer)
	for name, c := range map[string]struct {
		kind registry.Index
		id   uint64
		want *object
	}{
		"there":            {2, id(1, 3), buffer},
		"another type":     {1, id(1, 3), nil},
		"older generation": {2, id(0, 3), nil},
		"later generation": {2, id(2, 3), nil},
		"empty slot":       {2, id(1, 2), nil},
		"beyond":           {2, id(1, 1<<32-1), nil},
		"null":             {2, 0, nil},
	} {
		if got := table.get(c.kind, c.id); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	for name, c := range map[string]struct {
		ids  []uint64
		want error
	}{
		"free":          {[]uint64{id(1, 1), id(9, 2)}, nil},
		"too many":      {[]uint64{id(1, 1), id(1, 2), id(1, 1)}, errObjects},
		"no generation": {[]uint64{1}, errMalformed},
		"not dense":     {[]uint64{id(1, 4)}, errMalformed},
		"taken":         {[]uint64{id(2, 3)}, errMalformed},
	} {
		if err := table.check(c.ids); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	table.drop(device)
	if table.count != 0 || table.get(2, buffer.id) != nil {
		t.Errorf("%d objects outlive their parent", table.count)
	}
}

// An object in creation is waited for, and is not there if it failed.
func TestTableWaitsForCreation(t *testing.T) {
	for _, real := range []uint64{7, 0} {
		table := &table{limit: 8}
		o := &object{id: id(1, 5), kind: 3, creating: make(chan struct{})}
		table.add(o)
		go func() {
			o.real = real
			close(o.creating)
		}()
		if got := table.get(3, o.id); (got != nil) != (real != 0) {
			t.Errorf("made as %d: %v", real, got)
		}
		if want := min(int(real), 1); table.count != want {
			t.Errorf("made as %d: %d objects, want %d", real, table.count, want)
		}
	}
}

// TestTableOwnership drops objects of a random forest and compares what is left
// with what a map of parents says.
func TestTableOwnership(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const limit = 40
		table := &table{limit: limit}
		parents := make(map[uint64]uint64)
		var ids []uint64
		generation := uint64(0)
		for range rapid.IntRange(1, 120).Draw(t, "steps") {
			if len(ids) > 0 && rapid.IntRange(0, 3).Draw(t, "drop") == 0 {
				gone := map[uint64]bool{rapid.SampledFrom(ids).Draw(t, "id"): true}
				for id := range gone {
					table.drop(table.find(id))
				}
				var left []uint64
				for _, id := range ids { // in order of creation: parents first
					if gone[id] || gone[parents[id]] {
						gone[id] = true
					} else {
						left = append(left, id)
					}
				}
				ids = left
			} else {
				index := rapid.Uint64Range(0, limit-1).Draw(t, "index")
				generation++
				o := &object{id: id(generation, index), kind: 1, real: 1}
				if len(ids) > 0 && rapid.Bool().Draw(t, "owned") {
					o.parent = table.find(rapid.SampledFrom(ids).Draw(t, "parent"))
				}
				if table.check([]uint64{o.id}) != nil {
					continue
				}
				parents[o.id] = 0
				if o.parent != nil {
					parents[o.id] = o.parent.id
				}
				table.add(o)
				ids = append(ids, o.id)
			}
			if table.count != len(ids) {
				t.Fatalf("%d objects, want %d", table.count, len(ids))
			}
			for _, id := range ids {
				if table.get(1, id) == nil {
					t.Fatalf("%#x is gone", id)
				}
			}
		}
	})
}
