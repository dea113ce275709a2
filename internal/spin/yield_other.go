// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package spin

import "runtime"

func yield() { runtime.Gosched() }
