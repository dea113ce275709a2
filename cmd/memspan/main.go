// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first signal asks for an orderly end, a second one ends the process.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run carries out one command line and returns its exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil || nobodyReads(err) { // whoever read us has had enough
		return 0
	}
	var program *exitError
	if errors.As(err, &program) {
		return program.code
	}
	if errors.Is(err, errReported) {
		return 1
	}
	f := describe(err, ctx.Err() != nil)
	if wantsJSON(root, args) {
		printFailure(stderr, f)
	} else {
		fmt.Fprintln(stderr, "memspan:", shown(strings.TrimPrefix(f.text, "memspan: ")))
		if f.Code == codeUsage {
			fmt.Fprintf(stderr, "Run '%s --help' for how to use it.\n", cmd.CommandPath())
		}
		if f.Hint != "" {
			fmt.Fprintln(stderr, f.Hint)
		}
	}
	if f.Code == codeUsage {
		return 2
	}
	return 1
}

// errReported ends a command whose output has said already what is wrong.
var errReported = errors.New("reported")

// An exitError ends a command as the program that it ran ended, which has said
// itself what is wrong.
type exitError struct{ code int }

func (e *exitError) Error() string { return fmt.Sprintf("exit status %d", e.code) }

// exitOf turns the error of a program that was run into the exitError that
// says how it ended, as shells count: 128 and the signal's number if one killed
// it. Other errors stay as they are.
func exitOf(err error) error {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return &exitError{128 + int(status.Signal())}
	}
	return &exitError{exit.ExitCode()}
}

// A usageError is a command line that cannot be meant.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}
