// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package sockopt

import (
	"errors"
	"net"
	"syscall"
	"time"
)

// A Socket is what lies under a connection; there is none to be had on this
// system.
type Socket struct{}

// Of fails on this system.
func Of(syscall.Conn) (*Socket, error) { return nil, errors.ErrUnsupported }

// SetReceiveLowWater fails on this system.
func (*Socket) SetReceiveLowWater(int) error { return errors.ErrUnsupported }

// SetCongestion fails on this system.
func (*Socket) SetCongestion(string) error { return errors.ErrUnsupported }

// SendQueue fails on this system.
func (*Socket) SendQueue() (int, error) { return 0, errors.ErrUnsupported }

// A Receiver reads a TCP connection; there is none to be had on this system.
type Receiver struct{}

// ReceiverOf fails on this system.
func ReceiverOf(syscall.Conn) (*Receiver, error) { return nil, errors.ErrUnsupported }

// Receive fails on this system.
func (*Receiver) Receive(p, after []byte, want int) (int, error) { return 0, errors.ErrUnsupported }

// Watch does nothing on this system.
func (*Receiver) Watch() {}

// AwaitReadable fails on this system.
func (*Socket) AwaitReadable(time.Duration) (bool, error) { return false, errors.ErrUnsupported }

// Shutdown fails on this system.
func (*Socket) Shutdown() error { return errors.ErrUnsupported }

// PlainOf returns c: on this system the runtime's poller knows all sockets.
func PlainOf(c net.Conn) (net.Conn, error) { return c, nil }

// Acknowledging returns c: when reads acknowledge is this system's affair.
func Acknowledging(c net.Conn) net.Conn { return c }
