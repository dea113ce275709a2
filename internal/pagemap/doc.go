// SPDX-License-Identifier: Apache-2.0

// Package pagemap tells which pages of this process' memory have ever been
// touched.
package pagemap
