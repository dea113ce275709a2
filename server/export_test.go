// SPDX-License-Identifier: Apache-2.0

package server

import "time"

// SetGuestTime bounds the time for which a guest may have no surface open. It is to be
// called before the first connects.
func (srv *Server) SetGuestTime(d time.Duration) { srv.guestTime = d }
