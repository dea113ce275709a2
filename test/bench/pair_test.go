// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/server"
)

// pair times ours and the baseline alternately, b.N times each, and reports
// the median of each and of their ratios with its spread. Bytes is what one
// run moves; 0 reports microseconds in place of megabytes per second. The
// ratio is of rates: above 1, ours is faster.
func pair(b *testing.B, bytes int64, ours, baseline func()) {
	b.Helper()
	pairCleaned(b, bytes, ours, baseline, func() {})
}

// pairCleaned is pair with a clean that is called after each run, and not timed.
func pairCleaned(b *testing.B, bytes int64, ours, baseline, clean func()) {
	b.Helper()
	var mine, theirs []time.Duration
	var ratios []float64
	timed := func(f func()) time.Duration {
		start := time.Now()
		f()
		took := time.Since(start)
		clean()
		return took
	}
	timed(ours)
	timed(baseline)
	for i := 0; b.Loop(); i++ {
		var m, t time.Duration
		if i%2 == 0 {
			m = timed(ours)
			t = timed(baseline)
		} else {
			t = timed(baseline)
			m = timed(ours)
		}
		mine, theirs = append(mine, m), append(theirs, t)
		ratios = append(ratios, t.Seconds()/m.Seconds())
	}
	report := func(name string, d []time.Duration) {
		m := median(d)
		if bytes > 0 {
			b.ReportMetric(float64(bytes)/1e6/m.Seconds(), name+"-MB/s")
			return
		}
		b.ReportMetric(float64(m.Nanoseconds())/1e3, name+"-µs")
	}
	b.ReportMetric(0, "ns/op") // the sum of both means nothing
	report("ours", mine)
	report("base", theirs)
	b.ReportMetric(median(ratios), "ratio")
	b.ReportMetric(slices.Min(ratios), "ratio-min")
	b.ReportMetric(slices.Max(ratios), "ratio-max")
}

func median[T time.Duration | float64](v []T) T {
	v = slices.Clone(v)
	slices.Sort(v)
	return v[len(v)/2]
}

// What a child process of a benchmark is, and what it says when it is ready.
const roleEnv = "MEMSPAN_BENCH_ROLE"

type addresses struct {
	Socket, TCP, TLS, Fingerprint string
}

func TestMain(m *testing.M) {
	switch os.Getenv(roleEnv) {
	case "":
		os.Exit(m.Run())
	case "server":
		serve()
	case "raw":
		serveRaw()
	case "reader":
		readMapped()
	case "http":
		serveHTTP()
	case "ranges":
		getRanges()
	}
}

const token = "benchmark"

func fatal(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func listen(network, address string) net.Listener {
	ln, err := net.Listen(network, address)
	if err != nil {
		fatal(err)
	}
	return ln
}

// ready tells the parent where to connect, and returns when it is gone.
func ready(a addresses) {
	json.NewEncoder(os.Stdout).Encode(a)
	bufio.NewReader(os.Stdin).ReadByte()
}

func serve() {
	ctx := context.Background()
	srv, err := server.New(ctx, server.Config{Token: token, Data: os.Getenv(dataEnv)})
	if err != nil {
		fatal(err)
	}
	dir, err := os.MkdirTemp("", "memspan-bench-")
	if err != nil {
		fatal(err)
	}
	defer os.RemoveAll(dir)
	cert, fingerprint, err := server.SelfSigned(dir)
	if err != nil {
		fatal(err)
	}
	a := addresses{Socket: filepath.Join(dir, "s"), Fingerprint: fingerprint}
	unix, tcp, secure := listen("unix", a.Socket), listen("tcp", "127.0.0.1:0"), listen("tcp", "127.0.0.1:0")
	a.TCP, a.TLS = tcp.Addr().String(), secure.Addr().String()
	go srv.Serve(ctx, unix)
	go srv.Serve(ctx, tcp)
	go srv.Serve(ctx, server.TLSListener(secure, &tls.Config{Certificates: []tls.Certificate{cert}}))
	ready(a)
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	srv.Shutdown(ctx)
}

// child starts this binary in a role. It ends with the benchmark.
func child(b *testing.B, role string) (a addresses, pid int) {
	b.Helper()
	a, pid, stop := start(b, role)
	b.Cleanup(stop)
	return a, pid
}

// start is child for those who end it themselves.
func start(b *testing.B, role string) (a addresses, pid int, stop func()) {
	b.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleEnv+"="+role)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	stop = func() {
		in.Close()
		cmd.Wait()
	}
	if err := json.NewDecoder(out).Decode(&a); err != nil {
		stop()
		b.Fatal(err)
	}
	return a, cmd.Process.Pid, stop
}

// dial connects to a server over one of its transports.
func dial(b *testing.B, a addresses, transport string, opts memspan.Options) *memspan.Client {
	b.Helper()
	opts.Token = token
	address := map[string]string{
		"unix": "unix:" + a.Socket,
		"tcp":  "tcp://" + a.TCP,
		"tls":  "tls://" + a.TLS + "#" + a.Fingerprint,
	}[transport]
	c, err := memspan.Dial(b.Context(), address, &opts)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	return c
}

func alloc(b *testing.B, c *memspan.Client, size int64) *memspan.Span {
	b.Helper()
	s, err := c.Alloc(b.Context(), memspan.SpanConfig{Size: size})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	return s
}

// region returns shared memory whose pages are present, as a mapped buffer
// has it.
func region(size int64) []byte {
	r, err := memfd.Create("bench", size)
	if err != nil {
		fatal(err)
	}
	p := r.Bytes()[:size]
	for i := range p {
		p[i] = byte(i * 7)
	}
	return p
}

// insecure accepts the raw baseline's certificate, made by its own process.
func insecure() *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, RootCAs: x509.NewCertPool()}
}

func seconds(f func()) float64 {
	start := time.Now()
	f()
	return time.Since(start).Seconds()
}
