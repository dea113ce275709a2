// SPDX-License-Identifier: Apache-2.0

// Package control is the vocabulary of the JSON messages that clients and
// servers exchange beside the data frames of package wire: docs/protocol.md,
// "Control messages".
//
// Each request is one frame of kind KindControl whose payload is a [Request];
// the answer carries the same request id and, as its payload, the reply type
// named beside the operation, or a wire.Error where the error flag is set.
// Handles are 64-bit random numbers of one session, written as JSON strings.
package control

import (
	"encoding/json"
	"time"

	"github.com/memspan/memspan/coherency"
)

// Request is what the payload of every control request holds.
type Request struct {
	Op   Op              `json:"op"`
	Args json.RawMessage `json:"args,omitempty"`
}

// Encode returns a request as it is sent. Args may be nil.
func Encode(op Op, args any) ([]byte, error) {
	return json.Marshal(struct {
		Op   Op  `json:"op"`
		Args any `json:"args,omitempty"`
	}{op, args})
}

// Op names an operation.
type Op string

// The operations, each with the types of its arguments and of its reply.
const (
	OpAlloc      Op = "alloc"      // Alloc -> Opened
	OpOpen       Op = "open"       // Open -> Opened
	OpPublish    Op = "publish"    // Publish -> nothing
	OpClose      Op = "close"      // Handle -> nothing
	OpFree       Op = "free"       // Handle -> nothing
	OpList       Op = "list"       // List -> Listed
	OpStat       Op = "stat"       // Handle -> SpanStat
	OpStats      Op = "stats"      // nothing -> Stats
	OpMap        Op = "map"        // Map -> Mapped
	OpVersions   Op = "versions"   // Mapping -> Versions
	OpFlush      Op = "flush"      // Flush -> Committed; direct mappings only
	OpInvalidate Op = "invalidate" // Flush -> nothing; direct mappings only
	OpUnmap      Op = "unmap"      // Mapping -> Committed
	OpCopy       Op = "copy"       // Copy -> Committed
	OpFill       Op = "fill"       // Fill -> Committed
	OpUpload     Op = "upload"     // Transfer -> Committed
	OpDownload   Op = "download"   // Transfer -> Committed
	OpSync       Op = "sync"       // Sync -> Synced
	OpRelease    Op = "release"    // Handle -> nothing
	OpAccept     Op = "accept"     // Handle -> Committed
	OpAdvise     Op = "advise"     // Advise -> Advised
	OpCheck      Op = "check"      // Check -> Checked
	OpLock       Op = "lock"       // Lock -> Locked
	OpUnlock     Op = "unlock"     // Unlock -> nothing
	OpCancel     Op = "cancel"     // Cancel -> nothing
	OpVulkan     Op = "vulkan"     // Vulkan -> VulkanStarted; the first request, and the last

	OpExpose         Op = "expose"          // Expose -> Exposed
	OpSeal           Op = "seal"            // Handle -> Exposed
	OpSurfaces       Op = "surfaces"        // SurfaceList, or nothing -> Surfaces
	OpRevoke         Op = "revoke"          // SurfaceID -> nothing
	OpPull           Op = "pull"            // SurfacePull -> SurfaceOpened
	OpSurfaceOpen    Op = "surface-open"    // SurfaceOpen -> SurfaceOpened
	OpSurfaceWait    Op = "surface-wait"    // SurfaceWait -> SurfaceState
	OpSurfaceDigests Op = "surface-digests" // SurfaceDigests -> Digests
)

// Hello is the payload of the first frame of a connection, of kind KindHello.
type Hello struct {
	Protocol int    `json:"protocol"`           // wire.Version
	Token    string `json:"token,omitempty"`    // needed on TCP unless a client certificate was given
	Client   string `json:"client,omitempty"`   // for the server's log
	Compress bool   `json:"compress,omitempty"` // the client can decode compressed data and wants it
	// Guest asks for a session without a token that may do nothing but pull
	// surfaces: OpSurfaceOpen, OpSurfaceWait, OpSurfaceDigests, OpClose, OpCancel
	// and KindRead.
	Guest bool `json:"guest,omitempty"`
}

