// SPDX-License-Identifier: Apache-2.0

package dial

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/memspan/memspan/internal/fdpass"
	"github.com/memspan/memspan/internal/sockopt"
	"github.com/memspan/memspan/internal/unixsock"
	"github.com/memspan/memspan/wire"
	"github.com/memspan/memspan/wire/control"
)

// DefaultAddress returns where the daemon of this user listens:
// $MEMSPAN_SOCKET, else memspan.sock in $XDG_RUNTIME_DIR, else
// /tmp/memspan-UID/memspan.sock.
func DefaultAddress() string {
	if path := os.Getenv("MEMSPAN_SOCKET"); path != "" {
		return path
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		return filepath.Join(dir, "memspan.sock")
	}
	return "/tmp/memspan-" + strconv.Itoa(os.Getuid()) + "/memspan.sock"
}

// Options say who dials, and how. The zero value is usable.
type Options struct {
	// Token is presented over TCP and TLS to servers that want one.
	Token string
	// TLS is the base of the configuration for tls:// addresses; nil: the
	// system's roots and no client certificate. TLS 1.3 is always required.
	TLS *tls.Config
	// NoCompression refuses encoded data, in both directions.
	NoCompression bool
	// IOTimeout ends a connection on which something is waited for and no
	// byte moves; 0: none.
	IOTimeout time.Duration
	// Name is how the server's log calls this client.
	Name string
	// Guest asks for a session without a token that may do nothing but pull
	// surfaces: control.Hello.
	Guest bool
	// Early, if set, returns a request that leaves together with the hello, which
	// spares a round trip: one that needs nothing of the welcome. It is called with the
	// state of a TLS connection, nil on others, once that stands. Conn.Await
	// receives the reply.
	Early func(state *tls.ConnectionState) (op control.Op, args any, err error)
	// Plain has the connection be one that the runtime's poller does not know, and
	// whose writes raise no SIGPIPE: see [sockopt.Plain]. (Linux)
	Plain bool
}

// A Conn is a connection to a server after the greeting: a new session. It
// belongs to who dialed.
type Conn struct {
	Wire    *wire.Conn
	Files   *fdpass.Conn // of a unix socket, which carries files; else nil
	Socket  net.Conn     // what was dialed; to be looked at only
	Welcome control.Welcome

	asked uint64 // requests by Ask: the id of the last
}

// Dial connects to the server at address:
//
//	""                          DefaultAddress()
//	unix:PATH, or a path        a unix socket of this user's or root's
//	tcp://HOST:PORT             plain TCP with a token, on loopback only
//	tls://HOST:PORT             TLS 1.3, the server's certificate verified
//	tls://HOST:PORT#FINGERPRINT TLS 1.3, the certificate known by its SHA-256
//
// A path is told by the slash in it. The fingerprint is 64 hexadecimal digits,
// as `memspan serve` prints it. ctx bounds the dialing alone. The error is a
// *wire.Error.
func Dial(ctx context.Context, address string, o Options) (*Conn, error) {
	if address == "" {
		address = "unix:" + DefaultAddress()
	}
	to, err := parseAddress(address)
	if err != nil {
		return nil, err
	}
	d := dialer{endpoint: to, Options: o, address: address}
	c, err := d.dial(ctx)
	if err != nil {
		return nil, d.failed(ctx, err)
	}
	return c, nil
}

// An endpoint is a parsed address.
type endpoint struct {
	network     string // unix, tcp
	addr        string // path, or HOST:PORT
	tls         bool
	fingerprint []byte // or nil
}

func parseAddress(address string) (endpoint, error) {
	invalid := func(format string, args ...any) (endpoint, error) {
		return endpoint{}, &wire.Error{Code: wire.Invalid, Op: "dial", Message: fmt.Sprintf("address %q: %s", address, fmt.Sprintf(format, args...))}
	}
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		if path == "" {
			return invalid("there is no path after unix:")
		}
		return unixEndpoint(path)
	}
	scheme, rest, ok := strings.Cut(address, "://")
	if !ok {
		if strings.Contains(address, "/") {
			return unixEndpoint(address)
		}
		return invalid("want unix:PATH, tcp://HOST:PORT or tls://HOST:PORT")
	}
	if scheme != "tcp" && scheme != "tls" {
		return invalid("unknown scheme %q, want tcp or tls", scheme)
	}
	hostport, digits, pinned := strings.Cut(rest, "#")
	host, port, err := net.SplitHostPort(hostport)
	if err != nil || host == "" || port == "" {
		return invalid("want HOST:PORT after %s://", scheme)
	}
	to := endpoint{network: "tcp", addr: hostport, tls: scheme == "tls"}
	if pinned {
		sum, err := hex.DecodeString(digits)
		if !to.tls || err != nil || len(sum) != sha256.Size {
			return invalid("what follows # is a fingerprint of %d hexadecimal digits, with tls:// only", 2*sha256.Size)
		}
		to.fingerprint = sum
	}
	if ip := net.ParseIP(host); !to.tls && ip != nil && !ip.IsLoopback() {
		return invalid("%s", notLoopback)
	}
	return to, nil
}

