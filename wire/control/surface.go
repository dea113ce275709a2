// SPDX-License-Identifier: Apache-2.0

package control

import "time"

// BindingLabel names the 32 bytes that both ends of a TLS connection export
// (RFC 8446, section 7.5; no context) to bind a proof to it: who relays the proof
// over another connection proves nothing.
const BindingLabel = "EXPORTER-memspan-surface"

// ExposeSource says where the bytes of a surface come from.
type ExposeSource string

// The sources.
const (
	// ExposeWritten: KindTransfer frames bring the stored bytes, in order and
	// without gaps, until OpSeal. The surface fails if the session ends before.
	ExposeWritten ExposeSource = "written"
	// ExposeMemory: one descriptor comes with the request, of a memfd that
	// nobody can write, shrink or grow any more. It is taken as it is.
	ExposeMemory ExposeSource = "memory"
	// ExposeFile: one descriptor comes with the request, of a file that the
	// server copies once.
	ExposeFile ExposeSource = "file"
	// ExposeSpan: the server copies the span that Handle names.
	ExposeSpan ExposeSource = "span"
)

// Expose makes a surface. Descriptors travel over unix sockets alone.
type Expose struct {
	Source      ExposeSource `json:"source"`
	Handle      uint64       `json:"handle,string,omitempty"` // the span of ExposeSpan
	Name        string       `json:"name,omitempty"`          // at most 255 bytes
	ContentType string       `json:"content_type,omitempty"`  // at most 255 bytes
	Size        int64        `json:"size"`                    // bytes of content; -1: not known yet, of ExposeWritten alone
	Chunk       int64        `json:"chunk,omitempty"`         // bytes of content, a power of two; 0: the server's choice
	Lifetime    int64        `json:"lifetime_ms,omitempty"`   // from now on; 0: until it is revoked
	ReadOnce    bool         `json:"read_once,omitempty"`     // for one puller, each byte once
	Encrypted   bool         `json:"encrypted,omitempty"`     // what is stored is sealed chunks, whose key the server does not get
}

// Exposed answers Expose and OpSeal. The ticket is text, as a puller needs it,
// but for the key of an encrypted surface. Until the surface is sealed, which one of
// ExposeWritten is not, it lacks the root of the manifest, so that only who
// keeps the surface can vouch for it.
type Exposed struct {
	Handle uint64 `json:"handle,string,omitempty"` // for writing and sealing; 0 if it is sealed
	ID     string `json:"id"`                      // 128 random bits in hexadecimal
	Ticket string `json:"ticket"`
	Size   int64  `json:"size"`   // bytes of content so far
	Copied int64  `json:"copied"` // bytes that the server copied, or received
	Memory int64  `json:"memory"` // bytes of RAM that it takes; holes take none
}

// SurfaceOpen opens a surface by a ticket. The proof is made of the ticket's
// secret and the Welcome's nonce: docs/surface.md, "Proof".
type SurfaceOpen struct {
	ID      string   `json:"id"`
	Caveats [][]byte `json:"caveats,omitempty"` // as the ticket has them, in its order
	Proof   []byte   `json:"proof"`
	Direct  bool     `json:"direct,omitempty"` // pass descriptors, if this surface and connection allow it
}

// SurfacePull has the server pull by a ticket, as text, whatever it takes: a
// surface of its own is opened, another's is gathered chunk by chunk, verified,
// and kept while somebody has it open. Unix sockets alone; descriptors are passed.
type SurfacePull struct {
	Ticket string   `json:"ticket"`
	From   []string `json:"from,omitempty"` // addresses of further sources
	// Decrypt has the server open what is encrypted, with the ticket's key, for this session
	// alone: no descriptors come, and KindRead frames bring the content.
	Decrypt bool `json:"decrypt,omitempty"`
}

