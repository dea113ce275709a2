// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
)

const (
	message = 1 << 20
	window  = 16 << 20 // of a stream, and of a connection: no message waits for leave
	buffer  = 1 << 20
	method  = "/bench.File/Get"
)

// raw is the codec: a mem.Buffer goes out as it is, and what comes in goes to an
// io.Writer.
type raw struct{}

func (raw) Name() string { return "raw" }

func (raw) Marshal(v any) (mem.BufferSlice, error) {
	b, ok := v.(mem.Buffer)
	if !ok {
		return nil, fmt.Errorf("cannot send a %T", v)
	}
	return mem.BufferSlice{b}, nil
}

func (raw) Unmarshal(data mem.BufferSlice, v any) error {
	w, ok := v.(io.Writer)
	if !ok {
		return fmt.Errorf("cannot receive to a %T", v)
	}
	for _, b := range data {
		if _, err := w.Write(b.ReadOnlyData()); err != nil {
			return err
		}
	}
	return nil
}

var stream = grpc.StreamDesc{StreamName: "Get", ServerStreams: true}

// peer returns how a side of the connection with the certificate in dir speaks TLS; nil: it
// does not.
func peer(dir string, server bool) (*tls.Config, error) {
	if dir == "" {
		return nil, nil
	}
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "server.crt"), filepath.Join(dir, "server.key"))
	if err != nil {
		return nil, err
	}
	config := &tls.Config{MinVersion: tls.VersionTLS13}
	if server {
		config.Certificates = []tls.Certificate{cert}
		return config, nil
	}
	config.ServerName, config.RootCAs = cert.Leaf.DNSNames[0], x509.NewCertPool()
	config.RootCAs.AddCert(cert.Leaf)
	return config, nil
}

func transport(config *tls.Config) credentials.TransportCredentials {
	if config == nil {
		return insecure.NewCredentials()
	}
	return credentials.NewTLS(config)
}

func serve(path, dir string) error {
	config, err := peer(dir, true)
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	srv := grpc.NewServer(grpc.Creds(transport(config)), grpc.ForceServerCodecV2(raw{}), grpc.WriteBufferSize(buffer), grpc.ReadBufferSize(buffer))
	get := stream
	get.Handler = func(_ any, s grpc.ServerStream) error { return send(s, path) }
	srv.RegisterService(&grpc.ServiceDesc{ServiceName: "bench.File", HandlerType: (*any)(nil), Streams: []grpc.StreamDesc{get}}, nil)
	fmt.Println(ln.Addr())
	go func() {
		bufio.NewReader(os.Stdin).ReadByte()
		srv.Stop()
	}()
	return srv.Serve(ln)
}

func send(s grpc.ServerStream, path string) error {
	if err := s.RecvMsg(io.Discard); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	pool := mem.DefaultBufferPool()
	for {
		p := pool.Get(message)
		n, err := io.ReadFull(f, *p)
		if errors.Is(err, io.EOF) {
			pool.Put(p)
			return nil
		}
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			pool.Put(p)
			return err
		}
		*p = (*p)[:n]
		if err := s.SendMsg(mem.NewBuffer(p, pool)); err != nil {
			return err
		}
	}
}

func get(ctx context.Context, address, path, dir string) (err error) {
	config, err := peer(dir, false)
	if err != nil {
		return err
	}
	c, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(transport(config)),
		grpc.WithInitialWindowSize(window), grpc.WithInitialConnWindowSize(window), grpc.WithReadBufferSize(buffer))
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := c.NewStream(ctx, &stream, method, grpc.ForceCodecV2(raw{}))
	if err != nil {
		return err
	}
	if err := s.SendMsg(mem.SliceBuffer{}); err != nil {
		return err
	}
	if err := s.CloseSend(); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for {
		if err := s.RecvMsg(f); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

func main() {
	var err error
	args := append(os.Args[1:], "") // the directory, if it is left out
	switch {
	case len(args) >= 3 && len(args) <= 4 && args[0] == "serve":
		err = serve(args[1], args[2])
	case len(args) >= 4 && len(args) <= 5 && args[0] == "get":
		err = get(context.Background(), args[1], args[2], args[3])
	default:
		err = errors.New("usage: grpcpeer serve FILE [DIR] | grpcpeer get ADDRESS FILE [DIR]")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "grpcpeer:", err)
		os.Exit(1)
	}
}
