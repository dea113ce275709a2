// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/server"
)

// A way makes a copy of a file. Each is a command, and most have a server.
type way struct {
	name     string
	verifies string // what it does to know that the copy is right
	command  func(to string) *exec.Cmd
	server   int  // pid; 0: none
	noFile   bool // it makes none
	skipped  string

	seconds, cpu []float64
}

func (w *way) run(b *testing.B, source, to string) {
	b.Helper()
	var before, after time.Duration
	if w.server != 0 {
		before = cpuOf(b, w.server)
	}
	cmd := w.command(to)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	took := seconds(func() {
		if err := cmd.Run(); err != nil {
			b.Fatalf("%s: %v\n%s", w.name, err, said.String())
		}
	})
	if w.server != 0 {
		after = cpuOf(b, w.server)
	}
	w.seconds = append(w.seconds, took)
	w.cpu = append(w.cpu, (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime() + after - before).Seconds())
	if w.noFile {
		return
	}
	if err := sameFiles(source, to); err != nil {
		b.Fatalf("%s: %v", w.name, err)
	}
	check(b, os.Remove(to))
}

// sameFiles compares two files, whoever says that he has verified one.
func sameFiles(one, other string) error {
	f, err := os.Open(one)
	if err != nil {
		return err
	}
	defer f.Close()
	g, err := os.Open(other)
	if err != nil {
		return err
	}
	defer g.Close()
	p, q := make([]byte, chunk), make([]byte, chunk)
	for {
		n, err := io.ReadFull(f, p)
		m, _ := io.ReadFull(g, q)
		if !bytes.Equal(p[:n], q[:m]) {
			return errors.New("the copy is another file")
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// build builds a command of the module in dir.
func build(b *testing.B, dir, pkg string) (path string, err error) {
	b.Helper()
	path = filepath.Join(b.TempDir(), "command")
	ctx, cancel := context.WithTimeout(b.Context(), 5*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "go", "build", "-C", dir, "-o", path, pkg).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, bytes.TrimSpace(out))
	}
	return path, nil
}

// BenchmarkAlternatives makes a file in RAM of a file of 1 GiB in RAM, by what a user
// may pick, each as a command and its server, and prints the table.
func BenchmarkAlternatives(b *testing.B) {
	const size = 1 << 30
	source := tmpfsFile(b, region(size)).Name()
	dir := filepath.Dir(source)
	ways := []*way{
		{name: "cp", verifies: "no", command: func(to string) *exec.Cmd { return exec.Command("cp", source, to) }},
		rsyncWay(b, source),
	}
	certificate := b.TempDir()
	_, _, err := server.SelfSigned(certificate)
	check(b, err)
	ways = append(ways, rangesWays(b, source, certificate)...)
	ways = append(ways, grpcWays(b, source, certificate)...)
	ours, exposing := ourWays(b, source)
	ways = append(ways, ours...)
	for b.Loop() {
		for _, w := range ways {
			if w.skipped == "" {
				w.run(b, source, filepath.Join(dir, "copy"))
			}
		}
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(exposing.Seconds(), "expose-once-s")
	// Not by b.Log, which cuts the output of benchmarks.
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\n1 GiB by\tseconds\tMB/s\ttimes cp's rate\tCPU seconds\tverified")
	for _, w := range ways {
		if w.skipped != "" {
			continue
		}
		ratios := make([]float64, len(w.seconds))
		for i, s := range w.seconds {
			ratios[i] = ways[0].seconds[i] / s
		}
		s := median(w.seconds)
		fmt.Fprintf(t, "%s\t%.3f\t%.0f\t%.2f (%.2f–%.2f)\t%.2f\t%s\n",
			w.name, s, size/1e6/s, median(ratios), slices.Min(ratios), slices.Max(ratios), median(w.cpu), w.verifies)
	}
	check(b, t.Flush())
	for _, w := range ways {
		if w.skipped != "" {
			fmt.Printf("%s: skipped: %s\n", w.name, w.skipped)
		}
	}
}

// ourWays exposes the file, which takes exposing, to pull it by the command.
func ourWays(b *testing.B, source string) (ways []*way, exposing time.Duration) {
	b.Helper()
	a, pid := child(b, "server")
	command, err := build(b, "../..", "./cmd/memspan")
	check(b, err)
	f, err := os.Open(source)
	check(b, err)
	defer f.Close()
	start := time.Now()
	e, err := dial(b, a, "unix", memspan.Options{}).ExposeFile(b.Context(), f, memspan.ExposeOptions{})
	check(b, err)
	exposing = time.Since(start)
	pulls := func(name, verifies, transport string) *way {
		text, err := at(a, e.Ticket, transport).Text()
		check(b, err)
		return &way{name: name, verifies: verifies, server: pid, command: func(to string) *exec.Cmd {
			return exec.Command(command, "pull", text, "-o", to)
		}}
	}
	mapped := pulls("memspan pull --exec, mapped", "no: sealed memory", "unix")
	text, err := at(a, e.Ticket, "unix").Text()
	check(b, err)
	mapped.noFile = true
	mapped.command = func(string) *exec.Cmd { return exec.Command(command, "pull", text, "--exec", "true") }
	return []*way{
		pulls("memspan pull, TLS", "BLAKE3", "tls"),
		pulls("memspan pull, TCP", "BLAKE3", "tcp"),
		pulls("memspan pull, one machine", "no: sealed memory", "unix"),
		mapped,
	}, exposing
}

// rangesWays are Go's file server, asked for ranges in parallel, without TLS and with it.
func rangesWays(b *testing.B, source, certificate string) []*way {
	b.Helper()
	b.Setenv(fileEnv, filepath.Dir(source))
	b.Setenv(certEnv, certificate)
	a, pid := child(b, "http")
	by := func(name, address string) *way {
		return &way{name: name, verifies: "no", server: pid, command: func(to string) *exec.Cmd {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), roleEnv+"=ranges", fileEnv+"="+to, addressEnv+"="+address+"/"+filepath.Base(source))
			return cmd
		}}
	}
	return []*way{by("HTTP ranges", "http://"+a.TCP), by("HTTP ranges, TLS", "https://"+a.TLS)}
}

