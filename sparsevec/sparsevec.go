// SPDX-License-Identifier: Apache-2.0

package sparsevec

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// Errors, wrapped with what was found where.
var (
	// ErrDimension: a dimension does not fit 32 bits.
	ErrDimension = errors.New("sparsevec: dimension over 32 bits")
	// ErrCount: there are more dimensions of one sign than 32 bits count.
	ErrCount = errors.New("sparsevec: too many dimensions")
	// ErrShort: the input ends before the vector does.
	ErrShort = errors.New("sparsevec: input too short")
	// ErrTrailing: the input goes on after the vector.
	ErrTrailing = errors.New("sparsevec: bytes after the vector")
)

const (
	headerSize    = 8
	dimensionSize = 4
)

// Vec is a vector whose components are +1, -1 or, nearly all of them, 0. Which
// order the dimensions have, and whether one occurs twice, is the owner's
// matter: both are kept.
type Vec struct {
	Pos []uint64 // the dimensions that are +1, each at most 1<<32-1
	Neg []uint64 // those that are -1
}

// Size returns how many bytes the serialised vector takes.
func (v Vec) Size() int { return headerSize + dimensionSize*(len(v.Pos)+len(v.Neg)) }

// MarshalBinary implements encoding.BinaryMarshaler (the document's
// from_sparse_vec). It fails with ErrDimension and with ErrCount.
func (v Vec) MarshalBinary() ([]byte, error) {
	return v.AppendBinary(make([]byte, 0, v.Size()))
}

// AppendBinary implements encoding.BinaryAppender. It fails as MarshalBinary
// does, and returns data as it was then.
func (v Vec) AppendBinary(data []byte) ([]byte, error) {
	out := data
	for _, dims := range [][]uint64{v.Pos, v.Neg} {
		if uint64(len(dims)) > math.MaxUint32 {
			return data, fmt.Errorf("%w: marshal: %d of one sign, at most %d", ErrCount, len(dims), uint32(math.MaxUint32))
		}
		out = binary.LittleEndian.AppendUint32(out, uint32(len(dims)))
	}
	for i, dims := range [][]uint64{v.Pos, v.Neg} {
		for at, d := range dims {
			if d > math.MaxUint32 {
				return data, fmt.Errorf("%w: marshal: %s dimension number %d is %d", ErrDimension, signs[i], at, d)
			}
			out = binary.LittleEndian.AppendUint32(out, uint32(d))
		}
	}
	return out, nil
}

var signs = [2]string{"positive", "negative"}

// UnmarshalBinary implements encoding.BinaryUnmarshaler (the document's
// to_sparse_vec). It fails with ErrShort and with ErrTrailing, and leaves v as
// it was then. It takes no more memory than twice the input's, whatever that
// announces.
func (v *Vec) UnmarshalBinary(data []byte) error {
	if len(data) < headerSize {
		return fmt.Errorf("%w: unmarshal: %d bytes, the counts alone take %d", ErrShort, len(data), headerSize)
	}
	pos := uint64(binary.LittleEndian.Uint32(data))
	neg := uint64(binary.LittleEndian.Uint32(data[4:]))
	size := headerSize + dimensionSize*(pos+neg) // below 1<<36
	switch have := uint64(len(data)); {
	case have < size:
		return fmt.Errorf("%w: unmarshal: %d bytes, %d positive and %d negative dimensions take %d", ErrShort, have, pos, neg, size)
	case have > size:
		return fmt.Errorf("%w: unmarshal: %d bytes, %d positive and %d negative dimensions take %d", ErrTrailing, have, pos, neg, size)
	}
	cut := headerSize + dimensionSize*int(pos)
	*v = Vec{Pos: dimensions(data[headerSize:cut]), Neg: dimensions(data[cut:])}
	return nil
}

func dimensions(data []byte) []uint64 {
	dims := make([]uint64, len(data)/dimensionSize)
	for i := range dims {
		dims[i] = uint64(binary.LittleEndian.Uint32(data[dimensionSize*i:]))
	}
	return dims
}
