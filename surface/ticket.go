// SPDX-License-Identifier: Apache-2.0

package surface

import (
	"bytes"
	"crypto/hmac"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"log/slog"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A Secret opens one surface. Like a [Key] it does not show when formatted.
type Secret [32]byte

// Format writes nothing of the secret.
func (Secret) Format(f fmt.State, _ rune) { f.Write([]byte("[secret]")) }

// LogValue shows nothing of the secret.
func (Secret) LogValue() slog.Value { return slog.StringValue("[secret]") }

// A Ticket is what a puller needs to open a surface.
//
// Formatted or logged it shows the surface's id alone; [Ticket.Text] is all of
// it, and is as good as the surface's bytes.
type Ticket struct {
	Addresses []string // where to find it, the likeliest first; as package wire/dial takes them
	Machine   Machine  // on which the unix: addresses are meant; zero: not said
	ID        ID
	Secret    Secret
	Root      *Digest  // of the manifest; nil: the surface was not sealed when the ticket was made
	Key       *Key     // of an encrypted surface
	Caveats   []Caveat // that Secret was made with, in order
}

const (
	ticketPrefix  = "mst1"
	ticketVersion = 1
	maxTicket     = 8 << 10 // bytes of text
	maxAddress    = 512
)

// The types of a ticket's fields. Who does not know one of 128 and more can do
// without it.
const (
	fieldAddress  = 1
	fieldMachine  = 2
	fieldRoot     = 3
	fieldKey      = 4
	fieldCaveat   = 5
	fieldOptional = 128
)

// fixedTicket is version, id and secret; a sum follows the fields.
const (
	fixedTicket = 1 + 16 + 32
	ticketSum   = 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Text returns the ticket as ParseTicket reads it. It fails if an address or a
// caveat is none, or the whole is more than 8 KiB.
func (t *Ticket) Text() (string, error) {
	b := append(make([]byte, 0, 512), ticketVersion)
	b = append(append(b, t.ID[:]...), t.Secret[:]...)
	field := func(kind byte, body []byte) {
		b = append(b, kind)
		b = binary.AppendUvarint(b, uint64(len(body)))
		b = append(b, body...)
	}
	for _, a := range t.Addresses {
		if err := checkAddress(a); err != nil {
			return "", fmt.Errorf("ticket of %v: %w", t.ID, err)
		}
		field(fieldAddress, []byte(a))
	}
	if t.Machine != (Machine{}) {
		field(fieldMachine, t.Machine[:])
	}
	if t.Root != nil {
		field(fieldRoot, t.Root[:])
	}
	if t.Key != nil {
		field(fieldKey, t.Key[:])
	}
	for _, c := range t.Caveats {
		if err := c.check(); err != nil {
			return "", fmt.Errorf("ticket of %v: %w", t.ID, err)
		}
		field(fieldCaveat, c.append(nil))
	}
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	text := ticketPrefix + base64.RawURLEncoding.EncodeToString(b)
	if len(text) > maxTicket || len(t.Caveats) > maxCaveats {
		return "", fmt.Errorf("ticket of %v: %d characters and %d caveats, at most %d and %d: %w",
			t.ID, len(text), len(t.Caveats), maxTicket, maxCaveats, ErrLimit)
	}
	return text, nil
}

// ParseTicket reads what Text returns. Space around it does not matter. Errors do not
// repeat the text.
func ParseTicket(text string) (*Ticket, error) {
	text = strings.TrimSpace(text)
	if len(text) > maxTicket {
		return nil, fmt.Errorf("ticket of %d characters, at most %d: %w", len(text), maxTicket, ErrLimit)
	}
	text, ok := strings.CutPrefix(text, ticketPrefix)
	if !ok || strings.ContainsAny(text, "\r\n") { // the decoder skips line ends
		return nil, fmt.Errorf("ticket does not begin with %s, or is several lines: %w", ticketPrefix, ErrFormat)
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("ticket is not base64url: %w", ErrFormat)
	}
	if len(b) < fixedTicket+ticketSum {
		return nil, fmt.Errorf("ticket is cut short: %w", ErrFormat)
	}
	b, sum := b[:len(b)-ticketSum], binary.LittleEndian.Uint32(b[len(b)-ticketSum:])
	if crc32.Checksum(b, castagnoli) != sum {
		return nil, fmt.Errorf("ticket is mistyped or cut short: its sum is wrong: %w", ErrFormat)
	}
	if b[0] != ticketVersion {
		return nil, fmt.Errorf("ticket of version %d, want %d: %w", b[0], ticketVersion, ErrFormat)
	}
	t := &Ticket{ID: ID(b[1:17]), Secret: Secret(b[17:fixedTicket])}
	for b = b[fixedTicket:]; len(b) > 0; {
		kind := b[0]
		n, w := binary.Uvarint(b[1:])
		if w <= 0 || w > 1 && b[w] == 0 || n > uint64(len(b)-1-w) {
			return nil, fmt.Errorf("ticket of %v: field %d is cut short: %w", t.ID, kind, ErrFormat)
		}
		body := b[1+w : 1+w+int(n)]
		if err := t.setField(kind, body); err != nil {
			return nil, fmt.Errorf("ticket of %v: %w", t.ID, err)
		}
		b = b[1+w+int(n):]
	}
	return t, nil
}

func (t *Ticket) setField(kind byte, body []byte) error {
	switch {
	case kind == fieldAddress:
		t.Addresses = append(t.Addresses, string(body))
		return checkAddress(string(body))
	case kind == fieldMachine && len(body) == len(t.Machine) && t.Machine == (Machine{}) && Machine(body) != (Machine{}):
		t.Machine = Machine(body)
	case kind == fieldRoot && len(body) == DigestSize && t.Root == nil:
		d := Digest(body)
		t.Root = &d
	case kind == fieldKey && len(body) == len(Key{}) && t.Key == nil:
		k := Key(body)
		t.Key = &k
	case kind == fieldCaveat && len(t.Caveats) < maxCaveats:
		c, err := parseCaveat(body)
		if err != nil {
			return err
		}
		t.Caveats = append(t.Caveats, c)
	case kind < fieldOptional:
		return fmt.Errorf("field %d of %d bytes is unknown, wrong, or there twice: %w", kind, len(body), ErrFormat)
	}
	return nil
}

func checkAddress(a string) error {
	if a == "" || len(a) > maxAddress || !utf8.ValidString(a) || strings.ContainsFunc(a, unicode.IsControl) {
		return fmt.Errorf("an address of %d bytes is empty, too long, or not text: %w", len(a), ErrFormat)
	}
	return nil
}

// String names the surface, and shows nothing that opens it.
func (t Ticket) String() string { return "ticket of surface " + t.ID.String() }

// GoString is String.
func (t Ticket) GoString() string { return t.String() }

// LogValue is String's value.
func (t Ticket) LogValue() slog.Value { return slog.StringValue(t.String()) }

// Restriction returns what the ticket's caveats leave of the surface.
func (t *Ticket) Restriction() Restriction { return restrict(t.Caveats) }

// Derive returns a ticket that opens less. It fails with ErrWiden if a caveat would
// allow more than those before it. The one it is made of cannot be found from
// it.
func (t *Ticket) Derive(caveats ...Caveat) (*Ticket, error) {
	d := *t
	d.Addresses = slices.Clone(t.Addresses)
	d.Caveats = slices.Clone(t.Caveats)
	allowed := t.Restriction()
	for _, c := range caveats {
		if err := c.check(); err != nil {
			return nil, fmt.Errorf("derive from %v: %w", t, err)
		}
		if allowed.widens(c) {
			return nil, fmt.Errorf("derive from %v: caveat %+v: %w", t, c, ErrWiden)
		}
		allowed = allowed.and(c)
		d.Secret = chain(d.Secret, c.append(nil))
		d.Caveats = append(d.Caveats, c)
	}
	if len(d.Caveats) > maxCaveats {
		return nil, fmt.Errorf("derive from %v: %d caveats, at most %d: %w", t, len(d.Caveats), maxCaveats, ErrLimit)
	}
	return &d, nil
}

// EncodedCaveats returns the caveats as Verify takes them.
func (t *Ticket) EncodedCaveats() [][]byte {
	encoded := make([][]byte, len(t.Caveats))
	for i, c := range t.Caveats {
		encoded[i] = c.append(nil)
	}
	return encoded
}

// Proof returns what opens the surface for who holds the ticket: with a nonce
// that the server chose for this connection, and the 32 bytes that bind it to the
// connection (zeros where it has none).
func (t *Ticket) Proof(nonce, binding [32]byte) Proof { return prove(t.Secret, nonce, binding) }

// Verify is the other side of Proof, of who holds this ticket, the surface's
// first one or one that was derived: caveats begin with its own, and the proof was made
// with the secret that follows from them. Otherwise it fails with ErrTicket;
// with ErrFormat or ErrLimit if caveats are none. The time it takes does not depend on
// secrets. Expiry is not checked: see [Restriction].
func (t *Ticket) Verify(caveats [][]byte, proof Proof, nonce, binding [32]byte) (Restriction, error) {
	if len(caveats) > maxCaveats {
		return Restriction{}, fmt.Errorf("%d caveats, at most %d: %w", len(caveats), maxCaveats, ErrLimit)
	}
	parsed := make([]Caveat, len(caveats))
	for i, c := range caveats {
		var err error
		if parsed[i], err = parseCaveat(c); err != nil {
			return Restriction{}, err
		}
	}
	own := t.EncodedCaveats()
	begins := len(caveats) >= len(own)
	secret := t.Secret
	for i, c := range caveats {
		if i < len(own) {
			begins = begins && bytes.Equal(c, own[i]) // caveats are no secret
			continue
		}
		secret = chain(secret, c)
	}
	want := prove(secret, nonce, binding)
	if !hmac.Equal(want[:], proof[:]) || !begins {
		return Restriction{}, ErrTicket
	}
	return restrict(parsed), nil
}
