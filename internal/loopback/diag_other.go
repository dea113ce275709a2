// SPDX-License-Identifier: Apache-2.0

//go:build !linux && !windows

package loopback

import "net/netip"

// A pair is the two ends of a connection as one of its sockets sees them.
type pair struct{ local, remote netip.AddrPort }

// ofSocket fails on this system.
func ofSocket(pair) (uid int, err error) { return -1, errNoDiag }