func unixEndpoint(path string) (endpoint, error) {
	if err := unixsock.CheckPath(path); err != nil {
		return endpoint{}, &wire.Error{Code: wire.Invalid, Op: "dial", Message: "no server can be there", Err: err}
	}
	return endpoint{network: "unix", addr: path}, nil
}

const notLoopback = "plain TCP would show the token and every byte to the network, so it is for loopback addresses only: use tls://"

// A dialer makes one connection.
type dialer struct {
	endpoint
	Options
	address string // as given, for messages
	early   []byte // the request that leaves with the hello, once it is made
}

// failed says what was dialed and, where that is known, what to do.
func (d *dialer) failed(ctx context.Context, err error) error {
	e := &wire.Error{Op: "dial", Message: d.address, Err: err}
	var known *wire.Error
	var reason wire.Code
	var op *net.OpError
	switch {
	case ctx.Err() != nil:
		e.Code, e.Err = wire.Canceled, context.Cause(ctx)
	case errors.As(err, &op) && op.Op == "remote error" && strings.Contains(op.Error(), "certificate"):
		e.Code = wire.Unauthenticated
		e.Message += ": the server wants another client certificate; give it in Options.TLS"
	case errors.As(err, &known): // the server's refusal, or ours
		e.Code, e.Err = known.Code, known.Err
		e.Message += ": " + cmp.Or(known.Message, strings.TrimPrefix(known.Code.Error(), known.Code.String()+": "))
	case errors.As(err, &reason):
		e.Code = reason
	case errors.As(err, &op) && op.Op == "dial":
		e.Code = wire.PeerLost
		e.Message += ": no server answers; start one with: memspan serve"
	default:
		e.Code = wire.PeerLost
		if d.network == "tcp" {
			e.Message += ": the connection ended before the server said anything; is it a memspan server's port, with TLS for tls:// and without for tcp://?"
		}
	}
	return e
}

// DialTLS connects to a server that speaks another protocol than wire's over TLS, at
// tls://HOST:PORT or tls://HOST:PORT#FINGERPRINT, and looks who it is, as Dial
// does. The base of the configuration may be nil. ctx bounds the dialing alone.
// The error is a *wire.Error.
func DialTLS(ctx context.Context, address string, base *tls.Config) (*tls.Conn, error) {
	to, err := parseAddress(address)
	if err != nil {
		return nil, err
	}
	if !to.tls {
		return nil, &wire.Error{Code: wire.Invalid, Op: "dial", Message: fmt.Sprintf("address %q: want tls://HOST:PORT", address)}
	}
	d := dialer{endpoint: to, Options: Options{TLS: base}, address: address}
	nc, err := d.connect(ctx)
	if err != nil {
		return nil, d.failed(ctx, err)
	}
	tc := tls.Client(nc, d.tlsConfig())
	if err := tc.HandshakeContext(ctx); err != nil {
		nc.Close()
		return nil, d.failed(ctx, d.tlsError(err))
	}
	return tc, nil
}

func (d *dialer) connect(ctx context.Context) (net.Conn, error) {
	if d.network == "unix" && !d.Plain {
		return unixsock.Dial(d.addr) // which waits for nothing
	}
	nd := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 15 * time.Second, Count: 6}}
	return nd.DialContext(ctx, d.network, d.addr)
}

// dial connects and proves who is who.
func (d *dialer) dial(ctx context.Context) (*Conn, error) {
	if d.network == "unix" {
		// The server is woken by the connection: what it is to be told is there then.
		if err := d.prepare(nil); err != nil {
			return nil, err
		}
	}
	nc, err := d.connect(ctx)
	if err != nil {
		return nil, err
	}
	if d.Plain {
		plain, err := sockopt.PlainOf(nc)
		if err != nil {
			nc.Close()
			return nil, err
		}
		nc = plain
	}
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	c, err := d.handshake(ctx, nc)
	if !stop() && err == nil { // ctx ended at the last moment
		err = context.Cause(ctx)
	}
	if err != nil {
		nc.Close()
		return nil, err
	}
	return c, nil
}

// prepare makes the request that leaves with the hello, if there is one.
func (d *dialer) prepare(state *tls.ConnectionState) error {
	if d.Early == nil || d.early != nil {
		return nil
	}
	op, args, err := d.Early(state)
	if err == nil {
		d.early, err = control.Encode(op, args)
	}
	return err
}

