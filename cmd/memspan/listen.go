// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/internal/filelock"
	"github.com/memspan/memspan/internal/unixsock"
	"github.com/memspan/memspan/server"
)

// listenFlags say where a daemon listens beside its unix socket, and how
// clients there prove who they are.
type listenFlags struct {
	addresses   []string
	http        []string
	tokenFile   string
	tls         bool
	tlsDir      string
	tlsCert     string
	tlsKey      string
	tlsClientCA string
}

// A listener is one place where the daemon listens.
type listener struct {
	net.Listener
	address string      // what clients dial
	config  *tls.Config // of HTTP: encrypts what is accepted; nil: nothing does, or the Listener
}

// listen opens all listeners, or none.
func (f *serveFlags) listen(ctx context.Context) (_ []listener, err error) {
	if err := f.check(len(f.addresses)+len(f.http)+len(f.shared.listen) > 0); err != nil {
		return nil, err
	}
	var open []listener
	defer func() {
		if err != nil {
			for _, ln := range open {
				ln.Close()
			}
		}
	}()
	for _, address := range f.addresses {
		ln, err := f.listenTCP(ctx, "listen", address, f.encrypted, server.TLSListener)
		if err != nil {
			return nil, err
		}
		open = append(open, ln)
	}
	ln, err := listenUnix(ctx, f.socket)
	if err != nil {
		return nil, err
	}
	return append([]listener{ln}, open...), nil
}

// check refuses flags that do not go together. network says whether anything
// listens on the network.
func (f *listenFlags) check(network bool) error {
	switch {
	case (f.tlsCert == "") != (f.tlsKey == ""):
		return usagef("--tls-cert and --tls-key go together")
	case !network && (f.tls || f.tlsCert != "" || f.tlsClientCA != "" || f.tlsDir != ""):
		return usagef("TLS is for the network: add --listen HOST:PORT, or another address to listen on")
	case f.tlsDir != "" && f.tlsCert != "":
		return usagef("--tls-dir is for a self-made certificate; leave it out, or --tls-cert and --tls-key")
	}
	return nil
}

// encrypted decides whether a listener on addr speaks TLS, and refuses one that
// would let in anybody who can reach it.
func (f *listenFlags) encrypted(addr *net.TCPAddr) (bool, error) {
	certificates := f.tlsCert != "" || f.tlsClientCA != ""
	loopback := addr.IP.IsLoopback()
	if f.tokenFile == "" && f.tlsClientCA == "" {
		if loopback {
			return false, usagef("--listen %v: every user of this machine can reach it; add --token-file FILE, or --tls-client-ca FILE with --tls-cert and --tls-key", addr)
		}
		return false, usagef("--listen %v: it is reachable from other machines; add --token-file FILE (a certificate is then made), or --tls-cert, --tls-key and --tls-client-ca", addr)
	}
	return f.tls || certificates || !loopback, nil
}

// add defines the flags but --listen.
func (f *listenFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.tokenFile, "token-file", "", "`file` with the token that TCP and TLS connections must present")
	flags.BoolVar(&f.tls, "tls", false, "encrypt --listen on loopback addresses too")
	flags.StringVar(&f.tlsDir, "tls-dir", "", "`directory` of the self-made certificate (default memspan in the user's configuration directory)")
	flags.StringVar(&f.tlsCert, "tls-cert", "", "`file` with the daemon's certificate (PEM), instead of a self-made one")
	flags.StringVar(&f.tlsKey, "tls-key", "", "`file` with the key of --tls-cert (PEM)")
	flags.StringVar(&f.tlsClientCA, "tls-client-ca", "", "`file` with the authorities (PEM) whose client certificates are let in")
}

// listenTCP listens on the address that a flag has, with TLS if encrypted says
// so: that is what overTLS makes of the listener.
func (f *listenFlags) listenTCP(ctx context.Context, flag, address string, encrypted func(*net.TCPAddr) (bool, error), overTLS func(net.Listener, *tls.Config) net.Listener) (listener, error) {
	addr, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return listener{}, usagef("--%s %s: %w; want HOST:PORT", flag, address, err)
	}
	if addr.IP == nil {
		addr.IP = net.IPv6unspecified // what an empty host means to net.Listen
	}
	secure, err := encrypted(addr)
	if err != nil {
		return listener{}, err
	}
	var config *tls.Config
	var fingerprint string
	if secure {
		if config, fingerprint, err = f.tlsConfig(); err != nil {
			return listener{}, err
		}
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", addr.String())
	if err != nil {
		return listener{}, fmt.Errorf("--%s %s: %w", flag, address, err)
	}
	host := dialHost(address, addr)
	_, port, err := net.SplitHostPort(ln.Addr().String())
	if err != nil {
		ln.Close()
		return listener{}, fmt.Errorf("--%s %s: %w", flag, address, err)
	}
	if !secure {
		return listener{Listener: ln, address: "tcp://" + net.JoinHostPort(host, port)}, nil
	}
	dial := "tls://" + net.JoinHostPort(host, port)
	if fingerprint != "" {
		dial += "#" + fingerprint
	}
	return listener{Listener: overTLS(ln, config), address: dial}, nil
}

// dialHost returns the host that clients dial: as it was written, or this
// machine's name if every address of it is listened on.
func dialHost(address string, addr *net.TCPAddr) string {
	if addr.IP.IsUnspecified() {
		if name, err := os.Hostname(); err == nil {
			return name
		}
		return addr.IP.String()
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return addr.IP.String()
	}
	return host
}

