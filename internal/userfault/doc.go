// SPDX-License-Identifier: Apache-2.0

// Package userfault finds the pages of mappings that were written, without
// signals and without privileges: userfaultfd's asynchronous write protection
// and the PAGEMAP_SCAN ioctl (Linux 6.7 and later, amd64 and arm64).
//
// The kernel itself clears the protection of a page at its first write and
// remembers that it did; nobody waits for anybody. Writes by the kernel on
// behalf of this process, such as read(2) into the mapping, are seen. Writes
// through another mapping of the same memory, by another process or by a
// device are not. A [Tracker] takes two descriptors for as many mappings as one
// likes. On other systems Probe says that there is no such thing.
package userfault
