// SPDX-License-Identifier: Apache-2.0

//go:build amd64 || arm64

#include "textflag.h"

// func Reserve()
//
// What the assembler puts before a function with a frame of that size makes the
// room. None of it is touched, unlike a variable's of Go.
TEXT ·Reserve(SB), 0, $1048576-0
	RET
