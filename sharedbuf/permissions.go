// SPDX-License-Identifier: Apache-2.0

package sharedbuf

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"slices"
)

// AllocOptions say what is special about a buffer. The zero value is a buffer
// that this user's processes and the host's may open, and on which the host may
// do whatever it is asked for.
type AllocOptions struct {
	Permissions
	// Encrypted has what is in shared memory or in a file sealed with AES-256-GCM:
	// who can read it learns nothing but which blocks of 64 KiB change when, and
	// who changes it is found out (ErrCorrupt). Bytes is private memory then; what
	// changed is sealed when the host gets the buffer and opened when it comes
	// back. The host gets the key, which is the buffer's own, with each request:
	// over a unix socket, TLS, or loopback to a process of this user or root; over
	// anything else requests fail with ErrDenied. One request or job at a time:
	// others fail with ErrBusy. The bytes of a buffer that are sent are sealed by
	// the connection, which must be one of these.
	Encrypted bool
}

// Permissions narrow what a host does with a buffer, whoever asks it. They stand
// in the buffer's lease, or for a buffer without a name in each request, signed
// by nothing but the directory's file permissions and the connection: they keep
// guests and hosts that mean well from mistakes and guests of one host from each
// other's buffers, not a user from his own. What they forbid fails with ErrDenied.
type Permissions struct {
	// Mode are the permission bits of the file, which decide what processes may
	// do that map it themselves; 0: 0600. Buffers without a file have none.
	Mode fs.FileMode `json:"-"`
	// ReadOnly has the host map the buffer for reading alone. The descriptor of
	// a buffer without a name cannot be mapped otherwise.
	ReadOnly bool `json:"read_only,omitempty"`
	// Operations are all that may be asked for; empty: any.
	Operations []string `json:"operations,omitempty"`
	// Users are those, by number, whose processes may ask for something; empty:
	// everybody whom the host lets in. A guest in a trusted network has none.
	Users []int `json:"users,omitempty"`
}

// maxPermissions is how many bytes of JSON permissions take at most.
const maxPermissions = 4 << 10

// encode returns what stands in leases and requests: nothing if all is allowed.
func (p *Permissions) encode() ([]byte, error) {
	if p.Mode&^fs.ModePerm != 0 {
		return nil, invalidf("mode %v has more than permission bits", p.Mode)
	}
	if !p.ReadOnly && len(p.Operations) == 0 && len(p.Users) == 0 {
		return nil, nil
	}
	text, err := marshal(p)
	if err != nil {
		return nil, invalidf("permissions: %v", err)
	}
	if len(text) > maxPermissions {
		return nil, &Error{Code: ErrLimit, Message: fmt.Sprintf("permissions of %d bytes; at most %d fit", len(text), maxPermissions)}
	}
	return text, nil
}

// ParsePermissions decodes what stands in a lease or a request; of nothing it
// makes permissions that allow all. What it does not know it refuses, with
// ErrDenied: it might forbid what is asked for.
func ParsePermissions(text []byte) (*Permissions, error) {
	p := new(Permissions)
	if len(text) == 0 {
		return p, nil
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(p); err != nil || dec.More() {
		return nil, &Error{Code: ErrDenied, Message: "the buffer's permissions are not understood", Err: err}
	}
	return p, nil
}

// Permit returns nil if a user, -1 for one that is not known, may have an
// operation carried out that writes or does not, and an error with ErrDenied if
// not.
func (p *Permissions) Permit(user int, operation string, writes bool) error {
	denied := func(format string, args ...any) error {
		return &Error{Code: ErrDenied, Message: "the buffer's permissions: " + fmt.Sprintf(format, args...)}
	}
	switch {
	case len(p.Users) > 0 && user < 0:
		return denied("it is for certain users, and who asks is not known")
	case len(p.Users) > 0 && !slices.Contains(p.Users, user):
		return denied("it is not for user %d", user)
	case len(p.Operations) > 0 && !slices.Contains(p.Operations, operation):
		return denied("operation %q is not among those allowed", operation)
	case p.ReadOnly && writes:
		return denied("it is read-only, and operation %q writes", operation)
	}
	return nil
}
