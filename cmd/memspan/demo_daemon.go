// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// A daemon is a 'memspan serve' of one command's own, in a temporary directory.
type daemon struct {
	addresses []string
	token     string

	dir   string
	cmd   *exec.Cmd
	stdin io.Closer // the daemon stops when it is closed, if only by our death
	log   *bytes.Buffer
}

// startDaemon starts a daemon with args beside its socket and waits until it
// listens. It runs in its directory, where the file "token" holds its token.
func startDaemon(ctx context.Context, args ...string) (_ *daemon, err error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	d := &daemon{token: rand.Text(), log: new(bytes.Buffer)}
	if d.dir, err = os.MkdirTemp("", "memspan-*"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(d.dir)
		}
	}()
	if err := os.WriteFile(filepath.Join(d.dir, "token"), []byte(d.token), 0o600); err != nil {
		return nil, err
	}
	d.cmd = exec.Command(program, append([]string{"serve", "--json", "--until-eof", "--remove-dir", d.dir, "--log-level", "warn",
		"--socket", filepath.Join(d.dir, "memspan.sock")}, args...)...)
	d.cmd.Dir = d.dir
	// What is typed at the terminal is for the command, which ends the daemon
	// when it is done.
	d.cmd.SysProcAttr = ownGroup()
	d.cmd.Stderr = d.log
	if d.stdin, err = d.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := d.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := d.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start a daemon: %w", err)
	}
	interrupt := context.AfterFunc(ctx, func() { d.stdin.Close() })
	defer interrupt()
	var hello struct {
		Addresses []string `json:"addresses"`
	}
	if err := json.NewDecoder(stdout).Decode(&hello); err != nil {
		stopErr := d.stop()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("the daemon of its own did not start: %w", errors.Join(err, stopErr))
	}
	d.addresses = hello.Addresses
	return d, nil
}

// stop ends the daemon and removes its directory. The error holds what the
// daemon logged if it did not end well.
func (d *daemon) stop() error {
	d.stdin.Close()
	// It gives its clients a grace, and then must end.
	kill := time.AfterFunc(2*shutdownGrace, func() { d.cmd.Process.Kill() })
	defer kill.Stop()
	err := d.cmd.Wait()
	if err != nil {
		err = fmt.Errorf("the daemon of its own: %w\n%s", err, bytes.TrimSpace(d.log.Bytes()))
	}
	return errors.Join(err, os.RemoveAll(d.dir))
}
