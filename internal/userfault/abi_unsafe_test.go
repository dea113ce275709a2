// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package userfault

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"
)

// TestABI compiles a C program against this machine's kernel headers and
// compares every value and size that they define with this package's.
func TestABI(t *testing.T) {
	cc, err := exec.LookPath("cc")
	if err != nil {
		t.Skip("no C compiler here: the constants are not checked against the headers")
	}
	values := map[string]uint64{
		"UFFD_USER_MODE_ONLY":             userModeOnly,
		"UFFD_API":                        apiVersion,
		"UFFD_FEATURE_WP_HUGETLBFS_SHMEM": featureHugetlbfsShmemWP,
		"UFFD_FEATURE_WP_UNPOPULATED":     featureUnpopulatedWP,
		"UFFD_FEATURE_WP_ASYNC":           featureAsyncWP,
		"UFFDIO_API":                      ioctlAPI,
		"UFFDIO_REGISTER":                 ioctlRegister,
		"UFFDIO_WRITEPROTECT":             ioctlWriteProtect,
		"UFFDIO_REGISTER_MODE_WP":         registerModeWP,
		"UFFDIO_WRITEPROTECT_MODE_WP":     writeProtectWP,
		"PAGEMAP_SCAN":                    ioctlPagemapScan,
		"PAGE_IS_WRITTEN":                 pageIsWritten,
		"PM_SCAN_WP_MATCHING":             scanWPMatching,
		"PM_SCAN_CHECK_WPASYNC":           scanCheckWPAsync,
	}
	sizes := map[string]uintptr{
		"struct uffdio_api":          unsafe.Sizeof(apiArg{}),
		"struct uffdio_register":     unsafe.Sizeof(registerArg{}),
		"struct uffdio_writeprotect": unsafe.Sizeof(writeProtectArg{}),
	}
	scanSizes := map[string]uintptr{ // headers before Linux 6.7 have neither
		"struct page_region": unsafe.Sizeof(pageRegion{}),
		"struct pm_scan_arg": unsafe.Sizeof(scanArg{}),
	}
	if o := unsafe.Offsetof(scanArg{}.vec); o != 40 {
		t.Errorf("vec at offset %d of pm_scan_arg, want 40", o)
	}

	var src strings.Builder
	src.WriteString("#include <stdio.h>\n#include <linux/fs.h>\n#include <linux/userfaultfd.h>\nint main(void) {\n")
	for name := range values {
		fmt.Fprintf(&src, "#ifdef %s\nprintf(\"%s=%%llu\\n\", (unsigned long long)(%s));\n#endif\n", name, name, name)
	}
	for name := range sizes {
		fmt.Fprintf(&src, "printf(\"%s=%%zu\\n\", sizeof(%s));\n", name, name)
	}
	src.WriteString("#ifdef PAGEMAP_SCAN\n")
	for name := range scanSizes {
		fmt.Fprintf(&src, "printf(\"%s=%%zu\\n\", sizeof(%s));\n", name, name)
		sizes[name] = scanSizes[name]
	}
	src.WriteString("#endif\nreturn 0; }\n")
	for name, size := range sizes {
		values[name] = uint64(size)
	}

	dir := t.TempDir()
	file, bin := filepath.Join(dir, "abi.c"), filepath.Join(dir, "abi")
	if err := os.WriteFile(file, []byte(src.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(cc, "-o", bin, file).CombinedOutput(); err != nil {
		t.Skipf("no usable kernel headers here: %v\n%s", err, out)
	}
	out, err := exec.Command(bin).Output()
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	for s := bufio.NewScanner(strings.NewReader(string(out))); s.Scan(); checked++ {
		name, text, _ := strings.Cut(s.Text(), "=")
		if want := fmt.Sprint(values[name]); text != want {
			t.Errorf("%s is %s in the headers, %s here", name, text, want)
		}
	}
	if checked < 8 {
		t.Errorf("only %d values were compared", checked)
	}
	t.Logf("%d of %d values are in this machine's headers and agree", checked, len(values))
}
