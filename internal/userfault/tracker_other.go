// SPDX-License-Identifier: Apache-2.0

//go:build !linux || !(amd64 || arm64)

package userfault

import (
	"errors"
	"fmt"
)

var errAbsent = fmt.Errorf("userfault: page tracking needs Linux 6.7 on amd64 or arm64: %w", errors.ErrUnsupported)

// A Range is bytes [Start, End) of a tracked mapping, whole pages.
type Range struct{ Start, End int }

// A Tracker cannot be made on this system.
type Tracker struct{}

// Probe says that this system has no page tracking.
func Probe() error { return errAbsent }

// New fails on this system.
func New() (*Tracker, error) { return nil, errAbsent }

// Track fails on this system.
func (t *Tracker) Track([]byte) error { return errAbsent }

// Arm fails on this system.
func (t *Tracker) Arm([]byte) error { return errAbsent }

// Disarm fails on this system.
func (t *Tracker) Disarm([]byte) error { return errAbsent }

// Collect fails on this system.
func (t *Tracker) Collect(_ []byte, _, _ int, into []Range) ([]Range, error) { return into, errAbsent }

// Close does nothing.
func (t *Tracker) Close() error { return nil }