// Welcome answers Hello.
type Welcome struct {
	Protocol  int                `json:"protocol"`
	Session   uint64             `json:"session,string"`
	BlockSize int64              `json:"block_size"` // bytes
	Tiers     coherency.TierMask `json:"tiers"`      // the tiers this server has
	Direct    bool               `json:"direct"`     // mappings are passed as descriptors
	Compress  bool               `json:"compress"`   // both sides may compress data from here on
	MaxSpan   int64              `json:"max_span"`   // bytes
	MaxMap    int64              `json:"max_map"`    // bytes of one shadow mapping
	Nonce     []byte             `json:"nonce"`      // 32 bytes, which proofs of this session are made for: random over plain TCP, else zeros
}

// Placement says which of a device's memories a span wants; see
// tier.Placement.
type Placement string

// The placements.
const (
	AnyMemory   Placement = ""
	HostVisible Placement = "host-visible"
	DeviceLocal Placement = "device-local"
)

// Alloc makes a span.
type Alloc struct {
	Name      string                `json:"name,omitempty"` // without: freed with its last session
	Size      int64                 `json:"size"`           // bytes, > 0
	Tier      coherency.Tier        `json:"tier"`           // where writes go
	Home      coherency.Tier        `json:"home"`
	Policy    coherency.WritePolicy `json:"policy"`
	Placement Placement             `json:"placement,omitempty"`
	// Unpublished: the name does not find the span, which goes with its last
	// handle, until OpPublish.
	Unpublished bool `json:"unpublished,omitempty"`
}

// Publish makes a span found by the name that it was made with, in one step:
// whoever opens the name meanwhile gets the span that had it, or this one. If
// another span has the name, Replace takes it from that one, which goes with
// its last handle; without, the answer is the code Exists.
type Publish struct {
	Handle  uint64 `json:"handle,string"`
	Replace bool   `json:"replace,omitempty"`
}

// Open opens a span by name, or by id as 32 hexadecimal digits.
type Open struct {
	Name string `json:"name"`
}

// Opened answers Alloc and Open.
type Opened struct {
	Handle uint64   `json:"handle,string"`
	Span   SpanInfo `json:"span"`
}

// SpanInfo is what never changes about a span, but for its Tier.
type SpanInfo struct {
	ID        string                `json:"id"` // 128 random bits in hexadecimal
	Name      string                `json:"name,omitempty"`
	Size      int64                 `json:"size"`
	Tier      coherency.Tier        `json:"tier"` // where writes go; advice may change it
	Home      coherency.Tier        `json:"home"`
	Policy    coherency.WritePolicy `json:"policy"`
	Placement Placement             `json:"placement,omitempty"`
	Created   time.Time             `json:"created"`
}

// Handle names a span of this session.
type Handle struct {
	Handle uint64 `json:"handle,string"`
}

// Mode says what a mapping is for.
type Mode string

// The modes.
const (
	ModeRead      Mode = "read"
	ModeWrite     Mode = "write" // not filled; flushes name their ranges
	ModeReadWrite Mode = "read-write"
)

// Map maps bytes [Offset, Offset+Length) of a span.
type Map struct {
	Handle uint64 `json:"handle,string"`
	Offset int64  `json:"offset"`
	Length int64  `json:"length"`
	Mode   Mode   `json:"mode"`
	Shadow bool   `json:"shadow,omitempty"` // a shadow buffer even where direct mapping works
}

// Mapped answers Map. If Direct, exactly one descriptor comes with the frame:
// a memfd of Size bytes, byte i of which is byte i of the span. Otherwise
// Versions holds the versions of the blocks the range touches.
type Mapped struct {
	Mapping  uint64       `json:"mapping,string"`
	Direct   bool         `json:"direct"`
	Size     int64        `json:"size,omitempty"`
	Versions []VersionRun `json:"versions,omitempty"`
}

// VersionRun is Count consecutive blocks of one version. Version 0 has never
// been written: it reads as zeros.
type VersionRun struct {
	Count   int64  `json:"n"`
	Version uint64 `json:"v"`
}

// Mapping names a mapping of this session.
type Mapping struct {
	Mapping uint64 `json:"mapping,string"`
}

// Versions answers OpVersions: the blocks of the mapping's range.
type Versions struct {
	Versions []VersionRun `json:"versions"`
}

// Range is bytes [Offset, Offset+Length) of a span.
type Range struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

// Flush releases what a direct mapping's user has stored, or makes others'
// commits visible to it. No ranges: all of the mapping.
type Flush struct {
	Mapping uint64  `json:"mapping,string"`
	Ranges  []Range `json:"ranges,omitempty"`
}

