// SPDX-License-Identifier: Apache-2.0

package surface_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/memspan/memspan/surface"
	"pgregory.net/rapid"
)

func drawCaveats(t *rapid.T) []surface.Caveat {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) surface.Caveat {
		if rapid.Bool().Draw(t, "range") {
			return surface.Range{
				Offset: rapid.Int64Range(0, surface.MaxSize).Draw(t, "offset"),
				Length: rapid.Int64Range(0, surface.MaxSize).Draw(t, "length"),
			}
		}
		return surface.Expiry{Time: time.UnixMilli(rapid.Int64Range(1, 1<<42).Draw(t, "ms")).UTC()}
	}), 0, 6).Draw(t, "caveats")
}

func draw32(t *rapid.T, name string) [32]byte {
	return [32]byte(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, name))
}

func drawTicket(t *rapid.T) *surface.Ticket {
	tk := &surface.Ticket{
		ID:      surface.ID(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "id")),
		Machine: surface.Machine(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "machine")),
		Secret:  draw32(t, "secret"),
		Caveats: drawCaveats(t),
	}
	for range rapid.IntRange(0, 3).Draw(t, "addresses") {
		tk.Addresses = append(tk.Addresses, rapid.StringMatching(`[a-z]{1,9}:[0-9a-f.:]{1,20}`).Draw(t, "address"))
	}
	if rapid.Bool().Draw(t, "sealed") {
		d := surface.Digest(draw32(t, "root"))
		tk.Root = &d
	}
	if rapid.Bool().Draw(t, "encrypted") {
		k := surface.Key(draw32(t, "key"))
		tk.Key = &k
	}
	if len(tk.Caveats) == 0 {
		tk.Caveats = nil
	}
	return tk
}

func TestTicketTextIsReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tk := drawTicket(t)
		text, err := tk.Text()
		if err != nil {
			t.Fatal(err)
		}
		got, err := surface.ParseTicket(" " + text + "\n")
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, tk) {
			t.Fatal("another ticket came back")
		}
	})
}

// A mistyped ticket is refused, and what is refused is not repeated.
func TestTicketFindsTypingErrors(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text, err := drawTicket(t).Text()
		if err != nil {
			t.Fatal(err)
		}
		b := []byte(text)
		i := rapid.IntRange(0, len(b)-1).Draw(t, "at")
		c := rapid.SampledFrom([]byte("ABCabc019_-")).Draw(t, "char")
		if b[i] == c {
			return
		}
		b[i] = c
		_, err = surface.ParseTicket(string(b))
		if !errors.Is(err, surface.ErrFormat) {
			t.Fatalf("error %v, want ErrFormat", err)
		}
		if strings.Contains(err.Error(), text[30:40]) {
			t.Fatalf("the error repeats the ticket: %v", err)
		}
	})
}

// What a chain of derived tickets opens is what all their caveats allow, and a proof
// is good for its own chain, nonce and connection alone.
func TestProofsFollowTheChain(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		base := &surface.Ticket{ID: surface.NewID(), Secret: draw32(t, "secret")}
		held := base // by who verifies
		derived := base
		for _, c := range drawCaveats(t) {
			next, err := derived.Derive(c)
			if err != nil {
				if !errors.Is(err, surface.ErrWiden) {
					t.Fatal(err)
				}
				continue
			}
			derived = next
			if rapid.Bool().Draw(t, "relay") {
				held = derived
			}
		}
		nonce, binding := draw32(t, "nonce"), draw32(t, "binding")
		proof := derived.Proof(nonce, binding)
		caveats := derived.EncodedCaveats()
		r, err := held.Verify(caveats, proof, nonce, binding)
		if err != nil || r != derived.Restriction() {
			t.Fatalf("verified %+v, %v; want %+v", r, err, derived.Restriction())
		}
		deny := func(what string, tk *surface.Ticket, caveats [][]byte, p surface.Proof, nonce, binding [32]byte) {
			t.Helper()
			if _, err := tk.Verify(caveats, p, nonce, binding); !errors.Is(err, surface.ErrTicket) {
				t.Fatalf("%s: error %v, want ErrTicket", what, err)
			}
		}
		other := nonce
		other[rapid.IntRange(0, 31).Draw(t, "byte")] ^= 1
		deny("another nonce", held, caveats, proof, other, binding)
		deny("another connection", held, caveats, proof, nonce, [32]byte{31: ^binding[31]})
		proof[rapid.IntRange(0, 31).Draw(t, "byte")] ^= 0x80
		deny("another proof", held, caveats, proof, nonce, binding)
		if n := len(caveats); n > 0 {
			proof := derived.Proof(nonce, binding)
			deny("a caveat left out", base, caveats[:n-1], proof, nonce, binding)
			deny("a caveat left out", base, caveats[1:], proof, nonce, binding)
			wide := append(append([][]byte{}, caveats[:n-1]...), (&surface.Ticket{Caveats: []surface.Caveat{surface.Range{Length: surface.MaxSize}}}).EncodedCaveats()[0])
			if !bytes.Equal(wide[n-1], caveats[n-1]) {
				deny("a caveat replaced", base, wide, proof, nonce, binding)
			}
		}
		if n := len(held.Caveats); n > 0 {
			// What comes after a relay's caveats is proved with its own secret, but not what they are.
			wider := append([][]byte{}, caveats...)
			wider[n-1] = (&surface.Ticket{Caveats: []surface.Caveat{surface.Range{Length: surface.MaxSize - 1}}}).EncodedCaveats()[0]
			if !bytes.Equal(wider[n-1], caveats[n-1]) {
				deny("a caveat of the relay's replaced", held, wider, derived.Proof(nonce, binding), nonce, binding)
			}
			deny("a wider ticket than the relay's", held, base.EncodedCaveats(), base.Proof(nonce, binding), nonce, binding)
		}
	})
}

