// SPDX-License-Identifier: Apache-2.0

package sharedbuf

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/memspan/memspan/internal/blocks"
	"github.com/memspan/memspan/internal/durable"
	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/internal/memlimit"
	"github.com/memspan/memspan/internal/sealed"
	"github.com/memspan/memspan/internal/sharedfile"
	"github.com/memspan/memspan/wire/dial"
)

// DefaultAddress returns where the host of this user listens:
// memspan-host.sock beside the daemon's socket.
func DefaultAddress() string {
	return filepath.Join(filepath.Dir(dial.DefaultAddress()), "memspan-host.sock")
}

// Options say how a client makes its buffers.
type Options struct {
	// Dir is the directory that guest and host share, as the guest names it. It
	// must exist. Empty: buffers have no name in any file system, and their
	// descriptors travel with the requests over a unix socket; over TCP their
	// bytes do, as far as they changed.
	Dir string
	// Channel sends the bytes over a unix socket, too: one that leads to another
	// machine, as ssh forwards them. It is for clients without Dir.
	Channel bool
	// Token proves who the client is to a host that is reached over TLS. It is
	// never sent otherwise.
	Token string
	// TLS is the base of the configuration for tls:// addresses; nil: the
	// system's roots and no client certificate. TLS 1.3 is always required.
	TLS *tls.Config
}

// A Client makes shared buffers and asks a host to work on them. Its methods may
// be called concurrently.
type Client struct {
	address string
	token   Secret
	tls     *tls.Config
	dir     *sharedfile.Dir // nil: buffers without a name
	channel bool            // the bytes of buffers are sent
	dirPath string
	apart   bool   // the two sides of dir do not share pages
	boot    string // of this kernel

	ids     atomic.Uint32
	helpers *blocks.Helpers                              // for the blocks of encrypted buffers
	mmap    func(f *os.File, size int64) ([]byte, error) // replaced by tests

	allocs sync.WaitGroup // under way; added to under mu while not closed

	mu      sync.Mutex
	link    *link // the newest
	buffers map[*Buffer]struct{}
	closed  bool
}

// Dial connects to the host at address:
//
//	""                             DefaultAddress()
//	unix:PATH, or a path           a unix socket of this user's or root's; a slash tells it
//	HOST:PORT, or tcp://HOST:PORT  plain TCP
//	tls://HOST:PORT                TLS 1.3, the host's certificate verified
//	tls://HOST:PORT#FINGERPRINT    TLS 1.3, the certificate known by its SHA-256
//
// ctx bounds the dialing alone. When the connection ends later, the next request dials again.
// The error is an *Error.
func Dial(ctx context.Context, address string, o Options) (*Client, error) {
	if address == "" {
		address = "unix:" + DefaultAddress()
	}
	c := &Client{
		address: address,
		token:   Secret(o.Token),
		tls:     o.TLS,
		helpers: blocks.NewHelpers(),
		buffers: make(map[*Buffer]struct{}),
		mmap:    func(f *os.File, size int64) ([]byte, error) { return sharedfile.Map(f, size, true) },
	}
	// A random start keeps clear of what other processes have left.
	c.ids.Store(rand.Uint32())
	if o.Dir != "" && o.Channel {
		return nil, &Error{Code: ErrInvalid, Op: "dial", Path: address, Message: "a shared directory, and bytes that are sent: it is one or the other"}
	}
	if o.Dir != "" {
		if err := c.openDir(o.Dir); err != nil {
			return nil, err
		}
	}
	l, err := c.dialLink(ctx)
	if err != nil {
		if c.dir != nil {
			c.dir.Close()
		}
		return nil, err
	}
	c.link = l
	c.channel = c.dir == nil && (o.Channel || l.files == nil)
	return c, nil
}

func (c *Client) openDir(path string) error {
	failed := func(err error) error {
		return &Error{Code: fileCode(err), Op: "dial", Path: path, Message: "the shared directory cannot be used", Err: err}
	}
	// Both sides know buffers by the path: it stays as the user wrote it.
	if !filepath.IsAbs(path) {
		abs, err := filepath.Abs(path)
		if err != nil {
			return failed(err)
		}
		path = abs
	}
	path = filepath.Clean(path)
	system, err := durable.FileSystemOf(path)
	if err != nil {
		return failed(err)
	}
	if c.boot, err = sharedfile.BootID(); err != nil {
		return failed(err)
	}
	if c.dir, err = sharedfile.OpenDir(path); err != nil {
		return failed(err)
	}
	c.dirPath, c.apart = path, CoherenceOf(system.Name) != PagesShared
	return nil
}

