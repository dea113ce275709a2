// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"os"
	"strings"
	"testing"

	"github.com/memspan/memspan/internal/confine"
	"github.com/memspan/memspan/internal/fdpass"
	"github.com/memspan/memspan/vulkan/handover"
	"github.com/memspan/memspan/vulkan/registry"
)

// TestWorker does as a daemon does: it starts a confined worker with a shader
// cache, hands it a connection, and has it end, by either end.
func TestWorker(t *testing.T) {
	begin(t, Config{}).end() // skips without Vulkan
	for _, by := range []string{"application", "daemon"} {
		cache := t.TempDir()
		process, conn, err := confine.Start([]string{os.Args[0]}, quiet,
			handover.WorkerVariable+"="+handover.WorkerValue, handover.CacheVariable+"="+cache, "GORACE=atexit_sleep_ms=0")
		if err != nil {
			t.Fatal(err)
		}
		near, far, err := fdpass.Pair()
		if err != nil {
			t.Fatal(err)
		}
		w, err := handover.Begin(conn, handover.Start{Application: "test", Local: true}, far)
		if err != nil {
			t.Fatal(err)
		}
		far.Close()
		status, err := w.Next()
		if err != nil || !strings.Contains(status.Confined, "no_new_privs") {
			t.Errorf("status %+v, %v", status, err)
		}
		c := newClient(t, fdpass.New(near))
		if welcome := c.hello(); welcome.PID != uint32(process.PID()) {
			t.Errorf("welcomed by %d, not %d", welcome.PID, process.PID())
		}
		s := c.setUp()
		c.do(registry.VkDeviceWaitIdle, s.device)
		if by == "daemon" {
			w.End()
		} else {
			c.conn.Close()
		}
		<-process.Gone()
		if state := process.State(); state != "exit status 0" {
			t.Errorf("ended by the %s: %s: %s", by, state, process.LastWords())
		}
		c.conn.Close()
		w.Close()
	}
}
