// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package userfault

// What <linux/userfaultfd.h> and <linux/fs.h> define and golang.org/x/sys
// does not. TestABI holds these, and the structs in ioctl_unsafe.go, against
// the C headers.
const (
	userModeOnly = 1 // UFFD_USER_MODE_ONLY

	apiVersion = 0xaa // UFFD_API

	featureHugetlbfsShmemWP = 1 << 12 // UFFD_FEATURE_WP_HUGETLBFS_SHMEM
	featureUnpopulatedWP    = 1 << 13 // UFFD_FEATURE_WP_UNPOPULATED
	featureAsyncWP          = 1 << 15 // UFFD_FEATURE_WP_ASYNC

	ioctlAPI          = 0xc018aa3f // UFFDIO_API
	ioctlRegister     = 0xc020aa00 // UFFDIO_REGISTER
	ioctlWriteProtect = 0xc018aa06 // UFFDIO_WRITEPROTECT

	registerModeWP = 1 << 1 // UFFDIO_REGISTER_MODE_WP
	writeProtectWP = 1 << 0 // UFFDIO_WRITEPROTECT_MODE_WP

	ioctlPagemapScan = 0xc0606610 // PAGEMAP_SCAN
	pageIsWritten    = 1 << 1     // PAGE_IS_WRITTEN
	scanWPMatching   = 1 << 0     // PM_SCAN_WP_MATCHING
	scanCheckWPAsync = 1 << 1     // PM_SCAN_CHECK_WPASYNC
)
