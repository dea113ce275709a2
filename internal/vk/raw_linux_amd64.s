// SPDX-License-Identifier: Apache-2.0

//go:build !novulkan

#include "textflag.h"

// struct RawCall: uint64_t proc, args[16], floats[4], result; bool float; pass[2].
#define PROC   0
#define ARGS   8
#define FLOATS 136
#define RESULT 168
#define SIZE   200

GLOBL ·rawBatchABI0(SB), NOPTR|RODATA, $8
DATA ·rawBatchABI0(SB)/8, $rawBatch<>(SB)

// rawBatch is called by C's convention: DI is the first call, SI their number.
// The frame holds ten arguments that go on the stack, then the two registers
// that the convention says to keep and the loop uses. The frame pointer is the
// assembler's business. At a call the stack is aligned to 16 bytes: the return
// address and the saved frame pointer take 16, the frame 112.
TEXT rawBatch<>(SB), NOSPLIT, $112-0
	MOVQ  BX, 80(SP)
	MOVQ  R12, 88(SP)
	MOVQ  DI, BX
	MOVQ  SI, R12

next:
	MOVQ (ARGS+6*8)(BX), R10
	MOVQ (ARGS+7*8)(BX), R11
	MOVQ R10, 0(SP)
	MOVQ R11, 8(SP)
	MOVQ (ARGS+8*8)(BX), R10
	MOVQ (ARGS+9*8)(BX), R11
	MOVQ R10, 16(SP)
	MOVQ R11, 24(SP)
	MOVQ (ARGS+10*8)(BX), R10
	MOVQ (ARGS+11*8)(BX), R11
	MOVQ R10, 32(SP)
	MOVQ R11, 40(SP)
	MOVQ (ARGS+12*8)(BX), R10
	MOVQ (ARGS+13*8)(BX), R11
	MOVQ R10, 48(SP)
	MOVQ R11, 56(SP)
	MOVQ (ARGS+14*8)(BX), R10
	MOVQ (ARGS+15*8)(BX), R11
	MOVQ R10, 64(SP)
	MOVQ R11, 72(SP)

	MOVQ (ARGS+0*8)(BX), DI
	MOVQ (ARGS+1*8)(BX), SI
	MOVQ (ARGS+2*8)(BX), DX
	MOVQ (ARGS+3*8)(BX), CX
	MOVQ (ARGS+4*8)(BX), R8
	MOVQ (ARGS+5*8)(BX), R9
	MOVQ (FLOATS+0*8)(BX), X0
	MOVQ (FLOATS+1*8)(BX), X1
	MOVQ (FLOATS+2*8)(BX), X2
	MOVQ (FLOATS+3*8)(BX), X3
	XORL AX, AX
	MOVQ PROC(BX), R10
	CALL R10

	MOVQ AX, RESULT(BX)
	ADDQ $SIZE, BX
	DECQ R12
	JNE  next

	MOVQ 80(SP), BX
	MOVQ 88(SP), R12
	RET
