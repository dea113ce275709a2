// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/server"
	"github.com/memspan/memspan/sharedbuf"
	"github.com/memspan/memspan/tier/vram"
	"github.com/memspan/memspan/wire/dial"
)

// shutdownGrace is how long a stopping daemon waits for clients to flush what
// they have mapped.
const shutdownGrace = 10 * time.Second

type serveFlags struct {
	listenFlags
	socket     string
	vramBudget size
	hostBudget size
	surfaces   size
	data       string
	dataBudget size
	vramDevice string
	noVRAM     bool
	hide       []string
	vulkan     vulkanFlags
	shared     hostFlags
	trustSpans bool
	ioTimeout  time.Duration
	logLevel   slog.Level
	logJSON    bool
	untilEOF   bool
	removeDir  string
}

func newServe(opts *options) *cobra.Command {
	f := new(serveFlags)
	f.shared = hostFlags{prefix: "shared-", proof: &f.listenFlags}
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the daemon that holds the spans",
		Long: `Serve holds spans of memory and serves them until it is interrupted or gets
SIGTERM. Then clients that have memory mapped are told, work in flight ends, and
it exits 0. It also lends the machine's GPUs to Vulkan applications that 'memspan
run' starts here or elsewhere, each through a worker process of its own.

With --data, spans whose home is disk are kept in that directory, whatever
happens to the daemon or the machine: 'memspan put --tier host --home disk'. It
also takes what does not fit into RAM.

With --shared-dir it is a host of shared buffers too, as 'memspan host' is: guests
share buffers with it that it turns into spans and back, and runs kernels on.

It listens on a unix socket for this user's processes: $MEMSPAN_SOCKET, else
memspan.sock in $XDG_RUNTIME_DIR. --listen adds the network:

  on a loopback address    --token-file, or client certificates
  on any other             the same, and always TLS 1.3

With a token and no certificate it makes one itself and prints the address with
the certificate's fingerprint, by which clients recognise it.`,
		Example: `  memspan serve
  memspan serve --data ~/spans
  memspan serve --vram-budget 4GiB --host-budget 16GiB
  (umask 077; head -c 32 /dev/urandom | base64 >token)
  memspan serve --shared-dir /dev/shm/buffers
  memspan serve --listen 127.0.0.1:7070 --token-file token
  memspan serve --listen 0.0.0.0:7070 --token-file token
  memspan serve --listen 0.0.0.0:7070 --tls-cert s.crt --tls-key s.key --tls-client-ca ca.crt`,
		Args: args(cobra.NoArgs, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return serve(cmd.Context(), f, opts.json, cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.socket, "socket", "", "`path` of the unix socket (default $MEMSPAN_SOCKET, else $XDG_RUNTIME_DIR/memspan.sock)")
	flags.StringArrayVar(&f.addresses, "listen", nil, "`host:port` to listen on over TCP; may be repeated; port 0 takes a free one")
	f.listenFlags.add(cmd)
	flags.StringArrayVar(&f.http, "http", nil, "`host:port` to serve surfaces on over HTTP, to whoever has a ticket: GET /surface/TICKET; encrypted unless on loopback; may be repeated")
	flags.Var(&f.hostBudget, "host-budget", "most RAM that spans may take (default half of what is available)")
	flags.Var(&f.surfaces, "surface-budget", "most RAM that exposed surfaces may take (default a quarter of what is available)")
	flags.StringVar(&f.data, "data", "", "`directory` where spans with home disk outlive the daemon; made if missing")
	flags.Var(&f.dataBudget, "data-budget", "most disk space that blocks may take (default what there is)")
	flags.Var(&f.vramBudget, "vram-budget", "most device memory that spans may take (default 80 % of the device's)")
	flags.StringVar(&f.vramDevice, "vram-device", "", "GPU to use: its `index`, the beginning of its UUID or part of its name (default the first discrete one)")
	flags.BoolVar(&f.noVRAM, "no-vram", false, "hold spans in RAM only")
	f.vulkan.add(cmd)
	f.shared.add(cmd, "`directory` of shared buffers, which makes the daemon their host too")
	flags.BoolVar(&f.trustSpans, "shared-trust-spans", false, "let guests of --shared-trust, who prove nothing, read and replace every span")
	flags.DurationVar(&f.ioTimeout, "io-timeout", 30*time.Second, "end connections that make no progress for this `duration`; slow ones go on")
	flags.TextVar(&f.logLevel, "log-level", slog.LevelInfo, "least important `level` to log: debug, info, warn or error")
	flags.BoolVar(&f.logJSON, "log-json", false, "log JSON lines")
	flags.StringSliceVar(&f.hide, "vram-hide", nil, "memory properties to treat as absent: host-visible, host-coherent")
	flags.BoolVar(&f.untilEOF, "until-eof", false, "stop when standard input ends")
	flags.StringVar(&f.removeDir, "remove-dir", "", "`directory` to remove in the end")
	for _, hidden := range []string{"vram-hide", "vulkan-hide", "until-eof", "remove-dir"} { // for tests, and for demo's own daemon
		flags.Lookup(hidden).Hidden = true
	}
	return cmd
}

// serve runs the daemon until ctx ends.
func serve(ctx context.Context, f *serveFlags, asJSON bool, stdin io.Reader, stdout, stderr io.Writer) (err error) {
	if f.removeDir != "" {
		// Who started the daemon removes it too, unless he was killed: then nobody
		// reads the log either, which must not be the daemon's end.
		signal.Ignore(syscall.SIGPIPE)
		defer os.RemoveAll(f.removeDir)
	}
	cfg, err := f.config(stderr)
	if err != nil {
		return err
	}
	listeners, err := f.listen(ctx)
	if err != nil {
		return err
	}
	var shared []listener // for guests with shared buffers
	if cfg.Buffers != nil {
		if shared, err = f.shared.listeners(ctx); err != nil {
			closeAll(listeners)
			return err
		}
	}
	for _, ln := range listeners {
		cfg.Addresses = append(cfg.Addresses, ln.address)
	}
	web, err := f.listenHTTP(ctx)
	if err != nil {
		closeAll(listeners, shared)
		return err
	}
	// Everything that can be wrong with the command line has been found: the
	// driver is started last.
	srv, err := server.New(ctx, cfg)
	if err != nil {
		closeAll(listeners, web, shared)
		return err
	}

	if f.vramDevice != "" && !srv.Tiers().Has(memspan.VRAM) {
		// Without a device the server goes on, but not without the one that
		// was asked for.
		closeAll(listeners, web, shared)
		return errors.Join(fmt.Errorf("--vram-device %s: there is no such device here; see what there is: memspan doctor", f.vramDevice), srv.Shutdown(ctx))
	}

	ctx, stop := context.WithCancel(ctx)
	defer stop()
	if f.untilEOF {
		// The read may outlive serve: nothing can end it but its other side.
		go func() {
			io.Copy(io.Discard, stdin)
			stop()
		}()
	}
	var group errgroup.Group
	for _, ln := range listeners {
		group.Go(func() error {
			defer stop() // one dead listener ends all
			return unlessStopped(ctx, srv.Serve(ctx, ln.Listener))
		})
	}
	for _, ln := range web {
		group.Go(func() error {
			defer stop()
			return serveHTTP(ctx, srv, ln, cfg.Logger)
		})
	}
	for _, ln := range shared {
		group.Go(func() error {
			defer stop()
			return unlessStopped(ctx, srv.ServeBuffers(ctx, ln.Listener))
		})
	}
	if err = f.announce(cfg, slices.Concat(listeners, web), shared, asJSON, stdout, stderr); err != nil {
		stop()
	}
	notify(cfg.Logger, "READY=1")
	<-ctx.Done()
	cfg.Logger.Info("stopping")
	notify(cfg.Logger, "STOPPING=1")
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
	defer cancel()
	return errors.Join(err, srv.Shutdown(grace), group.Wait())
}

func closeAll(lists ...[]listener) {
	for _, ln := range slices.Concat(lists...) {
		ln.Close()
	}
}

// buffers turns the flags into the configuration of shared buffers; nil: there
// are to be none.
func (f *serveFlags) buffers() (*server.BufferConfig, error) {
	s := &f.shared
	if f.trustSpans && len(s.trust) == 0 {
		return nil, usagef("--shared-trust-spans is for guests that --shared-trust lets in: add --shared-trust CIDR")
	}
	if s.dir == "" && s.socket == "" && len(s.listen) == 0 {
		if len(s.trust) > 0 || len(s.translate) > 0 || s.maxBuffer != 0 || s.maxCopies != 0 {
			return nil, usagef("--shared-trust, --translate, --shared-max-buffer and --shared-max-copies are for a host of shared buffers: add --shared-dir DIRECTORY")
		}
		return nil, nil
	}
	if s.socket == "" && f.socket != "" { // beside the daemon's
		s.socket = filepath.Join(filepath.Dir(strings.TrimPrefix(f.socket, "unix:")), filepath.Base(sharedbuf.DefaultAddress()))
	}
	config, err := s.config()
	if err != nil {
		return nil, err
	}
	return &server.BufferConfig{Host: config, TrustSpans: f.trustSpans}, nil
}

// unlessStopped drops what a listener says that was told to stop before it began.
func unlessStopped(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// config turns the flags into the server's configuration.
func (f *serveFlags) config(stderr io.Writer) (server.Config, error) {
	token, err := dial.ReadToken(f.tokenFile)
	if err != nil {
		return server.Config{}, err
	}
	if f.ioTimeout <= 0 {
		return server.Config{}, usagef("--io-timeout %v: want a positive duration, like 30s", f.ioTimeout)
	}
	logOptions := &slog.HandlerOptions{Level: f.logLevel}
	var handler slog.Handler = slog.NewTextHandler(stderr, logOptions)
	if f.logJSON {
		handler = slog.NewJSONHandler(stderr, logOptions)
	}
	cfg := server.Config{
		Data:       f.data,
		DataBudget: int64(f.dataBudget),
		HostBudget: int64(f.hostBudget),
		Token:      token,

		SurfaceBudget: int64(f.surfaces),
		IOTimeout:     f.ioTimeout,
		Logger:        slog.New(handler),
	}
	for _, property := range f.hide {
		if property != "host-visible" && property != "host-coherent" {
			return server.Config{}, usagef("--vram-hide %s: want host-visible or host-coherent", property)
		}
	}
	if cfg.Vulkan, err = f.vulkan.config(); err != nil {
		return server.Config{}, err
	}
	if cfg.Buffers, err = f.buffers(); err != nil {
		return server.Config{}, err
	}
	if !f.noVRAM {
		cfg.VRAM = &vram.Config{
			Device:           f.vramDevice,
			Budget:           int64(f.vramBudget),
			HideHostVisible:  slices.Contains(f.hide, "host-visible"),
			HideHostCoherent: slices.Contains(f.hide, "host-coherent"),
			Logger:           cfg.Logger,
		}
	}
	return cfg, nil
}

// announce says where the daemon can be reached.
func (f *serveFlags) announce(cfg server.Config, listeners, shared []listener, asJSON bool, stdout, stderr io.Writer) error {
	said := struct {
		Addresses []string `json:"addresses"`
		Shared    []string `json:"shared_addresses,omitempty"` // for guests
		PID       int      `json:"pid"`
	}{PID: os.Getpid()}
	say := func(what string, list []listener) (addresses []string) {
		for _, ln := range list {
			addresses = append(addresses, ln.address)
			if f.logJSON {
				cfg.Logger.Info(what, "address", ln.address)
			} else {
				fmt.Fprintf(stderr, "memspan: %s on %s\n", what, ln.address)
			}
		}
		return addresses
	}
	said.Addresses = say("listening", listeners)
	said.Shared = say("listening for guests", shared)
	if cfg.Buffers != nil {
		warnOfTrust(cfg.Buffers.Host, cfg.Buffers.TrustSpans, stderr)
	}
	if !asJSON {
		return nil
	}
	return printJSON(stdout, said)
}

// notify tells a service manager how the daemon is doing, as sd_notify(3)
// does. Without one it does nothing; one that does not listen is no reason to
// stop.
func notify(log *slog.Logger, state string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	conn, err := net.Dial("unixgram", path)
	if err == nil {
		_, err = conn.Write([]byte(state))
		conn.Close()
	}
	if err != nil {
		log.Warn("cannot tell the service manager ($NOTIFY_SOCKET)", "state", state, "error", err)
	}
}
