// SPDX-License-Identifier: Apache-2.0

//go:build !race

package apps

// raceDetector is whether the tests, and so what they build, look for races.
const raceDetector = false
