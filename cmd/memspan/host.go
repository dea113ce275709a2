// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/memspan/memspan/sharedbuf"
	"github.com/memspan/memspan/sharedbuf/host"
	"github.com/memspan/memspan/wire/dial"
)

// hostFlags say whose shared buffers are worked on: by host, and by serve, whose
// flags for it have a prefix.
type hostFlags struct {
	prefix    string
	proof     *listenFlags // how guests prove who they are over TLS
	dir       string
	socket    string
	listen    []string
	trust     []string
	translate []string
	maxBuffer size
	maxCopies size
	logLevel  slog.Level
}

func newHost(opts *options) *cobra.Command {
	f := &hostFlags{proof: new(listenFlags)}
	cmd := &cobra.Command{
		Use:   "host",
		Short: "Work on the shared buffers of guests",
		Long: `Host serves guests that share buffers with it: files in a directory that both
sides see, or, over the unix socket, memory without a name. No byte of a buffer
is sent; a guest names it and says what to do: process, checksum, verify, fill.
To turn buffers into spans and run kernels on them: memspan serve --shared-dir.

It runs until it is interrupted or gets SIGTERM. Guests keep their buffers and
find it again when it is restarted. Now and then it removes the files of guests
that died.

It lets in processes of this user, and root's, of this machine: over the unix
socket and over --listen on loopback addresses. --listen on other addresses takes
--token-file or --tls-client-ca, and is encrypted: with a token and no certificate
it makes one itself and prints the address with the certificate's fingerprint, by
which guests recognise it. A guest of the original system, in a virtual machine,
can do neither and comes from that one's network; --trust lets in everybody there,
in plain and without a token. Whoever is let in may have every buffer in the
directory read and written that belongs to this user, as far as its permissions
allow it.`,
		Example: `  memspan host --dir /dev/shm/buffers
  memspan host --listen 0.0.0.0:4661 --token-file token
  memspan host --dir /srv/shared --listen 192.168.122.1:4660 --trust 192.168.122.0/24 --translate /mnt/c/temp=/srv/shared`,
		Args: args(cobra.NoArgs, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.run(cmd.Context(), opts.json, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	flags := cmd.Flags()
	f.proof.add(cmd)
	f.add(cmd, "`directory` that buffers are in (default none: buffers without a file only)")
	flags.TextVar(&f.logLevel, "log-level", slog.LevelInfo, "least important `level` to log: debug, info, warn or error")
	return cmd
}

// add adds the flags.
func (f *hostFlags) add(cmd *cobra.Command, dir string) {
	flags := cmd.Flags()
	flags.StringVar(&f.dir, f.prefix+"dir", "", dir)
	flags.StringVar(&f.socket, f.prefix+"socket", "", "`path` of the guests' unix socket (default memspan-host.sock in $XDG_RUNTIME_DIR; none on Windows)")
	flags.StringArrayVar(&f.listen, f.prefix+"listen", nil, "`host:port` to listen on over TCP for guests; may be repeated; port 0 takes a free one, guests of the original system want 4660")
	flags.StringArrayVar(&f.trust, f.prefix+"trust", nil, "network, as in 192.168.122.0/24, that any guest may connect from; may be repeated (`CIDR`)")
	flags.StringArrayVar(&f.translate, "translate", nil, "what guests call a directory, and what it is here: `GUEST=HOST`, as in /mnt/c=C:\\; may be repeated")
	flags.Var(&f.maxBuffer, f.prefix+"max-buffer", "largest shared buffer (default 64 GiB)")
	flags.Var(&f.maxCopies, f.prefix+"max-copies", "most RAM that copies of buffers take whose bytes are sent (default half of what is available)")
}

// config turns the flags into the host's configuration.
func (f *hostFlags) config() (host.Config, error) {
	token, err := dial.ReadToken(f.proof.tokenFile)
	if err != nil {
		return host.Config{}, err
	}
	c := host.Config{Dir: f.dir, MaxBuffer: int64(f.maxBuffer), MaxAllCopies: int64(f.maxCopies), Token: token}
	for _, text := range f.trust {
		network, err := netip.ParsePrefix(text)
		if err != nil {
			return host.Config{}, usagef("--%strust %s: want a network, like 192.168.122.0/24", f.prefix, text)
		}
		c.Trust = append(c.Trust, network.Masked())
	}
	for _, text := range f.translate {
		rule, err := sharedbuf.ParseRule(text)
		if err != nil {
			return host.Config{}, usagef("--translate %w", err)
		}
		c.Translate = append(c.Translate, rule)
	}
	if len(c.Translate) > 0 && f.dir == "" {
		return host.Config{}, usagef("--translate is for files: add --%sdir DIRECTORY", f.prefix)
	}
	return c, nil
}

// secure decides whether a listener on addr speaks TLS, and refuses one that
// would let in anybody who can reach it.
func (f *hostFlags) secure(addr *net.TCPAddr) (bool, error) {
	p := f.proof
	proof := p.tokenFile != "" || p.tlsClientCA != ""
	asked := p.tls || p.tlsCert != "" || p.tlsClientCA != ""
	trusts := len(f.trust) > 0
	switch {
	case addr.IP.IsLoopback() && !asked:
		return false, nil // the kernel tells whose process it is
	case asked && !proof:
		return false, usagef("--%slisten %v: over TLS nobody is let in without a proof; add --token-file FILE or --tls-client-ca FILE", f.prefix, addr)
	case addr.IP.IsLoopback():
		return true, nil
	case proof && trusts && f.prefix == "": // serve's proofs are for its other clients too
		return false, usagef("--listen %v: --trust is for plain TCP, --token-file and --tls-client-ca are for TLS; leave one out", addr)
	case !proof && !trusts:
		return false, usagef("--%slisten %v: it is reachable from other machines; add --token-file FILE (a certificate is then made), --tls-client-ca FILE with --tls-cert and --tls-key, or --%strust CIDR with the network that guests come from", f.prefix, addr, f.prefix)
	}
	return !trusts, nil
}

// listeners opens all listeners, or none.
func (f *hostFlags) listeners(ctx context.Context) (open []listener, err error) {
	defer func() {
		if err != nil {
			for _, ln := range open {
				ln.Close()
			}
		}
	}()
	for _, address := range f.listen {
		ln, err := f.proof.listenTCP(ctx, f.prefix+"listen", address, f.secure, host.TLSListener)
		if err != nil {
			return open, err
		}
		open = append(open, ln)
	}
	socket := f.socket
	if socket == "" {
		socket = sharedbuf.DefaultAddress()
	}
	switch {
	case peersAreKnown:
	case f.socket != "":
		return open, fmt.Errorf("--socket %s: this system does not tell who connects to a unix socket; use --listen: %w", socket, errors.ErrUnsupported)
	case len(open) == 0:
		return open, usagef("add --listen 127.0.0.1:PORT: there are no unix sockets to listen on here")
	default:
		return open, nil
	}
	ln, err := listenUnix(ctx, socket)
	if err != nil {
		return open, err
	}
	return append([]listener{ln}, open...), nil
}

// run serves until ctx ends.
func (f *hostFlags) run(ctx context.Context, asJSON bool, stdout, stderr io.Writer) (err error) {
	if err := f.proof.check(len(f.listen) > 0); err != nil {
		return err
	}
	config, err := f.config()
	if err != nil {
		return err
	}
	config.Logger = slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: f.logLevel}))
	listeners, err := f.listeners(ctx)
	if err != nil {
		return err
	}
	h, err := host.New(config)
	if err != nil {
		for _, ln := range listeners {
			ln.Close()
		}
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, ln := range listeners {
		group.Go(func() error { return h.Serve(ctx, ln.Listener) })
	}
	group.Go(func() error { return f.announce(config, listeners, asJSON, stdout, stderr) })
	group.Go(func() error {
		<-ctx.Done()
		notify(config.Logger, "STOPPING=1")
		return nil
	})
	return errors.Join(group.Wait(), h.Close())
}

// announce says where the host can be reached, and by whom.
func (f *hostFlags) announce(config host.Config, listeners []listener, asJSON bool, stdout, stderr io.Writer) error {
	var addresses []string
	for _, ln := range listeners {
		addresses = append(addresses, ln.address)
		fmt.Fprintln(stderr, "memspan: listening on", ln.address)
	}
	warnOfTrust(config, false, stderr)
	notify(config.Logger, "READY=1")
	if !asJSON {
		return nil
	}
	return printJSON(stdout, struct {
		Addresses []string `json:"addresses"`
		PID       int      `json:"pid"`
	}{addresses, os.Getpid()})
}

// warnOfTrust says loudly who is let in without proof, to the spans too or not.
func warnOfTrust(config host.Config, spans bool, stderr io.Writer) {
	what := "every buffer of this user"
	if spans {
		what += ", and every span,"
	}
	for _, network := range config.Trust {
		fmt.Fprintf(stderr, "memspan: WARNING: anybody in %v may connect, unencrypted and without a token, and have %s read and written\n", network, what)
	}
}
