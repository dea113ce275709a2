// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package pull_test

const childEnv = "MEMSPAN_PULL_CHILD"

func child() {}
