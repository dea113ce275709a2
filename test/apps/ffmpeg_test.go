// SPDX-License-Identifier: Apache-2.0

//go:build linux

package apps

import (
	"cmp"
	"strings"
	"testing"
)

// TestFFmpeg has ffmpeg's Vulkan filters work on a made-up film. The sums of
// what comes out are the native driver's.
func TestFFmpeg(t *testing.T) {
	needs(t, "ffmpeg") // scripts/setup apps installs it
	d := serve(t, nil)
	for _, test := range [][2]string{
		{"gblur_vulkan"}, {"avgblur_vulkan"}, {"hflip_vulkan"}, {"vflip_vulkan"}, {"flip_vulkan"}, {"scale_vulkan=w=160:h=120"},
		{"transpose_vulkan"}, {"chromaber_vulkan=dist_x=2"}, {"libplacebo=w=500:h=400:upscaler=ewa_lanczos"},
		{"gblur_vulkan", "nv12"}, {"gblur_vulkan", "yuv420p10le"}, {"gblur_vulkan", "rgba"}, {"null", "yuv444p"}, {"null", "p010le"},
	} {
		filter, format := test[0], cmp.Or(test[1], "yuv420p")
		name, _, _ := strings.Cut(filter, "=")
		t.Run(name+"/"+format, func(t *testing.T) {
			t.Parallel()
			// A wedged driver makes ffmpeg ignore the signal that asks it to end.
			d.same(t, "timeout", "-k", "5", "60", "ffmpeg", "-hide_banner", "-loglevel", "error",
				"-init_hw_device", "vulkan=vk:0", "-filter_hw_device", "vk",
				"-f", "lavfi", "-i", "testsrc2=s=320x240:d=1:r=10",
				"-vf", "format="+format+",hwupload,"+filter+",hwdownload,format="+format, "-f", "md5", "-")
		})
	}
}