// SurfaceOpened answers SurfaceOpen and SurfacePull. If Direct, two descriptors
// come with the frame: the memory, and the availability page. Otherwise
// KindRead frames bring the stored bytes; a read of bytes that are not there yet
// is answered WrongState.
type SurfaceOpened struct {
	Handle   uint64       `json:"handle,string"`
	Direct   bool         `json:"direct"`
	ReadOnce bool         `json:"read_once,omitempty"` // each byte is given out once: to be read in one go, by this session
	Header   []byte       `json:"header"`              // the manifest without its digests; of a surface that is not sealed size and count are what is known so far
	State    SurfaceState `json:"state"`
}

// SurfaceState says what of a surface is there.
type SurfaceState struct {
	Sequence uint32     `json:"sequence"`          // counts changes of what is below
	Sealed   bool       `json:"sealed"`            // the manifest is final
	Size     int64      `json:"size"`              // bytes of content so far; all of them if sealed
	Count    int64      `json:"count"`             // chunks so far
	Have     []ChunkRun `json:"have,omitempty"`    // those that are there, in order; at most 4096 runs
	More     bool       `json:"more,omitempty"`    // there are further runs: wait from behind the last
	Root     []byte     `json:"root,omitempty"`    // of the manifest, 32 bytes, once sealed
	Digests  []byte     `json:"digests,omitempty"` // of the first chunks of Have, if they are the first that were asked for: 32 bytes each, and not of all
}

// ChunkRun is Count consecutive chunks.
type ChunkRun struct {
	First int64 `json:"first"`
	Count int64 `json:"n"`
}

// SurfaceWait waits until the surface's sequence is another than Sequence, and
// is answered with its SurfaceState, whose runs begin at chunk From. A surface that
// has failed, or was revoked, is answered with that error.
type SurfaceWait struct {
	Handle   uint64 `json:"handle,string"`
	Sequence uint32 `json:"sequence"`
	From     int64  `json:"from,omitempty"`
}

// SurfaceDigests asks for the digests of chunks [First, First+Count), at most
// 8192 at once, all of which must be there.
type SurfaceDigests struct {
	Handle uint64 `json:"handle,string"`
	First  int64  `json:"first"`
	Count  int64  `json:"count"`
}

// Digests answers SurfaceDigests: 32 bytes a chunk.
type Digests struct {
	Digests []byte `json:"digests"`
}

// SurfaceList asks for the surfaces behind a place of the list.
type SurfaceList struct {
	After string `json:"after,omitempty"` // More of the page before
}

// Surfaces answers OpSurfaces: a page of those that have not failed, in the order of
// creation, and then of those that have. One that fails between two pages may be in
// both.
type Surfaces struct {
	Surfaces []SurfaceStat `json:"surfaces"`
	More     string        `json:"more,omitempty"` // there are more, after this
}

// SurfaceStat describes a surface now.
type SurfaceStat struct {
	ID          string    `json:"id"`
	Name        string    `json:"name,omitempty"`
	ContentType string    `json:"content_type,omitempty"`
	Size        int64     `json:"size"`   // bytes of content so far
	Chunk       int64     `json:"chunk"`  // bytes of content
	Chunks      int64     `json:"chunks"` // so far
	Have        int64     `json:"have"`   // of them: there
	Sealed      bool      `json:"sealed"`
	Replica     bool      `json:"replica,omitempty"` // gathered from another server
	ReadOnce    bool      `json:"read_once,omitempty"`
	Encrypted   bool      `json:"encrypted,omitempty"`
	Created     time.Time `json:"created"`
	Expires     time.Time `json:"expires,omitzero"` // zero: never
	Pullers     int       `json:"pullers"`          // that have it open
	Pulls       int64     `json:"pulls"`            // openings since it was made
	Direct      int64     `json:"direct"`           // of them: that got the memory itself
	Given       int64     `json:"given"`            // bytes sent in answers to reads
	Waiting     int       `json:"waiting"`          // pullers that wait for chunks: the pull pressure
	Memory      int64     `json:"memory"`           // bytes of RAM
	Error       string    `json:"error,omitempty"`  // why it failed
}

// SurfaceID names a surface of the server: 32 hexadecimal digits.
type SurfaceID struct {
	ID string `json:"id"`
}
