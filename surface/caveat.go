// SPDX-License-Identifier: Apache-2.0

package surface

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"time"
)

// A Caveat narrows what a ticket opens: a [Range] or an [Expiry].
type Caveat interface {
	append(b []byte) []byte
	check() error
}

// A Range is bytes [Offset, Offset+Length) of the content, both 0 to MaxSize. As
// a caveat it opens the chunks that have some of them, whole: a chunk is
// what can be verified.
type Range struct{ Offset, Length int64 }

// An Expiry is the time, to the millisecond, from which on a ticket opens nothing.
type Expiry struct{ Time time.Time }

// The kinds of caveats, the first byte of each.
const (
	caveatRange  = 1
	caveatExpiry = 2
)

// Limits of caveats.
const (
	maxCaveats = 32
)

func (r Range) append(b []byte) []byte {
	b = append(b, caveatRange)
	b = binary.LittleEndian.AppendUint64(b, uint64(r.Offset))
	return binary.LittleEndian.AppendUint64(b, uint64(r.Length))
}

func (r Range) check() error {
	if r.Offset < 0 || r.Length < 0 || r.Offset > MaxSize || r.Length > MaxSize {
		return fmt.Errorf("range [%d, +%d): %w", r.Offset, r.Length, ErrFormat)
	}
	return nil
}

func (e Expiry) append(b []byte) []byte {
	b = append(b, caveatExpiry)
	return binary.LittleEndian.AppendUint64(b, uint64(e.Time.UnixMilli()))
}

func (e Expiry) check() error {
	if e.Time.IsZero() || outside(e.Time) {
		return fmt.Errorf("expiry %v is not within 1970 to 9999: %w", e.Time, ErrFormat)
	}
	return nil
}

// parseCaveat reads what one caveat's append writes, and nothing else. What a
// caveat means must be known to who keeps it: an unknown kind is refused.
func parseCaveat(b []byte) (Caveat, error) {
	var c Caveat
	switch {
	case len(b) == 17 && b[0] == caveatRange:
		c = Range{int64(binary.LittleEndian.Uint64(b[1:])), int64(binary.LittleEndian.Uint64(b[9:]))}
	case len(b) == 9 && b[0] == caveatExpiry:
		ms := binary.LittleEndian.Uint64(b[1:])
		if ms > maxTime {
			return nil, fmt.Errorf("expiry in millisecond %d: %w", ms, ErrFormat)
		}
		c = Expiry{fromMillis(int64(ms))}
	default:
		return nil, fmt.Errorf("a caveat of %d bytes of an unknown kind: %w", len(b), ErrFormat)
	}
	return c, c.check()
}

// A Restriction is what caveats leave of a surface.
type Restriction struct {
	Range   Range     // of content; {0, MaxSize}: all
	Expires time.Time // zero: not by caveats
}

// restrict returns what all of the caveats allow.
func restrict(caveats []Caveat) Restriction {
	r := Restriction{Range: Range{0, MaxSize}}
	for _, c := range caveats {
		r = r.and(c)
	}
	return r
}

func (r Restriction) and(c Caveat) Restriction {
	switch c := c.(type) {
	case Range: // the sums are at most 2^63 - 1 + 1: both terms are at most 2^62
		begin := max(r.Range.Offset, c.Offset)
		end := min(uint64(r.Range.Offset)+uint64(r.Range.Length), uint64(c.Offset)+uint64(c.Length))
		r.Range = Range{begin, max(0, int64(end-min(end, uint64(begin))))}
	case Expiry:
		if r.Expires.IsZero() || c.Time.Before(r.Expires) {
			r.Expires = c.Time
		}
	}
	return r
}

// Whole reports whether the restriction leaves all bytes.
func (r Restriction) Whole() bool { return r.Range == Range{0, MaxSize} }

// widens reports whether c alone would allow what r does not.
func (r Restriction) widens(c Caveat) bool {
	switch c := c.(type) {
	case Range:
		return c.Offset < r.Range.Offset ||
			uint64(c.Offset)+uint64(c.Length) > uint64(r.Range.Offset)+uint64(r.Range.Length)
	case Expiry:
		return !r.Expires.IsZero() && c.Time.After(r.Expires)
	}
	return true
}

// Proof is what a puller sends instead of a ticket's secret: HMAC-SHA256 with
// the secret of a purpose, the server's nonce, and what binds it to the connection.
type Proof [sha256.Size]byte

const proofPurpose = "memspan surface open 1\x00"

func prove(secret Secret, nonce, binding [32]byte) Proof {
	h := hmac.New(sha256.New, secret[:])
	h.Write([]byte(proofPurpose))
	h.Write(nonce[:])
	h.Write(binding[:])
	return Proof(h.Sum(nil))
}

// chain returns the secret of a ticket that has one more caveat.
func chain(secret Secret, caveat []byte) Secret {
	h := hmac.New(sha256.New, secret[:])
	h.Write(caveat)
	return Secret(h.Sum(nil))
}

// String returns the range as in "bytes [0, 4096)".
func (r Range) String() string { return fmt.Sprintf("bytes [%d, %d)", r.Offset, r.Offset+r.Length) }

// String returns the time as in "until 2026-01-02T15:04:05.678Z".
func (e Expiry) String() string {
	return "until " + e.Time.UTC().Format("2006-01-02T15:04:05.000Z07:00")
}
