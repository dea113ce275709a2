// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"time"

	"github.com/memspan/memspan/server"
	"github.com/memspan/memspan/surface"
)

const (
	size  = 64 << 20
	chunk = surface.DefaultChunk
)

// What a process is told by its environment: its stage, and where the server is.
const (
	stageEnv  = "PIPELINE_STAGE"
	serverEnv = "PIPELINE_SERVER"
)

// stages say what they did on report, and take and give tickets, one a line.
var stages = []struct {
	name string
	run  func(ctx context.Context, in io.Reader, out, report io.Writer) error
}{
	{"make", makeData},
	{"sum", sumChunks},
	{"verify", verify},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "pipeline:", err)
		os.Exit(1)
	}
}

// run is one stage, or all of the pipeline.
func run(ctx context.Context, report *os.File) error {
	name := os.Getenv(stageEnv)
	if name == "" {
		return pipeline(ctx, report)
	}
	for _, s := range stages {
		if s.name == name {
			// Standard output is the way to the next stage.
			if err := s.run(ctx, os.Stdin, os.Stdout, os.Stderr); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		}
	}
	return fmt.Errorf("%s=%s is no stage", stageEnv, name)
}

// pipeline starts a server and the stages, and waits for all of them.
func pipeline(ctx context.Context, report *os.File) error {
	dir, err := os.MkdirTemp("", "memspan-pipeline-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "s")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	address := "unix:" + socket
	srv, err := server.New(ctx, server.Config{Addresses: []string{address}})
	if err != nil {
		ln.Close()
		return err
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ctx, ln) }()
	defer func() {
		// A session that is still there is not waited for.
		done, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		srv.Shutdown(done)
		<-served
	}()
	return start(ctx, address, report)
}

// start runs the stages as processes, each of which reads what the one before it
// writes. One that fails ends its pipes, and so the others.
func start(ctx context.Context, address string, report *os.File) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	var in *os.File
	var started []*exec.Cmd
	var failures []error
	for i, s := range stages {
		cmd := exec.CommandContext(ctx, self)
		cmd.Env = append(os.Environ(), stageEnv+"="+s.name, serverEnv+"="+address)
		cmd.Stderr = report
		var next, out *os.File
		if in != nil {
			cmd.Stdin = in
		}
		if i+1 < len(stages) {
			if next, out, err = os.Pipe(); err != nil {
				failures = append(failures, err)
				break
			}
			cmd.Stdout = out
		}
		err := cmd.Start()
		in.Close() // the processes have them now
		out.Close()
		in = next
		if err != nil {
			failures = append(failures, err)
			break
		}
		started = append(started, cmd)
	}
	in.Close()
	for i, cmd := range started {
		if err := cmd.Wait(); err != nil {
			failures = append(failures, fmt.Errorf("stage %s: %w", stages[i].name, err))
		}
	}
	return errors.Join(failures...)
}