// Close frees all buffers of the client, ends what it has under way and closes
// the connection. It is idempotent.
func (c *Client) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	link := c.link
	c.mu.Unlock()
	c.allocs.Wait() // there will be no more
	c.mu.Lock()
	buffers := slices.Collect(maps.Keys(c.buffers))
	c.mu.Unlock()
	var failed []error
	for _, b := range buffers {
		failed = append(failed, b.Free())
	}
	link.close()
	if c.dir != nil {
		failed = append(failed, c.dir.Close())
	}
	return errors.Join(failed...)
}

// connected returns the link, a new one if the last has failed.
func (c *Client) connected(ctx context.Context) (*link, error) {
	for {
		c.mu.Lock()
		link, closed := c.link, c.closed
		c.mu.Unlock()
		if closed {
			return nil, &Error{Code: ErrClosed, Message: "the client was closed"}
		}
		if !link.ended(ctx) {
			return link, nil
		}
		fresh, err := c.dialLink(ctx)
		if err != nil {
			return nil, err
		}
		c.mu.Lock()
		if c.closed || c.link != link { // or somebody was faster
			c.mu.Unlock()
			fresh.close()
			continue
		}
		c.link = fresh
		c.mu.Unlock()
		<-link.done
		return fresh, nil
	}
}

// Echo has the host send text back: a round trip, and a look whether it lives.
// The text takes at most about 64 KiB.
func (c *Client) Echo(ctx context.Context, text string) (string, error) {
	input, err := marshal(text)
	if err != nil {
		return "", placed(err, "echo", c.address)
	}
	l, err := c.connected(ctx)
	if err != nil {
		return "", placed(err, "echo", c.address)
	}
	raw, err := l.call(ctx, Request{API: APIEcho, Input: input}, nil)
	if err != nil {
		return "", placed(err, "echo", c.address)
	}
	var back string
	if err := json.Unmarshal(raw, &back); err != nil {
		return "", placed(&Error{Code: ErrPeerLost, Message: "the host broke the protocol", Err: err}, "echo", c.address)
	}
	return back, nil
}

// maxTries bounds how many names are tried before all of them are said to be taken.
const maxTries = 1000

// Alloc makes a buffer of size bytes, which read as zeros. Its room is taken
// now: no store into it fails later for want of space. Its cost does not depend
// on size, where the file system can reserve room at once. The buffer is the caller's
// to Free. The error is an *Error: ErrNoSpace if there is no room.
func (c *Client) Alloc(ctx context.Context, size int64) (*Buffer, error) {
	return c.AllocWith(ctx, size, AllocOptions{})
}

// AllocWith is Alloc for a buffer that is special in some way.
func (c *Client) AllocWith(ctx context.Context, size int64, o AllocOptions) (*Buffer, error) {
	b, err := c.alloc(ctx, size, o)
	if err != nil {
		place := cmp.Or(c.dirPath, "memfd")
		if c.channel {
			place = "memory"
		}
		return nil, placed(err, fmt.Sprintf("alloc %d bytes in", size), place)
	}
	return b, nil
}

func (c *Client) alloc(ctx context.Context, size int64, o AllocOptions) (*Buffer, error) {
	if size <= 0 {
		return nil, invalidf("a buffer has at least one byte")
	}
	terms, err := o.Permissions.encode()
	if err != nil {
		return nil, err
	}
	if o.Mode != 0 && c.dir == nil {
		return nil, invalidf("mode %v: a buffer without a file has none", o.Mode)
	}
	if ctx.Err() != nil {
		return nil, &Error{Code: ErrCanceled, Err: context.Cause(ctx)}
	}
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, &Error{Code: ErrClosed, Message: "the client was closed"}
	}
	c.allocs.Add(1)
	c.mu.Unlock()
	defer c.allocs.Done()
	b := &Buffer{client: c, size: size, options: o, terms: terms}
	b.ctx, b.cancel = context.WithCancelCause(context.Background())
	switch {
	case c.channel:
		err = b.createChannel()
	case c.dir == nil:
		err = b.createNameless(ctx)
	default:
		err = b.createNamed(ctx)
	}
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.buffers[b] = struct{}{}
	return b, nil
}

func (b *Buffer) createNameless(ctx context.Context) error {
	b.id = b.client.ids.Add(1)
	b.path = fmt.Sprintf("%s%d", MemfdPrefix, b.id)
	if err := inRAM(b.sharedSize()); err != nil {
		return err
	}
	region, err := memfd.Create(b.path, b.sharedSize())
	if err != nil {
		return &Error{Code: fileCode(err), Message: "no memory could be made", Err: err}
	}
	b.region, b.file = region, region.File()
	err = b.mapAndReserve(ctx, true, region.Allocate)
	if err == nil && b.options.ReadOnly {
		if b.lent, err = region.Reopen(false); err != nil {
			err = &Error{Code: fileCode(err), Message: "no read-only descriptor can be made", Err: err}
		}
	}
	if err != nil {
		return errors.Join(err, b.remove())
	}
	return nil
}

