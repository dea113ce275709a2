// SPDX-License-Identifier: Apache-2.0

package surface_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/memspan/memspan/surface"
)

var update = flag.Bool("update", false, "write testdata anew")

// The JSON beside a manifest's bytes. Bytes are hexadecimal everywhere.
type manifestVector struct {
	About       string   `json:"about"`
	ID          string   `json:"id"`
	Name        string   `json:"name"`
	ContentType string   `json:"content_type"`
	Size        int64    `json:"size"`
	Chunk       int64    `json:"chunk"`
	Count       int64    `json:"count"`
	Encrypted   bool     `json:"encrypted"`
	Created     int64    `json:"created_ms"`
	Expires     int64    `json:"expires_ms"`
	Digests     []string `json:"digests"`
	HeaderSize  int      `json:"header_size"`
	StoredSize  int64    `json:"stored_size"`
	Root        string   `json:"root"`
}

type caveatVector struct {
	Kind    string `json:"kind"`
	Offset  int64  `json:"offset,omitempty"`
	Length  int64  `json:"length,omitempty"`
	Expires int64  `json:"expires_ms,omitempty"`
	Encoded string `json:"encoded"`
}

type ticketVector struct {
	About     string         `json:"about"`
	Text      string         `json:"text"`
	Addresses []string       `json:"addresses,omitempty"`
	Machine   string         `json:"machine,omitempty"`
	ID        string         `json:"id"`
	Secret    string         `json:"secret"`
	Root      string         `json:"root,omitempty"`
	Key       string         `json:"key,omitempty"`
	Caveats   []caveatVector `json:"caveats,omitempty"`
	Nonce     string         `json:"nonce"`
	Binding   string         `json:"binding"`
	Proof     string         `json:"proof"`
}

type chunkVector struct {
	About  string `json:"about"`
	Key    string `json:"key"`
	ID     string `json:"id"`
	Chunk  int64  `json:"chunk"`
	Plain  string `json:"plain"`
	Sealed string `json:"sealed"`
	Digest string `json:"digest"`
}

func counted(first byte, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = first + byte(i)
	}
	return b
}

func vectorTickets() (about []string, tickets []*surface.Ticket) {
	base := &surface.Ticket{
		Addresses: []string{"unix:/run/user/1000/memspan/memspan.sock", "tls://192.0.2.7:7411"},
		Machine:   surface.Machine(counted(0xa0, 16)), ID: surface.ID(counted(0, 16)), Secret: surface.Secret(counted(0x40, 32)),
	}
	narrow, err := base.Derive(surface.Range{Offset: 1 << 33, Length: 4096}, surface.Expiry{Time: time.UnixMilli(1893456000000).UTC()})
	if err != nil {
		panic(err)
	}
	root, key := surface.Digest(counted(0x80, 32)), surface.Key(counted(0xc0, 32))
	sealed := *base
	sealed.Root, sealed.Key = &root, &key
	return []string{"A ticket of a surface that is not sealed.", "The same with the root and the key of an encrypted surface.", "The first, narrowed to a range and then in time."},
		[]*surface.Ticket{base, &sealed, narrow}
}

func ticketVectors(t *testing.T) []ticketVector {
	var vs []ticketVector
	about, tickets := vectorTickets()
	for i, tk := range tickets {
		text, err := tk.Text()
		if err != nil {
			t.Fatal(err)
		}
		nonce, binding := [32]byte(counted(1, 32)), [32]byte(counted(33, 32))
		proof := tk.Proof(nonce, binding)
		v := ticketVector{
			About: about[i], Text: text, Addresses: tk.Addresses, Machine: hex.EncodeToString(tk.Machine[:]), ID: tk.ID.String(),
			Secret: hex.EncodeToString(tk.Secret[:]), Nonce: hex.EncodeToString(nonce[:]), Binding: hex.EncodeToString(binding[:]),
			Proof: hex.EncodeToString(proof[:]),
		}
		if tk.Root != nil {
			v.Root, v.Key = tk.Root.String(), hex.EncodeToString(tk.Key[:])
		}
		for j, c := range tk.EncodedCaveats() {
			cv := caveatVector{Encoded: hex.EncodeToString(c)}
			switch c := tk.Caveats[j].(type) {
			case surface.Range:
				cv.Kind, cv.Offset, cv.Length = "range", c.Offset, c.Length
			case surface.Expiry:
				cv.Kind, cv.Expires = "expiry", c.Time.UnixMilli()
			}
			v.Caveats = append(v.Caveats, cv)
		}
		vs = append(vs, v)
	}
	return vs
}

