// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"fmt"

	"github.com/memspan/memspan/vulkan/stream"
)

// memory carries out a message about a device memory's contents.
func (r *renderer) memory(m stream.Message) error {
	return fmt.Errorf("%w: memory messages are not carried yet", errMalformed)
}

// watches reports whether the end of a submission must be seen even if the
// application does not ask for it, because it may write mapped memory.
func (r *renderer) watches(d *device, s *submission) bool { return false }

// compare sends what a submission has written to mapped memory so far.
func (r *renderer) compare(s *submission) {}
