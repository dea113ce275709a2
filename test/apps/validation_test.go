// SPDX-License-Identifier: Apache-2.0

//go:build linux

package apps

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
)

// A validator is the Khronos validation layer, set up by variables to write
// what it finds to a file.
type validator struct {
	variables []string
	path      string
}

var finding = regexp.MustCompile(`(?m)^((?:VUID|UNASSIGNED|BestPractices)[^( ]*)`)

// newValidator sets the layer up. Its files are where workers may write.
func newValidator(t *testing.T) *validator {
	dir, err := os.MkdirTemp("/tmp", "memspan-validation-")
	check(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	v := &validator{path: filepath.Join(dir, "found")}
	check(t, os.WriteFile(filepath.Join(dir, "vk_layer_settings.txt"), []byte(fmt.Sprintf(`
khronos_validation.debug_action = VK_DBG_LAYER_ACTION_LOG_MSG
khronos_validation.report_flags = error,warn
khronos_validation.log_filename = %s
`, v.path)), 0o644))
	v.variables = []string{"VK_INSTANCE_LAYERS=VK_LAYER_KHRONOS_validation", "VK_LAYER_SETTINGS_PATH=" + dir}
	return v
}

// found returns the kinds of mistakes that the layer has found since it was
// asked last.
func (v *validator) found(t *testing.T) (kinds []string) {
	t.Helper()
	text, err := os.ReadFile(v.path)
	if err == nil {
		check(t, os.Remove(v.path))
	}
	for _, m := range finding.FindAllStringSubmatch(string(text), -1) {
		kinds = append(kinds, m[1])
	}
	slices.Sort(kinds)
	return slices.Compact(kinds)
}

// TestValidation has the validation layer look at what the workers' drivers are
// given: it finds nothing that it does not find when the same program uses the
// driver itself. A daemon's environment says which layers its workers use.
func TestValidation(t *testing.T) {
	compute, graphics := program(t, "compute", computeShader), program(t, "graphics", graphicsShaders...)
	memory, sync := program(t, "memory"), program(t, "sync", computeShader)
	v := newValidator(t)
	d := serve(t, v.variables)
	for _, app := range [][]string{
		{compute, "misuse"}, {compute, "mapped"}, {compute, "staged"},
		{graphics, "render-pass"}, {graphics, "dynamic-rendering"}, {graphics, "linear-image"},
		{memory, "both-sides"}, {memory, "ranges"}, {memory, "parts"},
		{sync, "fences"}, {sync, "timeline"}, {sync, "semaphores"}, {sync, "events"}, {sync, "devices"},
		{program(t, "threads", computeShader), "0"}, {program(t, "transfer")},
	} {
		d.runIn(t, "", v.variables, "native", app...)
		native := v.found(t)
		if len(app) == 2 && app[1] == "misuse" && len(native) == 0 {
			t.Skip("there is no validation layer (scripts/setup test installs vulkan-validationlayers)")
		}
		for _, transport := range transports {
			d.run(t, transport, app...)
			eventually(t, "the worker has ended", func() bool { return len(children(d.cmd.Process.Pid)) == 0 })
			if found := v.found(t); !slices.Equal(found, native) {
				t.Errorf("%s: %v: the layer finds %v, natively %v", transport, app[1:], found, native)
			}
		}
	}
}
