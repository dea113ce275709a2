// SPDX-License-Identifier: Apache-2.0

package memspan

import (
	"github.com/memspan/memspan/coherency"
	"github.com/memspan/memspan/mapping"
	"github.com/memspan/memspan/wire"
	"github.com/memspan/memspan/wire/control"
)

// A Tier is a kind of place where bytes live.
type Tier = coherency.Tier

// The tiers, fastest first.
const (
	VRAM = coherency.VRAM // a GPU's memory; volatile
	Host = coherency.Host // RAM of the server's machine; volatile
	Disk = coherency.Disk // files; durable
)

// A TierMask is a set of tiers.
type TierMask = coherency.TierMask

// A WritePolicy says which tiers must hold a change before it is answered.
type WritePolicy = coherency.WritePolicy

// The write policies.
const (
	WriteBack    = coherency.WriteBack    // one tier
	WriteThrough = coherency.WriteThrough // the span's home too
	WriteAll     = coherency.WriteAll     // every tier that had a copy
)

// A State is the two-sided view of a span: RAM against the GPU.
type State = coherency.State

// The states.
const (
	HostOnly    = coherency.HostOnly    // only the host has a copy
	DeviceOnly  = coherency.DeviceOnly  // only the device has a copy
	Synced      = coherency.Synced      // both are current
	HostDirty   = coherency.HostDirty   // the host is current, the device's copy is stale
	DeviceDirty = coherency.DeviceDirty // the device is current, the host's copy is stale
)

// A Placement says which of a GPU's memories a span wants. Other tiers ignore
// it.
type Placement = control.Placement

// The placements.
const (
	AnyMemory   = control.AnyMemory   // device-local; host-visible too if there is such
	HostVisible = control.HostVisible // memory that the CPU can map
	DeviceLocal = control.DeviceLocal // memory nearest to the GPU
)

// A TierChoice is a tier in a [SpanConfig], or none: its zero value leaves the
// choice to the field's default.
type TierChoice struct {
	tier Tier
	made bool
}

// On chooses tier t.
func On(t Tier) TierChoice { return TierChoice{t, true} }

// or returns the chosen tier, or the default.
func (c TierChoice) or(t Tier) Tier {
	if c.made {
		return c.tier
	}
	return t
}

// A SpanConfig describes a span to be made.
type SpanConfig struct {
	// Name lets other clients open the span, and keeps it until it is freed.
	// A span without a name is freed when the last handle to it is closed.
	Name string
	// Size is in bytes; it must be positive.
	Size int64
	// Tier is where writes go, as in On(VRAM). Default: Host. What is stored
	// through a writable direct mapping is in RAM until the policy, or an
	// operation of the device, moves it.
	Tier TierChoice
	// Home is where the bytes belong: where a WriteThrough policy wants them,
	// and where they are written back to. Default: Tier.
	Home TierChoice
	// Policy says who must hold a change before it is answered. Default:
	// WriteBack.
	Policy WritePolicy
	// Placement chooses among a GPU's memories. Default: AnyMemory.
	Placement Placement
	// Unpublished spans are not found by their name, and go with their last
	// handle, until Span.Publish or Span.Replace: nobody opens a span that is
	// half written, and nothing of it stays if the writer dies.
	Unpublished bool
}

// SpanInfo is what never changes about a span, but for its Tier: see Span.Advise.
type SpanInfo = control.SpanInfo

// SpanStat describes a span at one moment.
type SpanStat = control.SpanStat

// TierStat is one tier's share of a span.
type TierStat = control.TierStat

// Stats describes the whole server.
type Stats = control.Stats

// A Budget is what a tier has taken, and what it has moved.
type Budget = control.Budget

// A SessionStat describes a client's connection to the server.
type SessionStat = control.SessionStat

// A VulkanStat describes a Vulkan application that uses the server's GPU.
type VulkanStat = control.VulkanStat

// Traffic counts what went over a connection.
type Traffic = wire.Stats

// A Range is bytes [Offset, Offset+Length) of a span.
type Range = control.Range

// A Commit is what a change of a span came to.
type Commit struct {
	Version uint64   // of the span: it counts commits
	Holders TierMask // the tiers that hold all of what the call was about
	Device  bool     // Copy and Fill: every byte was moved by the GPU's queue
}

// Tracking says how a shadow buffer finds what was stored to it.
type Tracking = mapping.Tracking

// The ways of tracking. They find the same bytes at different cost.
const (
	TrackAuto    = mapping.Auto    // TrackPages where the kernel can, otherwise TrackCompare
	TrackPages   = mapping.Pages   // ask the kernel which pages were written: Linux 6.7
	TrackCompare = mapping.Compare // compare all pages with a copy
)