func TestDeriveNeverWidens(t *testing.T) {
	base := &surface.Ticket{ID: surface.NewID()}
	at := time.UnixMilli(1_000_000)
	tk, err := base.Derive(surface.Range{Offset: 100, Length: 50}, surface.Expiry{Time: at})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []surface.Caveat{
		surface.Range{Offset: 99, Length: 10},
		surface.Range{Offset: 100, Length: 51},
		surface.Range{Offset: 149, Length: 2},
		surface.Range{Offset: 1, Length: surface.MaxSize},
		surface.Expiry{Time: at.Add(time.Millisecond)},
	} {
		if _, err := tk.Derive(c); !errors.Is(err, surface.ErrWiden) {
			t.Errorf("%+v: error %v, want ErrWiden", c, err)
		}
	}
	narrower, err := tk.Derive(surface.Range{Offset: 120, Length: 30}, surface.Expiry{Time: at.Add(-1 * time.Millisecond)})
	if err != nil {
		t.Fatal(err)
	}
	want := surface.Restriction{Range: surface.Range{Offset: 120, Length: 30}, Expires: at.Add(-1 * time.Millisecond)}
	if got := narrower.Restriction(); got != want {
		t.Errorf("restriction %+v, want %+v", got, want)
	}
}

// Whatever verb and logger are used, neither secret nor key are to be seen.
func TestSecretsDoNotShow(t *testing.T) {
	key := surface.Key(bytes.Repeat([]byte{0xab}, 32))
	tk := surface.Ticket{ID: surface.NewID(), Key: &key, Addresses: []string{"unix:/x"}}
	for i := range tk.Secret {
		tk.Secret[i] = 0xcd
	}
	text, err := tk.Text()
	if err != nil {
		t.Fatal(err)
	}
	holder := struct {
		T surface.Ticket
		P *surface.Ticket
		S surface.Secret
		K *surface.Key
	}{tk, &tk, tk.Secret, &key}
	var out bytes.Buffer
	for _, v := range []any{tk, &tk, tk.Secret, &tk.Secret, key, &key, holder, []surface.Ticket{tk}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
		slog.New(slog.NewTextHandler(&out, nil)).Info("x", "v", v)
	}
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "t", tk, "p", &tk, "s", tk.Secret, "k", key)
	secrets := []string{"cdcd", "CDCD", "abab", "ABAB", "205 205", "171 171", "0xcd", "0xab", "0xCD",
		base64.StdEncoding.EncodeToString(tk.Secret[:])[:8], text[40:60]}
	for _, s := range secrets {
		if strings.Contains(out.String(), s) {
			t.Errorf("%q is shown: %s", s, out.String())
		}
	}
}

func FuzzParseTicket(f *testing.F) {
	key, root := surface.NewKey(), surface.Digest{1}
	for _, tk := range []surface.Ticket{
		{ID: surface.NewID()},
		{ID: surface.NewID(), Addresses: []string{"unix:/run/memspan.sock", "tls://10.0.0.1:7000"}, Key: &key, Root: &root, Machine: surface.Machine{1},
			Caveats: []surface.Caveat{surface.Range{Offset: 4096, Length: 8192}, surface.Expiry{Time: time.UnixMilli(1)}}},
	} {
		text, err := tk.Text()
		if err != nil {
			f.Fatal(err)
		}
		b, _ := base64.RawURLEncoding.DecodeString(text[4:])
		f.Add(b[:len(b)-4])
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		tk, err := surface.ParseTicket(surface.TextOf(body))
		if err != nil {
			return
		}
		text, err := tk.Text()
		if err != nil {
			if errors.Is(err, surface.ErrLimit) {
				return
			}
			t.Fatalf("a ticket that was read cannot be written: %v", err)
		}
		again, err := surface.ParseTicket(text)
		if err != nil || !reflect.DeepEqual(tk, again) {
			t.Fatalf("another ticket came back: %v", err)
		}
		tk.Restriction()
		if _, err := tk.Verify(tk.EncodedCaveats(), tk.Proof([32]byte{}, [32]byte{}), [32]byte{}, [32]byte{}); err != nil {
			t.Fatalf("it does not open what it is of: %v", err)
		}
	})
}
