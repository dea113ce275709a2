// SPDX-License-Identifier: Apache-2.0

package memspan

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"

	"github.com/memspan/memspan/mapping"
	"github.com/memspan/memspan/wire/control"
	"github.com/memspan/memspan/wire/dial"
)

// A Client is a connection to a server. Its methods may be called
// concurrently. What it opened, mapped and locked ends with it.
type Client struct {
	link      *link
	pool      *mapping.Pool
	kept      keeper
	tracking  Tracking
	blockSize int64
	tiers     TierMask
	blocks    sync.Pool // *[]byte of blockSize

	mu       sync.Mutex // guards what follows
	mappings map[uint64]*Mapping
	stopping error // set once the server has said that it is
}

// DefaultAddress returns where the daemon of this user listens:
// $MEMSPAN_SOCKET, else memspan.sock in $XDG_RUNTIME_DIR, else
// /tmp/memspan-UID/memspan.sock.
func DefaultAddress() string { return dial.DefaultAddress() }

// Dial connects to the server at address:
//
//	""                          DefaultAddress()
//	unix:PATH, or a path        a unix socket of this user's or root's; mappings are direct
//	tcp://HOST:PORT             plain TCP with a token, on loopback only
//	tls://HOST:PORT             TLS 1.3, the server's certificate verified
//	tls://HOST:PORT#FINGERPRINT TLS 1.3, the certificate known by its SHA-256
//
// A path is told by the slash in it. The fingerprint is 64 hexadecimal digits,
// as `memspan serve` prints it. opts may be nil. ctx bounds the dialing alone;
// the connection lasts until Close, or until it breaks.
func Dial(ctx context.Context, address string, opts *Options) (*Client, error) {
	o := opts.withDefaults()
	if err := o.check(); err != nil {
		return nil, err
	}
	conn, err := dial.Dial(ctx, address, dial.Options{
		Token: o.Token, TLS: o.TLS, NoCompression: o.NoCompression, IOTimeout: o.IOTimeout, Name: o.Name,
	})
	if err != nil {
		return nil, err
	}
	c := newClient(conn, o)
	c.start()
	return c, nil
}

func newClient(conn *dial.Conn, o Options) *Client {
	w := conn.Welcome
	c := &Client{
		pool:      mapping.NewPool(max(0, o.ShadowPool)),
		tracking:  o.Tracking,
		blockSize: w.BlockSize,
		tiers:     w.Tiers,
		mappings:  make(map[uint64]*Mapping),
	}
	c.blocks.New = func() any { b := make([]byte, c.blockSize); return &b }
	c.link = newLink(conn.Wire, conn.Files, newSendQueue(conn.Socket), o.IOTimeout, c.event)
	return c
}

// start lets answers and events come in.
func (c *Client) start() {
	c.link.start()
	c.link.work.Go(func() { // the mappings learn that they are alone
		<-c.link.lost
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, m := range c.mappings {
			m.end(c.link.lostErr())
		}
	})
}

// event takes in what the server says unasked.
func (c *Client) event(e control.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch e.Event {
	case control.EventClosing:
		c.stopping = &Error{Code: ErrClosed, Message: e.Message}
		for _, m := range c.mappings {
			m.end(c.stopping)
		}
	case control.EventFreed:
		if m := c.mappings[e.Mapping]; m != nil {
			m.end(&Error{Code: ErrFreed, Span: m.span.label(), Message: e.Message})
		}
	}
}

// Close ends the connection: handles, locks and mappings end for the server.
// What was not flushed is not stored. The memory of mappings stays valid until
// they are unmapped or discarded. Close is idempotent.
func (c *Client) Close() error {
	c.link.close(&Error{Code: ErrClosed, Message: "the client was closed", Err: net.ErrClosed})
	return errors.Join(c.pool.Close(), c.kept.drop(nil))
}