// inRAM refuses what would take more RAM than there is.
func inRAM(size int64) error {
	if room := memlimit.System().Usable(); room > 0 && size > room {
		return &Error{Code: ErrNoSpace, Message: fmt.Sprintf("RAM has room for %d bytes only", room)}
	}
	return nil
}

// mapAndReserve maps a file that has its size and takes all of its memory: large
// pages first where it is in RAM, and what is missing by reserve.
func (b *Buffer) mapAndReserve(ctx context.Context, volatile bool, reserve func(off, n int64) error) (err error) {
	if b.shared, err = b.client.mmap(b.file, b.sharedSize()); err == nil {
		if volatile {
			b.enlarge(ctx)
		}
		for off := int64(0); off < b.sharedSize() && err == nil; off += reservedAtOnce {
			if ctx.Err() != nil {
				return &Error{Code: ErrCanceled, Err: context.Cause(ctx)}
			}
			err = reserve(off, min(reservedAtOnce, b.sharedSize()-off))
		}
	}
	b.mem = b.shared
	if err == nil && b.options.Encrypted {
		b.mem = nil
		if b.vault, err = newVault(b.shared, b.id, b.size, b.client.helpers); err == nil {
			b.mem = b.vault.mem
		}
	}
	if err != nil {
		return &Error{Code: fileCode(err), Message: "there is no room for it, or it cannot be mapped", Err: err}
	}
	return nil
}

// How many bytes are taken from the system between two looks whether they are still
// wanted. Large pages take longer where free memory is in pieces: they are gathered.
const (
	reservedAtOnce = 256 << 20
	enlargedAtOnce = 64 << 20
)

// enlarge has the buffer's memory consist of large pages, as far as there are some.
func (b *Buffer) enlarge(ctx context.Context) {
	for off := 0; off < len(b.shared) && ctx.Err() == nil; off += enlargedAtOnce {
		sharedfile.Enlarge(b.file, int64(off), b.shared[off:min(off+enlargedAtOnce, len(b.shared))])
	}
}

// sharedSize returns how many bytes of shared memory the buffer takes.
func (b *Buffer) sharedSize() int64 {
	if b.options.Encrypted {
		return sealed.Size(b.size)
	}
	return b.size
}

func (b *Buffer) createNamed(ctx context.Context) (err error) {
	c := b.client
	system, err := durable.FileSystemOf(c.dirPath)
	switch {
	case err != nil:
		return &Error{Code: fileCode(err), Err: err}
	case b.sharedSize() > system.Free:
		return &Error{Code: ErrNoSpace, Message: fmt.Sprintf("the file system has room for %d bytes only", system.Free)}
	case system.Volatile:
		if err := inRAM(b.sharedSize()); err != nil {
			return err
		}
	}
	for range maxTries {
		b.id = c.ids.Add(1)
		b.name = fmt.Sprintf("%s%d_%d", NamePrefix, b.id, os.Getpid())
		b.lease, err = sharedfile.TakeLease(c.dir, b.name, c.boot, b.terms)
		if err == nil {
			if b.file, err = c.dir.Create(b.name); err == nil {
				break
			}
			if cerr := b.lease.Close(); cerr != nil {
				return &Error{Code: fileCode(cerr), Message: "the buffer's lease cannot be removed", Err: cerr}
			}
		}
		if !errors.Is(err, fs.ErrExist) {
			break
		}
	}
	if err != nil {
		return &Error{Code: fileCode(err), Message: "the file cannot be made", Err: err}
	}
	b.path = filepath.Join(c.dirPath, b.name)
	if mode := b.options.Mode; mode != 0 {
		err = errors.Join(b.file.Chmod(mode), b.lease.Chmod(mode))
	}
	if err == nil {
		err = b.file.Truncate(b.sharedSize())
	}
	if err == nil {
		err = b.mapAndReserve(ctx, system.Volatile, func(off, n int64) error { return sharedfile.Reserve(b.file, off, n) })
	}
	if err != nil {
		return errors.Join(err, b.remove())
	}
	return nil
}

// fileCode tells what kind of failure a file's is.
func fileCode(err error) Code {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return ErrNotFound
	case errors.Is(err, fs.ErrPermission):
		return ErrNotOwner
	case errors.Is(err, fs.ErrExist):
		return ErrExists
	case errors.Is(err, sharedfile.ErrNoSpace):
		return ErrNoSpace
	case errors.Is(err, errors.ErrUnsupported):
		return ErrUnsupported
	}
	return ErrFailed
}

// placed says what was asked, on what, in an error that does not say so yet.
func placed(err error, op, path string) error {
	var e *Error
	if !errors.As(err, &e) {
		return &Error{Code: codeOf(err), Op: op, Path: path, Err: err}
	}
	if e.Op != "" {
		return err
	}
	at := *e
	at.Op, at.Path = op, path
	return &at
}
