// SPDX-License-Identifier: Apache-2.0

//go:build linux

package apps

import (
	"os"
	"path/filepath"
	"testing"
)

// TestZink has Mesa's zink, OpenGL by Vulkan, draw and compute without a window.
func TestZink(t *testing.T) {
	wanted(t)
	app := program(t, "gles")
	serve(t, nil).same(t, "env", "LIBGL_ALWAYS_SOFTWARE=1", "GALLIUM_DRIVER=zink", "MESA_LOADER_DRIVER_OVERRIDE=zink", app)
}

// TestGStreamer has GStreamer's Vulkan elements convert pictures, and compares
// the sums of what comes out.
func TestGStreamer(t *testing.T) {
	wanted(t)
	needs(t, "gst-launch-1.0") // scripts/setup apps installs it
	d := serve(t, nil)
	for _, format := range []string{"RGBA", "NV12", "AYUV", "YUY2"} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			d.same(t, "timeout", "-k", "5", "60", "gst-launch-1.0", "-q", "videotestsrc", "num-buffers=10",
				"!", "video/x-raw,format="+format+",width=322,height=242", "!", "vulkanupload", "!", "vulkancolorconvert",
				"!", "video/x-raw(memory:VulkanImage),format=BGRA", "!", "vulkandownload", "!", "checksumsink")
		})
	}
}

// swiftShader returns the variables that choose SwiftShader as the GPU, which
// Debian's Chromium has.
func swiftShader(t *testing.T) []string {
	t.Helper()
	const manifest = "/usr/lib/chromium/vk_swiftshader_icd.json"
	if _, err := os.Stat(manifest); err != nil {
		t.Skipf("no SwiftShader (scripts/setup apps installs chromium-common): %v", err)
	}
	return []string{"VK_DRIVER_FILES=" + manifest, "VK_ICD_FILENAMES=" + manifest}
}

// TestWebGPU has Dawn, which is in Chromium, compute and draw. It wants more
// than Mesa's software driver of Debian 12 has: the GPU is SwiftShader, which
// comes with Debian's Chromium.
func TestWebGPU(t *testing.T) {
	wanted(t)
	needs(t, "node", "npm")
	variables := swiftShader(t)
	dir := filepath.Join(built.dir, "webgpu")
	check(t, os.CopyFS(dir, os.DirFS("testdata/webgpu")))
	check(t, command("npm", "--prefix", dir, "install", "--ignore-scripts", "--no-audit", "--no-fund"))
	d := serve(t, variables)
	native := d.runIn(t, dir, variables, "native", "node", "work.mjs")
	for _, transport := range transports {
		if out := d.runIn(t, dir, nil, transport, "node", "work.mjs"); out != native {
			t.Errorf("%s:\n%s", transport, difference(native, out))
		}
	}
}