func (d *dialer) handshake(ctx context.Context, nc net.Conn) (*Conn, error) {
	cfg := wire.Config{IOTimeout: d.IOTimeout}
	socket := nc
	hello := control.Hello{Protocol: wire.Version, Client: d.Name, Guest: d.Guest}
	var fds *fdpass.Conn
	var state *tls.ConnectionState
	switch {
	case d.network == "unix":
		conn := nc.(fdpass.Socket)
		if err := trusted(conn); err != nil {
			return nil, err
		}
		fds = fdpass.New(conn)
		nc = fds
	case d.tls:
		tc := tls.Client(wire.Progress(nc, d.IOTimeout), d.tlsConfig())
		if err := tc.HandshakeContext(ctx); err != nil {
			return nil, d.tlsError(err)
		}
		nc = tc
		s := tc.ConnectionState()
		state = &s
	default:
		// What the name resolved to is known only now; nothing was sent yet.
		if addr, ok := nc.RemoteAddr().(*net.TCPAddr); !ok || !addr.IP.IsLoopback() {
			return nil, &wire.Error{Code: wire.Invalid, Message: notLoopback}
		}
		cfg.Sums = true
	}
	if d.network != "unix" {
		hello.Token, hello.Compress = d.Token, !d.NoCompression
	}
	c := &Conn{Wire: wire.NewConn(nc, cfg), Files: fds, Socket: socket}
	payload, err := json.Marshal(hello)
	if err != nil {
		return nil, err
	}
	greeting := wire.Header{Kind: wire.KindHello}
	if d.Early == nil {
		err = c.Wire.WriteFrame(greeting, nil, payload)
	} else if err = d.prepare(state); err == nil {
		if err = c.Wire.QueueFrame(greeting, nil, payload); err == nil {
			err = c.send(d.early)
		}
	}
	if err != nil {
		return nil, err
	}
	if c.Welcome, err = welcome(c.Wire); err != nil {
		return nil, err
	}
	c.Wire.SetCompress(hello.Compress && c.Welcome.Compress)
	return c, nil
}

// trusted refuses sockets that another user has put where the daemon's is
// looked for.
func trusted(conn fdpass.Socket) error {
	uid, _, pid, err := fdpass.PeerCred(conn)
	switch {
	case errors.Is(err, errors.ErrUnsupported):
		return nil // the directory's permissions have to do
	case err != nil:
		return err
	}
	if me := os.Getuid(); uid != me && uid != 0 && me != 0 {
		return &wire.Error{Code: wire.Unauthenticated, Message: fmt.Sprintf(
			"the server, process %d, belongs to user %d, not to you (%d) or root", pid, uid, me)}
	}
	return nil
}

// welcome receives the answer to the hello.
func welcome(conn *wire.Conn) (w control.Welcome, err error) {
	h, err := conn.ReadHeader()
	if err != nil {
		return w, err
	}
	answer := make([]byte, h.Raw)
	if err := conn.ReadData(answer); err != nil {
		return w, err
	}
	switch {
	case h.Kind != wire.KindHello || !h.Has(wire.FlagReply):
		return w, broken("a %v frame instead of a welcome", h.Kind)
	case h.Has(wire.FlagError):
		refusal, err := wire.ParseError(answer)
		if err != nil {
			return w, broken("refusal: %w", err)
		}
		return w, refusal
	}
	if err := json.Unmarshal(answer, &w); err != nil {
		return w, broken("welcome: %w", err)
	}
	switch {
	case w.Protocol != wire.Version:
		return w, &wire.VersionError{Got: w.Protocol}
	case w.BlockSize < 4<<10 || w.BlockSize > wire.MaxData || w.BlockSize&(w.BlockSize-1) != 0:
		return w, broken("blocks of %d bytes", w.BlockSize)
	}
	return w, nil
}

// broken says how a server broke the protocol's rules.
func broken(format string, args ...any) error {
	return fmt.Errorf("the server broke the protocol: %w", fmt.Errorf(format, args...))
}

// tlsConfig is the caller's, made to know the server.
func (d *dialer) tlsConfig() *tls.Config {
	cfg := new(tls.Config)
	if d.TLS != nil {
		cfg = d.TLS.Clone()
	}
	cfg.MinVersion = tls.VersionTLS13
	if cfg.ServerName == "" {
		cfg.ServerName, _, _ = net.SplitHostPort(d.addr) // it was parsed before
	}
	if d.fingerprint == nil {
		return cfg
	}
	// The fingerprint says more than a chain of signatures could.
	cfg.InsecureSkipVerify = true
	verify := cfg.VerifyConnection
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		got := sha256.Sum256(cs.PeerCertificates[0].Raw)
		if subtle.ConstantTimeCompare(got[:], d.fingerprint) != 1 {
			return &wire.Error{Code: wire.Unauthenticated, Message: fmt.Sprintf(
				"the server's certificate has the fingerprint %x, not the one in the address: it is another server, or its certificate was renewed", got)}
		}
		if verify != nil {
			return verify(cs)
		}
		return nil
	}
	return cfg
}

// tlsError gives what can go wrong before the greeting its code: certificates
// that do not verify, and servers that do not speak TLS.
func (d *dialer) tlsError(err error) error {
	var certificate *tls.CertificateVerificationError
	if errors.As(err, &certificate) {
		return &wire.Error{Code: wire.Unauthenticated,
			Message: "the server's certificate does not verify: give its authority in Options.TLS, or its fingerprint in the address", Err: err}
	}
	var record tls.RecordHeaderError
	if errors.As(err, &record) {
		if wire.IsMagic(record.RecordHeader[:]) {
			return &wire.Error{Code: wire.Invalid, Message: "this port of the server's has no TLS: use tcp://" + d.addr, Err: err}
		}
		return &wire.Error{Code: wire.Invalid, Message: "what answers there does not speak TLS: it is no port of a memspan server's", Err: err}
	}
	return err
}