// Done is closed when the connection is gone, whoever ended it.
func (c *Client) Done() <-chan struct{} { return c.link.lost }

// Err returns nil while the connection lasts, and then why it ended: an error
// that is ErrClosed after Close, ErrPeerLost otherwise.
func (c *Client) Err() error { return c.link.lostErr() }

// Tiers returns the tiers that the server has.
func (c *Client) Tiers() TierMask { return c.tiers }

// Traffic returns what the connection has carried so far. Its Frames tell the
// requests and answers apart by kind, as in Sent.Frames[wire.KindRead].
func (c *Client) Traffic() Traffic { return c.link.wire.Stats() }

// ask sends a control request and decodes the answer.
func ask[R any](ctx context.Context, c *Client, op control.Op, args any) (reply R, err error) {
	data, err := c.link.control(ctx, op, args, nil)
	if err != nil {
		return reply, err
	}
	if err := json.Unmarshal(data, &reply); err != nil {
		c.link.fail(peerLost(protocolError("answer to %s: %w", op, err)))
		return reply, c.link.lostErr()
	}
	return reply, nil
}

// nothing is the answer to operations that have nothing to say.
type nothing struct{}

// Alloc makes a span and opens it. A span with a name stays until it is freed;
// one without goes with the last handle to it.
func (c *Client) Alloc(ctx context.Context, cfg SpanConfig) (*Span, error) {
	if cfg.Policy > WriteAll {
		return nil, &Error{Code: ErrInvalid, Op: "alloc", Span: cfg.Name, Message: fmt.Sprintf("there is no write policy %d", cfg.Policy)}
	}
	tier := cfg.Tier.or(Host)
	o, err := ask[control.Opened](ctx, c, control.OpAlloc, control.Alloc{
		Name:      cfg.Name,
		Size:      cfg.Size,
		Tier:      tier,
		Home:      cfg.Home.or(tier),
		Policy:    cfg.Policy,
		Placement: cfg.Placement,

		Unpublished: cfg.Unpublished,
	})
	if err != nil {
		return nil, failed("alloc", cfg.Name, 0, cfg.Size, err)
	}
	return &Span{client: c, writing: make(chan struct{}, 1), handle: o.Handle, info: o.Span}, nil
}

// Open opens the span of the given name, or of the given id in hexadecimal.
func (c *Client) Open(ctx context.Context, name string) (*Span, error) {
	o, err := ask[control.Opened](ctx, c, control.OpOpen, control.Open{Name: name})
	if err != nil {
		return nil, failed("open", name, 0, 0, err)
	}
	return &Span{client: c, writing: make(chan struct{}, 1), handle: o.Handle, info: o.Span}, nil
}

// List describes all spans of the server.
func (c *Client) List(ctx context.Context) ([]SpanStat, error) {
	var list []SpanStat
	for after, more := "", true; more; {
		page, err := ask[control.Listed](ctx, c, control.OpList, control.List{After: after})
		if err != nil {
			return nil, failed("list", "", 0, 0, err)
		}
		list = append(list, page.Spans...)
		if more = page.More && len(page.Spans) > 0; more {
			after = page.Spans[len(page.Spans)-1].ID
		}
	}
	slices.SortStableFunc(list, func(a, b SpanStat) int { return a.Created.Compare(b.Created) })
	return list, nil
}

// Stats describes the server as a whole.
func (c *Client) Stats(ctx context.Context) (Stats, error) {
	st, err := ask[Stats](ctx, c, control.OpStats, nil)
	return st, failed("stats", "", 0, 0, err)
}

// Sync is a barrier over all spans of the server: when it returns, every stale
// copy is up to date, and every span's home is. It returns the epoch that
// ended.
func (c *Client) Sync(ctx context.Context) (epoch uint64, err error) {
	s, err := ask[control.Synced](ctx, c, control.OpSync, control.Sync{})
	return s.Epoch, failed("sync", "", 0, 0, err)
}
