// SPDX-License-Identifier: Apache-2.0

// Package userid gives Windows' users the numbers that the rest of memspan knows
// users by. Elsewhere the system has such numbers, and the package has nothing.
//
// The user of this process is what os.Getuid returns, which is -1 on Windows.
// SYSTEM, who may do anything like root, is 0. Everybody else is the last part of
// his security identifier: good for a message, and for being told from these two.
package userid
