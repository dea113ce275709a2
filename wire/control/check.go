// SPDX-License-Identifier: Apache-2.0

package control

// Check reads and verifies all that the server's data directory holds, while it
// is in use. Directory must be that one, by whatever path: a request about
// another is answered NotFound.
type Check struct {
	Directory string `json:"directory"` // on the server's machine
}

// Checked answers Check.
type Checked struct {
	Directory string  `json:"directory"` // by the path that the server was given
	Spans     int     `json:"spans"`     // durable ones
	Blocks    int     `json:"blocks"`    // of them that have bytes
	Bytes     int64   `json:"bytes"`     // that were read and verified
	Faults    []Fault `json:"faults"`
	More      int     `json:"more,omitempty"` // faults that the answer has no room for
}

// Fault is damage that a check has found.
type Fault struct {
	What     string `json:"what"` // is damaged
	File     string `json:"file"`
	Offset   int64  `json:"offset"`          // in the file, in bytes
	Span     string `json:"span,omitempty"`  // name or id, if one is concerned
	Block    *int   `json:"block,omitempty"` // of the span, if one is concerned
	Expected string `json:"expected,omitempty"`
	Found    string `json:"found,omitempty"`
	Repair   string `json:"repair,omitempty"` // what mends it, or what is lost
	Repaired bool   `json:"repaired"`         // that was done
}