// Committed answers what changes a span: the span's version afterwards and the
// tiers that hold that version of every block concerned.
type Committed struct {
	Version uint64             `json:"version"`
	Holders coherency.TierMask `json:"holders"`
	Device  bool               `json:"device,omitempty"` // Copy, Fill: done by the GPU's queue
}

// Copy copies Length bytes from one span to another, or within one.
type Copy struct {
	Handle       uint64 `json:"handle,string"` // destination
	Offset       int64  `json:"offset"`
	Source       uint64 `json:"source,string"`
	SourceOffset int64  `json:"source_offset"`
	Length       int64  `json:"length"`
}

// Fill stores Pattern, little-endian and repeated, from Offset on.
type Fill struct {
	Handle  uint64 `json:"handle,string"`
	Offset  int64  `json:"offset"`
	Length  int64  `json:"length"`
	Pattern uint32 `json:"pattern"`
}

// Transfer brings the device's or the host's copy up to date. Force lets the
// stale side win: its bytes become the new version, the other side's edits are
// dropped.
type Transfer struct {
	Handle uint64 `json:"handle,string"`
	Force  bool   `json:"force,omitempty"`
}

// Sync is a barrier over one span, or over all of them if Handle is 0.
type Sync struct {
	Handle uint64 `json:"handle,string"`
}

// Synced answers Sync.
type Synced struct {
	Epoch uint64 `json:"epoch"`
}

// Lock locks bytes [Offset, Offset+Length) of a span against other holders.
type Lock struct {
	Handle    uint64 `json:"handle,string"`
	Offset    int64  `json:"offset"`
	Length    int64  `json:"length"`
	Exclusive bool   `json:"exclusive"`
}

// Locked answers Lock. Abandoned: an exclusive holder of part of the range
// died with the lock held since it was last taken.
type Locked struct {
	Lock      uint64 `json:"lock,string"`
	Abandoned bool   `json:"abandoned,omitempty"`
}

// Unlock releases a lock.
type Unlock struct {
	Lock uint64 `json:"lock,string"`
}

// Cancel ends a control request of this connection that is still under way;
// it is answered with the code Canceled.
type Cancel struct {
	Request uint64 `json:"request"`
}

// Vulkan asks for a worker that runs a Vulkan application's commands on the
// server's GPU. It must be the session's first request, and nothing may follow
// it before the reply: after that the connection is the worker's, and carries
// frames of kind KindStream alone.
type Vulkan struct {
	Application string `json:"application,omitempty"` // for people
	PID         int    `json:"pid,omitempty"`         // of the application, on its machine
	Device      string `json:"device,omitempty"`      // offer this one only: its index, the beginning of its UUID or part of its name
}

// VulkanStarted answers Vulkan.
type VulkanStarted struct {
	Worker int `json:"worker"` // the worker's process, on the server's machine
}

// VulkanStat describes an application's worker now.
type VulkanStat struct {
	Session     uint64    `json:"session,string"`
	Application string    `json:"application,omitempty"`
	PID         int       `json:"pid,omitempty"`
	Peer        string    `json:"peer,omitempty"` // where the application is, unless on this machine
	Worker      int       `json:"worker"`
	Device      string    `json:"device,omitempty"` // the name of the GPU that it uses
	Memory      int64     `json:"memory"`           // bytes of device memory that it holds
	Objects     int       `json:"objects"`          // Vulkan handles that it holds
	Since       time.Time `json:"since"`
}

// SpanStat describes a span now.
type SpanStat struct {
	SpanInfo
	State   coherency.State     `json:"state"`
	Version uint64              `json:"version"` // commits of the span
	Blocks  int                 `json:"blocks"`
	Debt    int                 `json:"debt"`    // blocks whose home does not hold their version
	Lost    int                 `json:"lost"`    // blocks whose current version is lost
	Unclean int                 `json:"unclean"` // blocks a direct writer died on
	Tiers   map[string]TierStat `json:"tiers"`   // by tier name; tiers without a copy are missing
	Read    int64               `json:"read"`    // bytes since the daemon began, but not through direct mappings
	Written int64               `json:"written"` // the same; of direct mappings the blocks that releases found changed
	Direct  int                 `json:"direct"`  // direct mappings
	Shadow  int                 `json:"shadow"`  // shadow mappings
	Locks   int                 `json:"locks"`
	Error   string              `json:"error,omitempty"` // why debt could not be paid, last
	// Unpublished: the name does not find the span, not yet or not any more.
	Unpublished bool `json:"unpublished,omitempty"`
}

