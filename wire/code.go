// SPDX-License-Identifier: Apache-2.0

package wire

import "fmt"

// A Code is a reason for which a request fails. It is an error itself, so that
// errors.Is(err, wire.Conflict) holds for an [Error] of that code.
//
// In JSON a code is its name. Names and numbers are never reused.
type Code uint16

// The codes.
const (
	Internal        Code = 1 + iota // a fault of the server
	Invalid                         // an argument or a message makes no sense
	NotFound                        // no such span, handle, mapping or lock
	Exists                          // the name is taken
	OutOfRange                      // bytes beyond the end of the span or mapping
	WrongMode                       // the mapping's mode does not allow it
	NotMapped                       // unmapped already, or never mapped
	Freed                           // the span was freed
	TierAbsent                      // the server has no such tier
	Budget                          // the tier's budget does not hold it
	Limit                           // a limit of the server or of the protocol
	Unauthenticated                 // token or certificate missing or wrong
	BadVersion                      // the peer speaks another protocol version
	Conflict                        // others changed the same bytes since the flush's base
	DataLoss                        // the last copy of the current version is gone
	PeerLost                        // the connection broke
	Corrupt                         // bytes are not those that were written: changed on their way, or on disk
	Stalled                         // no progress within the i/o timeout
	Closed                          // the server is shutting down
	Unsupported                     // this server or system cannot do it
	LastCopy                        // the copy is the only one
	Pinned                          // a mapping keeps the copy in its place
	LockLost                        // the connection broke with the lock held
	NotHeld                         // the lock is not held by this session
	Canceled                        // the caller gave up
	Debt                            // committed, but the write policy is not met yet
	Busy                            // a write or a copy that is in the way is under way
	WrongState                      // the request is not legal now
	TierFailed                      // the tier takes no more changes: its disk failed
	Expired                         // the surface's or the ticket's time is over
	Revoked                         // the surface was taken back
	Taken                           // the surface was for one puller, and another came first

	codeEnd
)

// Results of the Vulkan API (VkResult) that codes map to.
const (
	vkOutOfDeviceMemory  = -2
	vkDeviceLost         = -4
	vkMemoryMapFailed    = -5
	vkFeatureNotPresent  = -8
	vkIncompatibleDriver = -9
	vkTooManyObjects     = -10
	vkUnknown            = -13
	vkValidationFailed   = -1000011001
	vkInvalidHandle      = -1000072003
	vkNotPermitted       = -1000174001
)

var codes = [codeEnd]struct {
	name, text string
	vkResult   int32
}{
	0:               {"", "unknown reason", vkUnknown},
	Internal:        {"internal", "the server failed", vkUnknown},
	Invalid:         {"invalid", "the request makes no sense", vkValidationFailed},
	NotFound:        {"not-found", "there is no such span, mapping or lock", vkInvalidHandle},
	Exists:          {"exists", "the name is taken", vkValidationFailed},
	OutOfRange:      {"out-of-range", "the range is not inside the span", vkValidationFailed},
	WrongMode:       {"wrong-mode", "the mapping's mode does not allow it", vkMemoryMapFailed},
	NotMapped:       {"not-mapped", "unmapped already, or there never was such a mapping", vkMemoryMapFailed},
	Freed:           {"freed", "the span is gone for everybody", vkInvalidHandle},
	TierAbsent:      {"tier-absent", "the server has no such tier", vkFeatureNotPresent},
	Budget:          {"budget", "the tier has no room for it", vkOutOfDeviceMemory},
	Limit:           {"limit", "the server allows no more", vkTooManyObjects},
	Unauthenticated: {"unauthenticated", "a valid token or certificate is needed", vkNotPermitted},
	BadVersion:      {"bad-version", "the peer speaks another protocol version", vkIncompatibleDriver},
	Conflict:        {"conflict", "others changed the same bytes", vkUnknown},
	DataLoss:        {"data-loss", "the last copy of the current version is gone", vkDeviceLost},
	PeerLost:        {"peer-lost", "the connection broke", vkDeviceLost},
	Corrupt:         {"corrupt", "bytes are not those that were written", vkDeviceLost},
	Stalled:         {"stalled", "no progress within the i/o timeout", vkDeviceLost},
	Closed:          {"closed", "the server is shutting down", vkDeviceLost},
	Unsupported:     {"unsupported", "this server or system cannot do it", vkFeatureNotPresent},
	LastCopy:        {"last-copy", "the copy is the only one of its version", vkUnknown},
	Pinned:          {"pinned", "a mapping keeps the copy in its place", vkUnknown},
	LockLost:        {"lock-lost", "the connection broke while the lock was held: others may have it", vkDeviceLost},
	NotHeld:         {"not-held", "this session does not have the lock", vkValidationFailed},
	Canceled:        {"canceled", "the caller gave up", vkUnknown},
	Debt:            {"debt", "committed, but the write policy is not met yet", vkUnknown},
	Busy:            {"busy", "another write or copy is under way here: try again", vkUnknown},
	WrongState:      {"wrong-state", "the request is not legal now", vkUnknown},
	TierFailed:      {"tier-failed", "the tier takes no more changes: its disk failed", vkUnknown},
	Expired:         {"expired", "its time is over", vkNotPermitted},
	Revoked:         {"revoked", "it was taken back", vkNotPermitted},
	Taken:           {"taken", "it was for one puller, and another came first", vkNotPermitted},
}

func (c Code) known() bool { return 0 < c && c < codeEnd }

// String returns the code's name, as in "out-of-range".
func (c Code) String() string {
	if !c.known() {
		return fmt.Sprintf("Code(%d)", uint16(c))
	}
	return codes[c].name
}

// text says in a few words what the code means, and not by its name, which
// stands before it.
func (c Code) text() string {
	if !c.known() {
		c = 0
	}
	return codes[c].text
}

// Error returns the code's name and what it means.
func (c Code) Error() string { return c.String() + ": " + c.text() }

// VkResult returns the result of the Vulkan API that comes nearest, always a
// negative number: what replies to Transfer, Read and Flush begin with.
func (c Code) VkResult() int32 {
	if !c.known() {
		c = 0
	}
	return codes[c].vkResult
}

// MarshalText implements encoding.TextMarshaler with the names of String.
func (c Code) MarshalText() ([]byte, error) {
	if !c.known() {
		c = Internal
	}
	return []byte(codes[c].name), nil
}

// UnmarshalText implements encoding.TextUnmarshaler for the names of String. A
// name that it does not know, as a newer peer may send it, becomes Internal.
func (c *Code) UnmarshalText(text []byte) error {
	*c = Internal
	for i := Internal; i < codeEnd; i++ {
		if codes[i].name == string(text) {
			*c = i
		}
	}
	return nil
}
