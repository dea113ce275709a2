// SPDX-License-Identifier: Apache-2.0

//go:build race

package wire_test

// raceEnabled says whether the race detector is at work.
const raceEnabled = true
