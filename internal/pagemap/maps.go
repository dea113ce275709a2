// SPDX-License-Identifier: Apache-2.0

package pagemap

import (
	"bufio"
	"bytes"
	"os"
	"strconv"
)

// private reports whether all of [start, end) is memory of this process alone
// that no file is behind: whose pages read as zeros until they are touched.
func private(start, end uint64) bool {
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return false
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		from, to, anonymous, ok := parseLine(lines.Bytes())
		if !ok {
			return false
		}
		if to <= start {
			continue
		}
		if from > start || !anonymous {
			return false
		}
		if to >= end {
			return true
		}
		start = to
	}
	return false
}

// parseLine reads a line of /proc/self/maps: "from-to perms offset device inode
// path".
func parseLine(line []byte) (from, to uint64, anonymous, ok bool) {
	fields := bytes.Fields(line)
	if len(fields) < 5 || len(fields[1]) != 4 {
		return 0, 0, false, false
	}
	first, last, _ := bytes.Cut(fields[0], []byte("-"))
	from, err := strconv.ParseUint(string(first), 16, 64)
	if err != nil {
		return 0, 0, false, false
	}
	if to, err = strconv.ParseUint(string(last), 16, 64); err != nil {
		return 0, 0, false, false
	}
	return from, to, fields[1][3] == 'p' && string(fields[4]) == "0", true
}
