// SPDX-License-Identifier: Apache-2.0

//go:build race

package apps

import "time"

// raceDetector is whether the tests, and so what they build, look for races.
const raceDetector = true

// slack is what a machine may add that runs all packages' tests at once, and slower.
const slack = 4 * time.Second
