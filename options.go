// SPDX-License-Identifier: Apache-2.0

package memspan

import (
	"crypto/tls"
	"time"
)

// Options say how to talk to a server. The zero value, and a nil *Options, are
// ready to use.
type Options struct {
	// Token is presented over TCP and TLS to servers that want one.
	Token string
	// TLS is the base of the configuration for tls:// addresses; nil: the
	// system's roots and no client certificate. TLS 1.3 is always required.
	TLS *tls.Config
	// Tracking says how shadow buffers find what was stored to them.
	Tracking Tracking
	// NoCompression sends and receives data as it is even where compressing
	// it would gain time.
	NoCompression bool
	// IOTimeout ends a connection on which something is waited for and no
	// byte moves; 0: 30 s. A slow link that moves is not ended.
	IOTimeout time.Duration
	// ShadowPool is how many bytes of closed shadow buffers are kept for the
	// next ones; 0: 256 MiB, negative: none.
	ShadowPool int64
	// Name is how the server's log calls this client.
	Name string
}

// Defaults of Options.
const (
	defaultIOTimeout  = 30 * time.Second
	defaultShadowPool = 256 << 20
)

func (o *Options) withDefaults() Options {
	var opts Options
	if o != nil {
		opts = *o
	}
	if opts.IOTimeout == 0 {
		opts.IOTimeout = defaultIOTimeout
	}
	if opts.ShadowPool == 0 {
		opts.ShadowPool = defaultShadowPool
	}
	return opts
}

func (o *Options) check() error {
	switch {
	case o.IOTimeout < 0:
		return &Error{Code: ErrInvalid, Op: "dial", Message: "Options.IOTimeout is negative"}
	case o.Tracking > TrackCompare:
		return &Error{Code: ErrInvalid, Op: "dial", Message: "Options.Tracking must be TrackAuto, TrackPages or TrackCompare"}
	}
	return nil
}
