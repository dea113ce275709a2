// SPDX-License-Identifier: Apache-2.0

package coherency

import (
	"fmt"
	"iter"
	"math/bits"
	"strings"
)

// Tier is a kind of place where bytes live. Its number is its priority: lower
// is faster (seeds/002, "Tier").
type Tier uint8

// The tiers, fastest first.
const (
	VRAM Tier = iota // a GPU's memory; volatile
	Host             // RAM of the daemon's machine; volatile
	Disk             // files; durable once fsynced

	tierCount = iota
)

var tierNames = [tierCount]string{"vram", "host", "disk"}

// Priority returns the tier's rank, 0 for the fastest.
func (t Tier) Priority() int { return int(t) }

// String returns "vram", "host" or "disk".
func (t Tier) String() string { return enumName(tierNames[:], uint8(t), "Tier") }

// MarshalText implements encoding.TextMarshaler with the names of String.
func (t Tier) MarshalText() ([]byte, error) { return marshalEnum(tierNames[:], uint8(t), "tier") }

// UnmarshalText implements encoding.TextUnmarshaler for the names of String.
func (t *Tier) UnmarshalText(text []byte) error {
	n, err := unmarshalEnum(tierNames[:], text, "tier")
	*t = Tier(n)
	return err
}

// TierMask is a set of tiers.
type TierMask uint8

// NoTiers is the empty set.
const NoTiers TierMask = 0

// MaskOf returns the set of the given tiers.
func MaskOf(tiers ...Tier) TierMask {
	var m TierMask
	for _, t := range tiers {
		m.Add(t)
	}
	return m
}

// Has reports whether t is in the set.
func (m TierMask) Has(t Tier) bool { return t < tierCount && m&(1<<t) != 0 }

// Add puts t into the set.
func (m *TierMask) Add(t Tier) { *m |= 1 << t }

// Remove takes t out of the set.
func (m *TierMask) Remove(t Tier) { *m &^= 1 << t }

// Union returns the tiers that are in m or in other.
func (m TierMask) Union(other TierMask) TierMask { return m | other }

// Intersect returns the tiers that are in both m and other.
func (m TierMask) Intersect(other TierMask) TierMask { return m & other }

// Count returns how many tiers are in the set.
func (m TierMask) Count() int { return bits.OnesCount8(uint8(m)) }

// Any reports whether the set is not empty.
func (m TierMask) Any() bool { return m != 0 }

// Fastest returns the tier with the lowest priority number; ok is false if the
// set is empty.
func (m TierMask) Fastest() (t Tier, ok bool) {
	for t := range m.All() {
		return t, true
	}
	return 0, false
}

// All yields the tiers of the set, fastest first.
func (m TierMask) All() iter.Seq[Tier] {
	return func(yield func(Tier) bool) {
		for t := VRAM; t < tierCount; t++ {
			if m.Has(t) && !yield(t) {
				return
			}
		}
	}
}

// String returns the tiers' names joined by commas, or "none".
func (m TierMask) String() string {
	if !m.Any() {
		return "none"
	}
	var names []string
	for t := range m.All() {
		names = append(names, t.String())
	}
	return strings.Join(names, ",")
}

// MarshalText implements encoding.TextMarshaler with the form of String.
func (m TierMask) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler for the form of String.
func (m *TierMask) UnmarshalText(text []byte) error {
	*m = NoTiers
	if string(text) == "none" {
		return nil
	}
	for name := range strings.SplitSeq(string(text), ",") {
		var t Tier
		if err := t.UnmarshalText([]byte(name)); err != nil {
			return err
		}
		m.Add(t)
	}
	return nil
}

// WritePolicy says which tiers must hold a version before its flush is
// answered (seeds/002, "WritePolicy"; facts C3 rows 1–3).
type WritePolicy uint8

// The policies.
const (
	WriteBack    WritePolicy = iota // the tier written to; others become stale
	WriteThrough                    // the tier written to and home
	WriteAll                        // every tier that held a copy before the write

	policyCount = iota
)

var policyNames = [policyCount]string{"write-back", "write-through", "write-all"}

// String returns "write-back", "write-through" or "write-all".
func (p WritePolicy) String() string { return enumName(policyNames[:], uint8(p), "WritePolicy") }

// MarshalText implements encoding.TextMarshaler with the names of String.
func (p WritePolicy) MarshalText() ([]byte, error) {
	return marshalEnum(policyNames[:], uint8(p), "policy")
}

// UnmarshalText implements encoding.TextUnmarshaler for the names of String.
func (p *WritePolicy) UnmarshalText(text []byte) error {
	n, err := unmarshalEnum(policyNames[:], text, "policy")
	*p = WritePolicy(n)
	return err
}

// State is the two-sided view of a block or a span: RAM against the GPU
// (seeds/002, "CoherencyState").
type State uint8

// The states.
const (
	HostOnly    State = iota // only the host has a copy
	DeviceOnly               // only the device has a copy
	Synced                   // both have the current version
	HostDirty                // the host is current, the device's copy is stale
	DeviceDirty              // the device is current, the host's copy is stale

	stateCount = iota
)

var stateNames = [stateCount]string{"host-only", "device-only", "synced", "host-dirty", "device-dirty"}

// HostIsCurrent reports whether the host has the current version.
func (s State) HostIsCurrent() bool { return s == HostOnly || s == Synced || s == HostDirty }

// DeviceIsCurrent reports whether the device has the current version.
func (s State) DeviceIsCurrent() bool { return s == DeviceOnly || s == Synced || s == DeviceDirty }

// NeedsSync reports whether one side holds a stale copy.
func (s State) NeedsSync() bool { return s == HostDirty || s == DeviceDirty }

// String returns "host-only", "device-only", "synced", "host-dirty" or
// "device-dirty".
func (s State) String() string { return enumName(stateNames[:], uint8(s), "State") }

// MarshalText implements encoding.TextMarshaler with the names of String.
func (s State) MarshalText() ([]byte, error) { return marshalEnum(stateNames[:], uint8(s), "state") }

// UnmarshalText implements encoding.TextUnmarshaler for the names of String.
func (s *State) UnmarshalText(text []byte) error {
	n, err := unmarshalEnum(stateNames[:], text, "state")
	*s = State(n)
	return err
}

func enumName(names []string, n uint8, kind string) string {
	if int(n) < len(names) {
		return names[n]
	}
	return fmt.Sprintf("%s(%d)", kind, n)
}

func marshalEnum(names []string, n uint8, kind string) ([]byte, error) {
	if int(n) >= len(names) {
		return nil, fmt.Errorf("coherency: no %s has number %d", kind, n)
	}
	return []byte(names[n]), nil
}

func unmarshalEnum(names []string, text []byte, kind string) (uint8, error) {
	for i, name := range names {
		if name == string(text) {
			return uint8(i), nil
		}
	}
	return 0, fmt.Errorf("coherency: unknown %s %q: want one of %s", kind, text, strings.Join(names, ", "))
}
