// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/memspan/memspan/server"
)

// Bounds on what HTTP clients may take their time for.
const (
	httpHeaderTime = 10 * time.Second
	httpIdleTime   = time.Minute
	httpEndTime    = 5 * time.Second
	httpHeaderSize = 32 << 10 // bytes
)

// listenHTTP opens the listeners of --http: on loopback addresses plain, elsewhere
// encrypted, because paths have tickets.
func (f *serveFlags) listenHTTP(ctx context.Context) (open []listener, err error) {
	defer func() {
		if err != nil {
			for _, ln := range open {
				ln.Close()
			}
		}
	}()
	for _, address := range f.http {
		addr, err := net.ResolveTCPAddr("tcp", address)
		if err != nil {
			return open, usagef("--http %s: %w; want HOST:PORT", address, err)
		}
		if addr.IP == nil {
			addr.IP = net.IPv6unspecified // what an empty host means to net.Listen
		}
		var lc net.ListenConfig
		ln, err := lc.Listen(ctx, "tcp", addr.String())
		if err != nil {
			return open, fmt.Errorf("--http %s: %w", address, err)
		}
		_, port, err := net.SplitHostPort(ln.Addr().String())
		if err != nil {
			ln.Close()
			return open, fmt.Errorf("--http %s: %w", address, err)
		}
		at := net.JoinHostPort(dialHost(address, addr), port)
		if addr.IP.IsLoopback() && !f.tls {
			open = append(open, listener{Listener: ln, address: "http://" + at})
			continue
		}
		config, _, err := f.tlsConfig()
		if err != nil {
			ln.Close()
			return open, err
		}
		config.ClientAuth = tls.NoClientCert // the ticket is what lets in
		config.NextProtos = []string{"http/1.1"}
		open = append(open, listener{ln, "https://" + at, config})
	}
	return open, nil
}

// serveHTTP serves surfaces over HTTP until ctx ends.
func serveHTTP(ctx context.Context, srv *server.Server, ln listener, log *slog.Logger) error {
	web := &http.Server{
		Handler:           srv.Handler(),
		ReadHeaderTimeout: httpHeaderTime,
		IdleTimeout:       httpIdleTime,
		MaxHeaderBytes:    httpHeaderSize,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	var ended sync.WaitGroup
	ended.Add(1)
	stop := context.AfterFunc(ctx, func() {
		defer ended.Done()
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), httpEndTime)
		defer cancel()
		if web.Shutdown(grace) != nil { // their writes fail now
			web.Close()
		}
	})
	guests := srv.GuestListener(ln.Listener) // counted before a handshake costs anything
	if ln.config != nil {
		guests = tls.NewListener(guests, ln.config)
	}
	err := web.Serve(guests)
	if !stop() {
		ended.Wait()
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}
