// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"

	"github.com/memspan/memspan/server"
	"golang.org/x/sync/errgroup"
)

// What the roles "http" and "ranges" are told.
const (
	fileEnv    = "MEMSPAN_BENCH_FILE" // what is served, or made
	addressEnv = "MEMSPAN_BENCH_ADDRESS"
	certEnv    = "MEMSPAN_BENCH_CERTIFICATE" // the directory where it is
)

// serveHTTP is Go's file server.
func serveHTTP() {
	cert, _, err := server.SelfSigned(os.Getenv(certEnv))
	if err != nil {
		fatal(err)
	}
	files := http.FileServer(http.Dir(os.Getenv(fileEnv)))
	plain, secure := listen("tcp", "127.0.0.1:0"), listen("tcp", "127.0.0.1:0")
	go http.Serve(plain, files)
	go http.Serve(tls.NewListener(secure, &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}}), files)
	ready(addresses{TCP: plain.Addr().String(), TLS: secure.Addr().String()})
}

// getRanges downloads a file as downloaders do: ranges of it by several connections.
func getRanges() {
	if err := download(context.Background(), os.Getenv(addressEnv), os.Getenv(fileEnv)); err != nil {
		fatal(err)
	}
}

func download(ctx context.Context, url, path string) error {
	const connections, piece = 4, 16 << 20
	cert, _, err := server.SelfSigned(os.Getenv(certEnv))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AddCert(cert.Leaf)
	client := &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: connections, ReadBufferSize: 64 << 10, DisableCompression: true,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: cert.Leaf.DNSNames[0]},
	}}
	head, err := client.Head(url)
	if err != nil {
		return err
	}
	head.Body.Close()
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(head.ContentLength); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	offsets := make(chan int64)
	group.Go(func() error {
		defer close(offsets)
		for off := int64(0); off < head.ContentLength; off += piece {
			select {
			case offsets <- off:
			case <-ctx.Done():
				return nil
			}
		}
		return nil
	})
	for range connections {
		group.Go(func() error {
			buf := make([]byte, chunk)
			for off := range offsets {
				if err := getRange(ctx, client, url, f, off, min(piece, head.ContentLength-off), buf); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return f.Close()
}

func getRange(ctx context.Context, client *http.Client, url string, f *os.File, off, n int64, buf []byte) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	r.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+n-1))
	answer, err := client.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusPartialContent || answer.ContentLength != n {
		return fmt.Errorf("%s: %s, %d bytes, not %d", url, answer.Status, answer.ContentLength, n)
	}
	// Without WriterTo and ReaderFrom, which would take smaller pieces.
	_, err = io.CopyBuffer(struct{ io.Writer }{io.NewOffsetWriter(f, off)}, struct{ io.Reader }{answer.Body}, buf)
	return err
}
