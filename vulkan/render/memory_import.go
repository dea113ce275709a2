// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"fmt"

	"github.com/memspan/memspan/vulkan/stream"
)

func (r *renderer) importMemory(m stream.Message) error {
	return fmt.Errorf("%w: import is not carried yet", errMalformed)
}
