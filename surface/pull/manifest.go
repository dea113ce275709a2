// SPDX-License-Identifier: Apache-2.0

package pull

import (
	"context"
	"errors"
	"fmt"

	"github.com/memspan/memspan/surface"
)

// Manifest returns the whole manifest, verified, once the surface is sealed,
// which it waits for. It is shared. A surface whose memory is mapped has none here:
// there is nothing to verify.
func (s *Surface) Manifest(ctx context.Context) (*surface.Manifest, error) {
	w := window{open: true}
	if s.direct != nil {
		return nil, s.failed("manifest of", w, fmt.Errorf("it is mapped; open it with Options.Copy: %w", errors.ErrUnsupported))
	}
	if err := s.until(ctx, func() (bool, error) { return s.rooted, s.err }); err != nil {
		return nil, s.failed("manifest of", w, err)
	}
	m := s.layout()
	return &m, nil
}