func vectorManifests() map[string]*surface.Manifest {
	digests := func(n int) []surface.Digest {
		ds := make([]surface.Digest, n)
		for i := range ds {
			ds[i] = surface.Sum(counted(byte(i), 7))
		}
		return ds
	}
	return map[string]*surface.Manifest{
		"empty": {ID: surface.ID(counted(0, 16)), Chunk: surface.DefaultChunk, Digests: digests(0)},
		"named": {
			ID: surface.ID(counted(0x10, 16)), Name: "größe.txt", ContentType: "text/plain; charset=utf-8", Size: 10000, Chunk: surface.MinChunk,
			Created: time.UnixMilli(1700000000123).UTC(), Expires: time.UnixMilli(1893456000000).UTC(), Digests: digests(3),
		},
		"encrypted": {ID: surface.ID(counted(0x20, 16)), Size: 5<<30 + 1, Chunk: surface.MaxChunk, Encrypted: true, Digests: digests(81)},
	}
}

func manifestVectorOf(name string, m *surface.Manifest) manifestVector {
	v := manifestVector{
		About: "The manifest of testdata/manifest-" + name + ".bin; the header is its first header_size bytes.", ID: m.ID.String(), Name: m.Name,
		ContentType: m.ContentType, Size: m.Size, Chunk: m.Chunk, Count: m.Count(), Encrypted: m.Encrypted, HeaderSize: len(m.AppendHeader(nil)),
		StoredSize: m.StoredSize(), Root: m.Root().String(), Digests: []string{},
	}
	if !m.Created.IsZero() {
		v.Created, v.Expires = m.Created.UnixMilli(), m.Expires.UnixMilli()
	}
	for _, d := range m.Digests {
		v.Digests = append(v.Digests, d.String())
	}
	return v
}

// TestVectors holds the formats to the files that other implementations are tested with.
func TestVectors(t *testing.T) {
	for name, m := range vectorManifests() {
		data, err := m.AppendBinary(nil)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, "manifest-"+name+".bin", data)
		goldenJSON(t, "manifest-"+name+".json", manifestVectorOf(name, m))
		if got, err := surface.ParseManifest(data); err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%s: read %+v, %v", name, got, err)
		}
	}
	goldenJSON(t, "tickets.json", ticketVectors(t))
	key, id := surface.Key(counted(0xc0, 32)), surface.ID(counted(0x20, 16))
	var chunks []chunkVector
	for i, plain := range [][]byte{[]byte("a short chunk"), counted(0, 64)} {
		n := int64(i) * 0x0102030405
		sealed := surface.NewSealer(key, id).Seal(nil, n, plain)
		chunks = append(chunks, chunkVector{
			About: "A chunk of an encrypted surface, as it is stored.", Key: hex.EncodeToString(key[:]), ID: id.String(), Chunk: n,
			Plain: hex.EncodeToString(plain), Sealed: hex.EncodeToString(sealed), Digest: surface.Sum(sealed).String(),
		})
	}
	goldenJSON(t, "chunks.json", chunks)
}

func goldenJSON(t *testing.T, name string, v any) {
	t.Helper()
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, name, append(text, '\n'))
}

func golden(t *testing.T, name string, want []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, want, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s differs from what is encoded: %v", path, err)
	}
}
