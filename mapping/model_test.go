// SPDX-License-Identifier: Apache-2.0

package mapping_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/memspan/memspan/mapping"
)

// TestAgainstModel does random things to a shadow and to plain byte arrays
// that stand for what the user sees and what the server last confirmed.
func TestAgainstModel(t *testing.T) {
	errLink := errors.New("link cut")
	bothTrackings(t, func(t *testing.T, tracking mapping.Tracking) {
		p := newPool(t)
		rapid.Check(t, func(t *rapid.T) {
			const size = 4 * blockSize
			off := rapid.Int64Range(0, size-1).Draw(t, "off")
			n := rapid.Int64Range(1, size-off).Draw(t, "n")
			sh, err := mapping.NewShadow(p, off, n, blockSize, true, tracking)
			if err != nil {
				t.Fatal(err)
			}
			defer sh.Close()
			srv := make(server, size) // indexes of the span
			user, image := make([]byte, n), make([]byte, n)
			window := func(t *rapid.T) (int64, int64) { // offsets in the shadow
				at := rapid.Int64Range(0, n-1).Draw(t, "at")
				length := rapid.Int64Range(0, n-at).Draw(t, "length")
				if rapid.Bool().Draw(t, "short") {
					length = min(length, 20)
				}
				return at, at + length
			}
			paint := func(t *rapid.T, b []byte) {
				v := rapid.Byte().Draw(t, "value")
				step := rapid.SampledFrom([]int{1, 1, 2, 5, 8, 13, 4096}).Draw(t, "step")
				for i := 0; i < len(b); i += step {
					b[i] = v
					v *= 3
				}
			}

			paint(t, srv)
			for range rapid.IntRange(0, 3).Draw(t, "fills") {
				lo, hi := window(t)
				if err := sh.Fill(off+lo, hi-lo, func(dst []byte) error { copy(dst, srv[off+lo:]); return nil }); err != nil {
					t.Fatal(err)
				}
				copy(user[lo:hi], srv[off+lo:])
				copy(image[lo:hi], srv[off+lo:])
			}
			if err := sh.Arm(); err != nil {
				t.Fatal(err)
			}
			mem := sh.Bytes()
			first := slices.Clone(user)

			t.Repeat(map[string]func(*rapid.T){
				"write": func(t *rapid.T) {
					lo, hi := window(t)
					paint(t, mem[lo:hi])
					copy(user[lo:hi], mem[lo:hi])
				},
				"undo": func(t *rapid.T) { // what was there once must not pass for unchanged
					lo, hi := window(t)
					if rapid.Bool().Draw(t, "clear") {
						clear(mem[lo:hi])
					} else {
						copy(mem[lo:hi], first[lo:hi])
					}
					copy(user[lo:hi], mem[lo:hi])
				},
				"collect": func(t *rapid.T) {
					lo, hi := window(t)
					settle := rapid.SliceOfN(rapid.SampledFrom([]string{"ack", "nack", "leave", "fail"}), 5, 5).Draw(t, "settle")
					want := differences(user[lo:hi], image[lo:hi], off+lo)
					var got [][2]int64
					calls := 0
					err := sh.Collect(context.Background(), off+lo, hi-lo, func(c *mapping.Change) error {
						defer func() { calls++ }()
						data := c.Data
						for _, s := range spans([]*mapping.Change{c}) {
							got = append(got, s)
							length := s[1] - s[0]
							if !slices.Equal(data[:length], user[s[0]-off:s[1]-off]) {
								t.Fatalf("wrong bytes for %v", s)
							}
							data = data[length:]
							if settle[calls] == "ack" {
								copy(image[s[0]-off:s[1]-off], user[s[0]-off:])
							}
						}
						switch settle[calls] {
						case "ack":
							sh.Ack(c)
						case "nack":
							sh.Nack(c)
						case "fail":
							want = slices.DeleteFunc(want, func(w [2]int64) bool { return w[0] >= (c.Block+1)*blockSize })
							return errLink
						}
						return nil
					})
					if failed := calls > 0 && settle[calls-1] == "fail"; failed != errors.Is(err, errLink) || !failed && err != nil {
						t.Fatalf("Collect: %v", err)
					}
					if !slices.Equal(got, want) {
						t.Fatalf("collected %v, want %v", got, want)
					}
				},
				"merge": func(t *rapid.T) {
					lo, hi := window(t)
					paint(t, srv[off+lo:off+hi])
					remote := srv[off+lo : off+hi]
					if err := sh.Merge(off+lo, remote); err != nil {
						t.Fatal(err)
					}
					for i := lo; i < hi; i++ {
						if user[i] == image[i] {
							user[i] = srv[off+i]
						}
						image[i] = srv[off+i]
					}
				},
				"merge delta": func(t *rapid.T) {
					lo, hi := window(t)
					delta := make([]byte, hi-lo)
					paint(t, delta)
					if err := sh.MergeDelta(off+lo, delta); err != nil {
						t.Fatal(err)
					}
					for i := lo; i < hi; i++ {
						d := delta[i-lo]
						if d != 0 && user[i] == image[i] {
							user[i] ^= d
						}
						image[i] ^= d
						srv[off+i] = image[i]
					}
				},
				"": func(t *rapid.T) {
					if !slices.Equal(mem, user) {
						t.Fatalf("mapping and model differ in %v", differences(mem, user, off))
					}
				},
			})
		})
	})
}
