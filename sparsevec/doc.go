// SPDX-License-Identifier: Apache-2.0

// Package sparsevec is the sparse ternary vector that seeds/002 keeps in
// coherent memory, in that document's serialisation byte for byte:
//
//	u32  number of positive dimensions
//	u32  number of negative dimensions
//	u32  each positive dimension
//	u32  each negative dimension
//
// All little-endian, with nothing after. Unlike the document's code it refuses
// what the format cannot hold instead of cutting it off, and bytes that follow
// the vector instead of passing over them (docs/origins.md, row 30).
package sparsevec
