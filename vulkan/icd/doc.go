// SPDX-License-Identifier: Apache-2.0

//go:build cgo

// Package icd is the C face of memspan's Vulkan driver (an "installable client
// driver"): what the Vulkan loader finds when it opens the library, and an
// entry point for every command, which packs its arguments and hands them to
// one Go function. The entry points are generated; looking them up by name is
// done in C, as loaders and applications ask for hundreds at start-up.
//
// A program that imports it, built with -buildmode=c-shared, is a Vulkan
// driver. So that the Go runtime's own symbols stay inside, link it with
// -Wl,--version-script=vulkan/icd/exports.map.
package icd
