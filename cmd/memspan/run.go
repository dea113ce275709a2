// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/wire/dial"
)

func newRun(opts *options) *cobra.Command {
	var server, manifest string
	cmd := &cobra.Command{
		Use:   "run [flags] [--] APP [ARG...]",
		Short: "Run a Vulkan application on a GPU over there",
		Long: `Run starts a program whose Vulkan device is the daemon's: on this machine or on
another, without the program knowing. Its commands are carried out by a worker
process beside the GPU; what it maps is mapped in place on one machine, and kept
in step over a network.

Without --server it asks this user's daemon, and if none answers it starts one
that ends with the program. --server HOST:PORT is tls://HOST:PORT, or
tcp://HOST:PORT if the host is a loopback address and there is a token.

Signals are passed on to the program. Run exits as it does, with 128 and the
signal's number if one killed it, 127 if there is no such program, 126 if it
cannot be run.`,
		Example: `  memspan run -- vulkaninfo --summary
  memspan run --server gpu.example:7070#FINGERPRINT --token-file token -- ./app
  MEMSPAN_TRACE=- memspan run -- ./app`,
		Args: args(cobra.MinimumNArgs(1), "a program and its arguments"),
		RunE: func(cmd *cobra.Command, argv []string) error {
			return runApplication(cmd, opts, server, manifest, argv)
		},
	}
	flags := cmd.Flags()
	flags.SetInterspersed(false) // the program's flags are its own
	flags.StringVar(&server, "server", "", "the daemon's `address`, or HOST:PORT (default: that of --address, else a daemon on this machine)")
	flags.StringVar(&manifest, "icd", "", "`file`: the manifest of memspan's Vulkan driver (default: the one beside this program)")
	return cmd
}

func runApplication(cmd *cobra.Command, opts *options, server, manifest string, argv []string) (err error) {
	if server != "" && opts.address != "" {
		return usagef("--server and --address are two names of one thing; give one")
	}
	manifest, err = findDriver(manifest)
	if err != nil {
		return err
	}
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return cannotRun(cmd.ErrOrStderr(), err)
	}
	own := *opts
	own.tokenFile = cmp.Or(opts.tokenFile, os.Getenv(dial.TokenFileVariable))
	token := own.tokenFile != "" || os.Getenv(dial.TokenVariable) != ""
	own.address = dial.Complete(cmp.Or(server, os.Getenv(dial.ServerVariable), opts.daemon()), token)
	address, log, stop, err := own.reach(cmd.Context())
	if err != nil {
		return err
	}
	app := exec.Command(path, argv[1:]...)
	app.Args[0] = argv[0]
	app.Stdin, app.Stdout, app.Stderr = cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()
	app.Env, err = own.applicationEnvironment(address, manifest)
	if err == nil {
		err = runPassingSignals(app)
	}
	err = errors.Join(err, stop())
	var program *exitError
	switch {
	case errors.As(err, &program):
		showLog(cmd.ErrOrStderr(), log)
		return program
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.ENOEXEC):
		return cannotRun(cmd.ErrOrStderr(), err)
	}
	return err
}

// cannotRun says why there is no such program, and ends as shells do.
func cannotRun(stderr io.Writer, err error) error {
	fmt.Fprintln(stderr, "memspan:", err)
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return &exitError{127}
	}
	return &exitError{126}
}

// reach sees to it that a server answers. If none was named and none runs on
// this machine it starts one, which stop ends, with the log of its troubles.
func (o *options) reach(ctx context.Context) (address string, log *bytes.Buffer, stop func() error, err error) {
	client, err := o.dial(ctx)
	switch {
	case err == nil:
		// The application dials anew, and without knowing how to say what is
		// wrong.
		return o.address, new(bytes.Buffer), func() error { return nil }, client.Close()
	case o.address != "" || !errors.Is(err, memspan.ErrPeerLost):
		return "", nil, nil, err
	}
	d, err := startDaemon(ctx, "--no-vram")
	if err != nil {
		return "", nil, nil, err
	}
	return d.addresses[0], d.log, d.stop, nil
}

// applicationEnvironment returns the environment in which an application finds
// the driver, and the driver its server.
func (o *options) applicationEnvironment(address, manifest string) ([]string, error) {
	set := map[string]string{
		"VK_DRIVER_FILES":     manifest,
		"VK_ICD_FILENAMES":    manifest, // its name before 1.3.207
		"VK_ADD_DRIVER_FILES": "",
		dial.ServerVariable:   address,
	}
	for name, path := range map[string]string{
		dial.TokenFileVariable: o.tokenFile, dial.CAVariable: o.tlsCA, dial.CertVariable: o.tlsCert, dial.KeyVariable: o.tlsKey,
	} {
		if path == "" {
			continue
		}
		abs, err := filepath.Abs(path) // the application may go elsewhere
		if err != nil {
			return nil, err
		}
		set[name] = abs
	}
	env := slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		_, replaced := set[name]
		return replaced
	})
	for name, value := range set {
		if value != "" {
			env = append(env, name+"="+value)
		}
	}
	return env, nil
}

// runPassingSignals runs a program, passes on the signals that ask it to end,
// and those that mean what it likes, and returns how it ended.
func runPassingSignals(app *exec.Cmd) error {
	asked := slices.DeleteFunc(passedSignals(), signal.Ignored) // the program ignores them too, then
	signals := make(chan os.Signal, 16)
	if len(asked) > 0 {
		signal.Notify(signals, asked...)
		defer signal.Stop(signals)
	}
	if err := app.Start(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- app.Wait() }()
	for {
		select {
		case sig := <-signals:
			if typed := sig == syscall.SIGINT || sig == syscall.SIGQUIT; !typed || !inForeground() {
				app.Process.Signal(sig) // an error means that it has ended
			}
		case err := <-done:
			return exitOf(err)
		}
	}
}

// inForeground reports whether this process is one of those that the terminal
// sends what is typed as a signal: then it has sent it to the program too.
func inForeground() bool {
	// pid (name) state ppid pgrp session tty_nr tpgid; see proc(5).
	stat := readLine("/proc/self/stat")
	f := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	return len(f) > 5 && f[4] != "0" && f[2] == f[5]
}

// showLog shows what a daemon of its own has complained about.
func showLog(stderr io.Writer, log *bytes.Buffer) {
	for line := range strings.Lines(log.String()) {
		if !strings.HasPrefix(line, "memspan: listening on ") {
			fmt.Fprint(stderr, "memspan: daemon: ", line)
		}
	}
}
