// SPDX-License-Identifier: Apache-2.0

// Package vk calls Vulkan without cgo: libvulkan.so.1 is opened at run time
// and its functions are called by address. It carries what the VRAM tier and
// the command's doctor need, and no more: listing devices, device memory,
// buffers, and copies, fills and compute kernels on one queue.
//
// The names are Vulkan's without their prefix; what a call means and when its
// arguments are valid is said by the Vulkan specification, whose version 1.0
// the package keeps to (1.1 and 1.2 only add the device's UUID and the
// driver's name, where the device has them).
//
// A GPU driver that crashes takes its process with it, so only worker
// processes call Open and Devices.
//
// The build tag novulkan leaves out all of it but the vocabulary, and with it
// the C library: [Devices] then fails with [ErrAbsent], and there is no Open.
// The same holds on systems other than Linux on amd64 and arm64.
package vk