// grpcWays are a stream of messages, by a module of its own, without TLS and with it.
func grpcWays(b *testing.B, source, certificate string) []*way {
	b.Helper()
	command, err := build(b, "grpcpeer", ".")
	if err != nil {
		lines := strings.Split(err.Error(), "\n")
		return []*way{{name: "gRPC stream", skipped: lines[0] + " … " + lines[len(lines)-1]}}
	}
	by := func(name string, secure ...string) *way {
		cmd := exec.Command(command, append([]string{"serve", source}, secure...)...)
		cmd.Stderr = os.Stderr
		in, err := cmd.StdinPipe()
		check(b, err)
		out, err := cmd.StdoutPipe()
		check(b, err)
		check(b, cmd.Start())
		b.Cleanup(func() {
			in.Close()
			cmd.Wait()
		})
		address, err := bufio.NewReader(out).ReadString('\n')
		check(b, err)
		return &way{name: name, verifies: "no", server: cmd.Process.Pid, command: func(to string) *exec.Cmd {
			return exec.Command(command, append([]string{"get", strings.TrimSpace(address), to}, secure...)...)
		}}
	}
	return []*way{by("gRPC stream"), by("gRPC stream, TLS", certificate)}
}

// rsyncWay is rsync's daemon. It sends whole files: there is no old copy to compare.
func rsyncWay(b *testing.B, source string) *way {
	b.Helper()
	w := &way{name: "rsync daemon", verifies: "a sum of the file"}
	command, err := exec.LookPath("rsync")
	if err != nil {
		w.skipped = err.Error()
		return w
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0") // a port that is free now
	check(b, err)
	_, port, err := net.SplitHostPort(ln.Addr().String())
	check(b, err)
	check(b, ln.Close())
	config := filepath.Join(b.TempDir(), "rsyncd.conf")
	check(b, os.WriteFile(config, fmt.Appendf(nil, "address = 127.0.0.1\nport = %s\nuse chroot = no\nuid = %d\ngid = %d\n[files]\npath = %s\n", port, os.Getuid(), os.Getgid(), filepath.Dir(source)), 0o600))
	cmd := exec.Command(command, "--daemon", "--no-detach", "--config="+config)
	check(b, cmd.Start())
	b.Cleanup(func() {
		cmd.Process.Signal(os.Interrupt)
		cmd.Wait()
	})
	w.server = cmd.Process.Pid
	w.command = func(to string) *exec.Cmd {
		return exec.Command(command, "--inplace", "rsync://127.0.0.1:"+port+"/files/"+filepath.Base(source), to)
	}
	for range 100 { // it says nothing when it listens
		if c, err := net.Dial("tcp", "127.0.0.1:"+port); err == nil {
			c.Close()
			return w
		}
		time.Sleep(50 * time.Millisecond)
	}
	w.skipped = "rsync --daemon does not listen"
	return w
}
