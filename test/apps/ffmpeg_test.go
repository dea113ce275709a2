// SPDX-License-Identifier: Apache-2.0

//go:build linux

package apps

import (
	"strings"
	"testing"
)

// TestFFmpeg has ffmpeg's Vulkan filters work on a made-up film. The sums of
// what comes out are the native driver's.
func TestFFmpeg(t *testing.T) {
	needs(t, "ffmpeg") // scripts/setup apps installs it
	d := serve(t, nil)
	for _, filter := range []string{
		"gblur_vulkan", "avgblur_vulkan", "hflip_vulkan", "scale_vulkan=w=160:h=120", "transpose_vulkan", "chromaber_vulkan=dist_x=2",
	} {
		name, _, _ := strings.Cut(filter, "_")
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// A wedged driver makes ffmpeg ignore the signal that asks it to end.
			d.same(t, "timeout", "-k", "5", "60", "ffmpeg", "-hide_banner", "-loglevel", "error",
				"-init_hw_device", "vulkan=vk:0", "-filter_hw_device", "vk",
				"-f", "lavfi", "-i", "testsrc2=s=320x240:d=1:r=10",
				"-vf", "format=yuv420p,hwupload,"+filter+",hwdownload,format=yuv420p", "-f", "md5", "-")
		})
	}
}
