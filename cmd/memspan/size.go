// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"math"
	"strings"

	"github.com/dustin/go-humanize"
)

// size is a number of bytes given on the command line, like 4096, 64KiB or
// 1.5GB. It implements pflag.Value.
type size int64

// Set implements pflag.Value.
func (s *size) Set(text string) error {
	text = strings.TrimSpace(text)
	if strings.HasPrefix(text, "-") {
		return fmt.Errorf("%q is negative", text)
	}
	n, err := humanize.ParseBytes(text)
	if err != nil {
		return fmt.Errorf("%q is no size: want bytes, like 4096, 64KiB or 4GiB", text)
	}
	if n > math.MaxInt64 {
		return fmt.Errorf("%q is more than the largest size, 8EiB-1", text)
	}
	*s = size(n)
	return nil
}

// String implements pflag.Value. Zero is empty: flags without a value show no
// default.
func (s *size) String() string {
	if s == nil || *s == 0 {
		return ""
	}
	return humanSize(int64(*s))
}

// Type implements pflag.Value.
func (s *size) Type() string { return "size" }

// sizes is a list of sizes separated by commas. It implements pflag.Value.
type sizes []int64

// Set implements pflag.Value.
func (s *sizes) Set(text string) error {
	var list sizes
	for part := range strings.SplitSeq(text, ",") {
		var one size
		if err := one.Set(part); err != nil {
			return err
		}
		if one == 0 {
			return fmt.Errorf("%q: a span holds at least one byte", part)
		}
		list = append(list, int64(one))
	}
	*s = list
	return nil
}

// String implements pflag.Value.
func (s *sizes) String() string {
	var parts []string
	for _, n := range *s {
		parts = append(parts, strings.ReplaceAll(humanSize(n), " ", ""))
	}
	return strings.Join(parts, ",")
}

// Type implements pflag.Value.
func (s *sizes) Type() string { return "sizes" }

// humanSize returns n in the largest binary unit that fits, like "4.0 KiB".
// Whole numbers of a unit have no fraction.
func humanSize(n int64) string {
	if n < 0 {
		return fmt.Sprintf("%d B", n)
	}
	return strings.Replace(humanize.IBytes(uint64(n)), ".0 ", " ", 1)
}

// rate returns n bytes in seconds as "123 MB/s", in decimal megabytes.
func rate(n int64, seconds float64) string {
	mbs := megabytes(n, seconds)
	if mbs < 10 {
		return fmt.Sprintf("%.1f MB/s", mbs)
	}
	return fmt.Sprintf("%.0f MB/s", mbs)
}

func megabytes(n int64, seconds float64) float64 { return float64(n) / 1e6 / max(seconds, 1e-9) }
