// SPDX-License-Identifier: Apache-2.0

package sparsevec_test

import (
	"bytes"
	"encoding"
	"errors"
	"math"
	"slices"
	"testing"

	"github.com/memspan/memspan/sparsevec"
)

var (
	_ encoding.BinaryMarshaler   = sparsevec.Vec{}
	_ encoding.BinaryAppender    = sparsevec.Vec{}
	_ encoding.BinaryUnmarshaler = (*sparsevec.Vec)(nil)
)

// golden is the vector of the document's test and the bytes that the
// document's code makes of it.
var golden = struct {
	vec   sparsevec.Vec
	bytes []byte
}{
	sparsevec.Vec{Pos: []uint64{1, 5, 10, 100}, Neg: []uint64{2, 7, 50}},
	[]byte{
		4, 0, 0, 0, 3, 0, 0, 0,
		1, 0, 0, 0, 5, 0, 0, 0, 10, 0, 0, 0, 100, 0, 0, 0,
		2, 0, 0, 0, 7, 0, 0, 0, 50, 0, 0, 0,
	},
}

// seeds/002, "test_coherent_engram_sparse_vec_roundtrip".
func TestCoherentEngramSparseVecRoundtrip(t *testing.T) {
	data, err := golden.vec.MarshalBinary()
	if err != nil || !bytes.Equal(data, golden.bytes) {
		t.Fatalf("serialised as %v, %v; want %v", data, err, golden.bytes)
	}
	if len(data) != golden.vec.Size() {
		t.Errorf("%d bytes, Size says %d", len(data), golden.vec.Size())
	}
	var back sparsevec.Vec
	if err := back.UnmarshalBinary(data); err != nil || !equal(back, golden.vec) {
		t.Errorf("read back as %v, %v", back, err)
	}
}

func equal(a, b sparsevec.Vec) bool {
	return slices.Equal(a.Pos, b.Pos) && slices.Equal(a.Neg, b.Neg)
}

func TestLimits(t *testing.T) {
	v := sparsevec.Vec{Neg: []uint64{0, math.MaxUint32}}
	data, err := v.AppendBinary([]byte("before"))
	if err != nil || string(data[:6]) != "before" {
		t.Fatalf("appended %v, %v", data, err)
	}
	var back sparsevec.Vec
	if err := back.UnmarshalBinary(data[6:]); err != nil || !equal(back, v) {
		t.Errorf("read back as %v, %v", back, err)
	}
	if err := back.UnmarshalBinary(make([]byte, 8)); err != nil || len(back.Pos)+len(back.Neg) != 0 {
		t.Errorf("an empty vector is read as %v, %v", back, err)
	}
	for _, v := range []sparsevec.Vec{
		{Pos: []uint64{1, math.MaxUint32 + 1}},
		{Neg: []uint64{math.MaxUint64}},
	} {
		if out, err := v.AppendBinary([]byte("before")); !errors.Is(err, sparsevec.ErrDimension) || string(out) != "before" {
			t.Errorf("%v serialised as %q, %v", v, out, err)
		}
	}
}

func TestRefused(t *testing.T) {
	most := bytes.Repeat([]byte{0xff}, 8)
	for _, test := range []struct {
		name string
		data []byte
		want error
	}{
		{"empty", nil, sparsevec.ErrShort},
		{"half a header", golden.bytes[:7], sparsevec.ErrShort},
		{"one byte missing", golden.bytes[:len(golden.bytes)-1], sparsevec.ErrShort},
		{"one dimension missing", golden.bytes[:len(golden.bytes)-4], sparsevec.ErrShort},
		{"one byte more", append(slices.Clone(golden.bytes), 0), sparsevec.ErrTrailing},
		{"counts that overflow 32 bits", most, sparsevec.ErrShort},
		{"counts whose sum overflows 32 bits to 0", []byte{0, 0, 0, 0x80, 0, 0, 0, 0x80}, sparsevec.ErrShort},
		{"counts whose bytes overflow 32 bits to 0", []byte{0, 0, 0, 0x40, 0, 0, 0, 0}, sparsevec.ErrShort},
	} {
		v := golden.vec
		if err := v.UnmarshalBinary(test.data); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", test.name, err, test.want)
		}
		if !equal(v, golden.vec) {
			t.Errorf("%s: the vector has become %v", test.name, v)
		}
	}
}

func FuzzUnmarshal(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(make([]byte, 8))
	f.Add(golden.bytes)
	f.Add(golden.bytes[:9])
	f.Add(append(slices.Clone(golden.bytes), 1))
	f.Add(bytes.Repeat([]byte{0xff}, 12))
	f.Fuzz(func(t *testing.T, data []byte) {
		var v sparsevec.Vec
		err := v.UnmarshalBinary(data)
		if err != nil {
			if !errors.Is(err, sparsevec.ErrShort) && !errors.Is(err, sparsevec.ErrTrailing) {
				t.Fatalf("an error of no kind: %v", err)
			}
			return
		}
		back, err := v.MarshalBinary()
		if err != nil || !bytes.Equal(back, data) {
			t.Fatalf("%v is read as %v and written as %v, %v", data, v, back, err)
		}
	})
}