// tlsConfig returns how to speak TLS, with the fingerprint of the certificate
// if it is self-made.
func (f *listenFlags) tlsConfig() (config *tls.Config, fingerprint string, err error) {
	var cert tls.Certificate
	if f.tlsCert != "" {
		if cert, err = tls.LoadX509KeyPair(f.tlsCert, f.tlsKey); err != nil {
			return nil, "", fmt.Errorf("--tls-cert %s, --tls-key %s: %w", f.tlsCert, f.tlsKey, err)
		}
	} else {
		dir := f.tlsDir
		if dir == "" {
			home, err := os.UserConfigDir()
			if err != nil {
				return nil, "", fmt.Errorf("no place for a certificate: %w; add --tls-dir DIRECTORY", err)
			}
			dir = filepath.Join(home, "memspan")
		}
		if cert, fingerprint, err = server.SelfSigned(dir); err != nil {
			return nil, "", err
		}
	}
	config = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}}
	if f.tlsClientCA != "" {
		if config.ClientCAs, err = readCertPool("--tls-client-ca", f.tlsClientCA); err != nil {
			return nil, "", err
		}
		config.ClientAuth = tls.RequireAndVerifyClientCert
		if f.tokenFile != "" { // either will do
			config.ClientAuth = tls.VerifyClientCertIfGiven
		}
	}
	return config, fingerprint, nil
}

func readCertPool(flag, path string) (*x509.CertPool, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("%s: %s holds no certificate in PEM form", flag, path)
	}
	return pool, nil
}

// probeTimeout bounds the wait for a daemon that may hold the socket already:
// one that lives accepts at once.
const probeTimeout = 2 * time.Second

// lockSuffix is what the lock file beside a socket has more in its name.
const lockSuffix = ".lock"

// A lockedListener has the place of its socket to itself until it is closed.
type lockedListener struct {
	net.Listener
	close func() error // once: it gives the lock back too
}

func (l *lockedListener) Close() error { return l.close() }

// Accept fails with net.ErrClosed once Close is through: nobody may take the
// listener for closed, and end, while its lock file is still there.
func (l *lockedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if errors.Is(err, net.ErrClosed) {
		_ = l.close() // which waits; who closed it has the error
	}
	return c, err
}

// listenUnix listens on a unix socket that only this user can reach. It takes
// the place of a socket that nobody answers on. Of several daemons that start
// at once the one that has the lock file does: between looking whether anybody
// answers and taking the socket's place there is time for others.
func listenUnix(ctx context.Context, path string) (listener, error) {
	if path == "" {
		path = memspan.DefaultAddress()
	}
	path = strings.TrimPrefix(path, "unix:")
	if !peersAreKnown {
		return listener{}, fmt.Errorf("listen on %s: this system does not tell who connects to a unix socket; run the daemon on Linux: %w", path, errors.ErrUnsupported)
	}
	path, err := filepath.Abs(path) // tickets say it to processes elsewhere
	if err != nil {
		return listener{}, fmt.Errorf("--socket %s: %w", path, err)
	}
	if err := unixsock.CheckPath(path); err != nil {
		return listener{}, fmt.Errorf("--socket: %w", err)
	}
	if err := privateDir(filepath.Dir(path)); err != nil {
		return listener{}, err
	}
	lock, err := filelock.Try(path + lockSuffix)
	if errors.Is(err, filelock.ErrHeld) {
		return listener{}, fmt.Errorf("--socket %s: a daemon has it already, or is starting there; stop it, or choose another path", path)
	}
	if err != nil {
		return listener{}, fmt.Errorf("--socket %s: %w", path, err)
	}
	ln, err := takeSocket(ctx, path)
	if err != nil {
		return listener{}, errors.Join(err, lock.Close())
	}
	// The socket goes before the lock: who gets the lock finds no socket.
	locked := &lockedListener{Listener: ln, close: sync.OnceValue(func() error { return errors.Join(ln.Close(), lock.Close()) })}
	return listener{Listener: locked, address: "unix:" + path}, nil
}

// takeSocket makes the socket at path, in the place of one that nobody answers
// on.
func takeSocket(ctx context.Context, path string) (net.Listener, error) {
	if err := removeStale(ctx, path); err != nil {
		return nil, err
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("--socket %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		ln.Close()
		return nil, fmt.Errorf("--socket %s: %w", path, err)
	}
	return ln, nil
}

// privateDir makes the socket's directory if it is missing. One that is there
// must not be another user's, who could put a socket of theirs in the place of
// ours.
func privateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("the socket's directory: %w", err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("the socket's directory: %w", err)
	}
	if uid, ok := ownerOf(info); ok && uid != 0 && uid != os.Getuid() {
		return fmt.Errorf("the socket's directory %s belongs to user %d; choose another with --socket", dir, uid)
	}
	return nil
}

// removeStale removes a socket that a daemon left behind when it was killed.
func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("--socket %s: %w", path, err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("--socket %s: there is a file of that name that is no socket; remove it or choose another path", path)
	}
	dialer := net.Dialer{Timeout: probeTimeout}
	conn, err := dialer.DialContext(ctx, "unix", path)
	if err == nil {
		conn.Close()
		return fmt.Errorf("--socket %s: a daemon answers there already; stop it, or choose another path", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("--socket %s: cannot tell whether a daemon holds it: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("--socket %s: %w", path, err)
	}
	return nil
}
