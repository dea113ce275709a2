// SPDX-License-Identifier: Apache-2.0

package surface

import (
	"encoding/base64"
	"encoding/binary"
	"hash/crc32"
)

// TextOf makes a ticket's text of any bytes.
func TextOf(body []byte) string {
	body = binary.LittleEndian.AppendUint32(body[:len(body):len(body)], crc32.Checksum(body, castagnoli))
	return ticketPrefix + base64.RawURLEncoding.EncodeToString(body)
}
