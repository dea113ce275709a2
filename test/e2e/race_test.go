// SPDX-License-Identifier: Apache-2.0

//go:build race

package e2e

// raced reports whether the race detector slows everything down.
const raced = true
