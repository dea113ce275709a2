// SPDX-License-Identifier: Apache-2.0

// Package loopback tells whose process is at the other end of a TCP connection
// within this machine, as the kernel has it. What peer credentials are for unix
// sockets this is for programs that speak TCP only.
package loopback

import "errors"

// ErrUnknown: the kernel does not have the other end: it has closed its side already, or
// is not of this machine or network namespace.
var ErrUnknown = errors.New("loopback: whose connection it is cannot be told")
