// SPDX-License-Identifier: Apache-2.0

package memspan

// Turns returns how many answers callers have read for themselves.
func (c *Client) Turns() uint64 {
	c.link.mu.Lock()
	defer c.link.mu.Unlock()
	return c.link.turns
}
