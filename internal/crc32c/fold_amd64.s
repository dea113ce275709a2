// SPDX-License-Identifier: Apache-2.0

#include "textflag.h"

// FOLD moves the four 128-bit numbers in acc and adds them to data in acc.
#define FOLD(acc, k, data, t) \
	VPCLMULQDQ $0x00, k, acc, t; \
	VPCLMULQDQ $0x11, k, acc, acc; \
	VPTERNLOGQ $0x96, data, t, acc

// func foldBlocks(p []byte, state uint32, factors *[3][2]uint64) uint32
TEXT ·foldBlocks(SB), NOSPLIT, $0-44
	MOVQ p_base+0(FP), SI
	MOVQ p_len+8(FP), CX
	MOVL state+24(FP), AX
	MOVQ factors+32(FP), DX

	VMOVDQU64 (SI), Z0
	VMOVDQU64 64(SI), Z1
	VMOVDQU64 128(SI), Z2
	VMOVDQU64 192(SI), Z3
	VMOVD AX, X4        // the rest of Z4 becomes zero
	VPXORQ Z4, Z0, Z0
	VBROADCASTI32X4 (DX), Z16
	ADDQ $256, SI
	SUBQ $256, CX
	JZ   registers

loop:
	VMOVDQU64 (SI), Z8
	VMOVDQU64 64(SI), Z9
	VMOVDQU64 128(SI), Z10
	VMOVDQU64 192(SI), Z11
	FOLD(Z0, Z16, Z8, Z4)
	FOLD(Z1, Z16, Z9, Z5)
	FOLD(Z2, Z16, Z10, Z6)
	FOLD(Z3, Z16, Z11, Z7)
	ADDQ $256, SI
	SUBQ $256, CX
	JNZ  loop

registers:
	VBROADCASTI32X4 16(DX), Z16
	FOLD(Z0, Z16, Z1, Z4)
	FOLD(Z0, Z16, Z2, Z4)
	FOLD(Z0, Z16, Z3, Z4)

	// The quarters of Z0, one after the other.
	VMOVDQU64 32(DX), X16
	VEXTRACTI32X4 $1, Z0, X1
	VEXTRACTI32X4 $2, Z0, X2
	VEXTRACTI32X4 $3, Z0, X3
	FOLD(X0, X16, X1, X4)
	FOLD(X0, X16, X2, X4)
	FOLD(X0, X16, X3, X4)

	// What is left is summed as a message of its own, from a register of zeros.
	VMOVQ   X0, R8
	VPEXTRQ $1, X0, R9
	VZEROUPPER
	XORL    AX, AX
	CRC32Q  R8, AX
	CRC32Q  R9, AX
	MOVL    AX, ret+40(FP)
	RET
