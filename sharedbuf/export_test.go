// SPDX-License-Identifier: Apache-2.0

package sharedbuf

import "os"

// FailMapping has the next buffers fail to be mapped.
func FailMapping(c *Client, err error) {
	c.mmap = func(*os.File, int64) ([]byte, error) { return nil, err }
}

// BeforeMapping has f called before each of the next buffers is mapped.
func BeforeMapping(c *Client, f func()) {
	mmap := c.mmap
	c.mmap = func(file *os.File, size int64) ([]byte, error) {
		f()
		return mmap(file, size)
	}
}

// NextID makes id the next one that is tried.
func NextID(c *Client, id uint32) { c.ids.Store(id - 1) }
