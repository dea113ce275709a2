// SPDX-License-Identifier: Apache-2.0

package sharedbuf_test

import (
	"fmt"

	"github.com/memspan/memspan/sharedbuf"
)

// What a guest in the Windows Subsystem for Linux calls a file, and its host.
// (Buffers are shown with package host, which it takes to share them.)
func Example() {
	rules := sharedbuf.WSL()
	host, err := rules.ToHost("/mnt/c/temp/winapi_shared_buffer_1_1234")
	fmt.Println(host, err)
	_, err = rules.ToHost("/mnt/c/../d/secret")
	fmt.Println(err)
	// Output:
	// C:\temp\winapi_shared_buffer_1_1234 <nil>
	// outside: "/mnt/c/../d/secret": ".." is not allowed in a path
}