// TierStat is one tier's share of a span, in blocks but for Bytes.
type TierStat struct {
	Current int    `json:"current"` // held at their current version
	Stale   int    `json:"stale"`   // held at an older one
	Bytes   int64  `json:"bytes"`   // of both
	Lowest  uint64 `json:"lowest"`  // version of a block held here
	Highest uint64 `json:"highest"` // the same; each block counts its own, from 0: never written
	Dirty   int    `json:"dirty"`   // current here, and home has yet to be given them
	Debt    int    `json:"debt"`    // at home only: another tier has their version, home has not
	Pinned  int    `json:"pinned"`  // kept here by advice or a mapping
}

// List asks for the spans whose id is greater than After, in the order of ids.
type List struct {
	After string `json:"after,omitempty"`
}

// Listed answers List. More: there are further spans.
type Listed struct {
	Spans []SpanStat `json:"spans"`
	More  bool       `json:"more,omitempty"`
}

// Stats describes the whole server.
type Stats struct {
	Coherency coherency.Stats       `json:"coherency"` // spans
	Tiered    coherency.TieredStats `json:"tiered"`    // blocks
	Sessions  int                   `json:"sessions"`
	// SessionList are those sessions, oldest first; if there are more than
	// 1024, the newest of them.
	SessionList []SessionStat     `json:"session_list"`
	Mappings    int               `json:"mappings"`
	Budgets     map[string]Budget `json:"budgets"` // by tier name
	VRAM        *VRAM             `json:"vram,omitempty"`
	Vulkan      []VulkanStat      `json:"vulkan"` // applications, oldest first
}

// SessionStat describes one client's connection.
type SessionStat struct {
	Session   uint64    `json:"session,string"`
	Client    string    `json:"client,omitempty"` // what it calls itself
	Transport Transport `json:"transport"`
	PID       int       `json:"pid,omitempty"`  // of a process on this machine, by the kernel's word
	Peer      string    `json:"peer,omitempty"` // its address, over a network
	Since     time.Time `json:"since"`
	Handles   int       `json:"handles"`
	Mappings  int       `json:"mappings"`
	Locks     int       `json:"locks"`
	Read      int64     `json:"read"`             // bytes, but not through direct mappings
	Written   int64     `json:"written"`          // the same; of direct mappings the blocks that releases found changed
	Vulkan    bool      `json:"vulkan,omitempty"` // it was lent to a Vulkan application
}

// Transport says what carries a session.
type Transport string

// The transports.
const (
	TransportUnix Transport = "unix" // mappings are direct
	TransportTCP  Transport = "tcp"
	TransportTLS  Transport = "tls"
)

// VRAM counts what the tier of that name has done since the server started.
// Bytes to and from device memory go through memory that the CPU can map, or
// are staged: copied by the queue from and to memory that it can.
type VRAM struct {
	Mapped  int64 `json:"mapped"`  // bytes copied through mapped memory
	Staged  int64 `json:"staged"`  // bytes copied through staging memory and the queue
	Device  int64 `json:"device"`  // bytes copied or filled on the device
	Submits int64 `json:"submits"` // submissions to the queue
	Flushes int64 `json:"flushes"` // flushes and invalidations of memory that is not coherent
	Workers int64 `json:"workers"` // workers started
	Slabs   int64 `json:"slabs"`   // pieces of device memory taken now
	Slots   int64 `json:"slots"`   // blocks in them
}

// Budget is what a tier has taken, in bytes.
type Budget struct {
	Used   int64 `json:"used"`
	Budget int64 `json:"budget,omitempty"` // 0: only the machine limits it
	In     int64 `json:"in"`               // bytes written there and copied to it since the daemon began
	Out    int64 `json:"out"`              // bytes read there and copied from it
}

// Event is the payload of a KindEvent frame, sent by the server unasked.
type Event struct {
	Event   EventKind `json:"event"`
	Mapping uint64    `json:"mapping,string,omitempty"`
	Message string    `json:"message,omitempty"`
}

// EventKind names an event.
type EventKind string

// The events.
const (
	EventClosing EventKind = "closing" // the server is stopping; flush now
	EventFreed   EventKind = "freed"   // the span under Mapping was freed
)
