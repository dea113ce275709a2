// SPDX-License-Identifier: Apache-2.0

//go:build race

package coherency

// raceDetector: the search runs six times slower.
const raceDetector = true
