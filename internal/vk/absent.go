// SPDX-License-Identifier: Apache-2.0

//go:build novulkan || !linux || !(amd64 || arm64)

package vk

import "fmt"

var errBuild = fmt.Errorf("%w: this build of memspan has none; build it for Linux on amd64 or arm64, without the tag novulkan", ErrAbsent)

// Devices fails in this build.
func Devices() ([]DeviceInfo, error) { return nil, errBuild }
