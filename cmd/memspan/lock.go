// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/memspan/memspan"
)

func newLock(opts *options) *cobra.Command {
	var (
		shared, exclusive bool
		timeout           time.Duration
	)
	cmd := &cobra.Command{
		Use:   "lock SPAN -- COMMAND [ARGUMENT...]",
		Short: "Run a command while holding a span's lock",
		Long: `Lock waits for the lock of all of a span, runs the command, and gives the lock
back. Locks bind those who lock: get and put do not ask for them.

If the connection to the daemon is lost while the command runs, so is the lock:
the command gets SIGTERM, and lock fails with the code lock-lost.

Exit status: that of the command; 128 and its number if a signal ended it.`,
		Example: `  memspan lock weights -- sh -c 'memspan get weights | train | memspan put - --name weights --replace'
  memspan lock weights --shared -- sha256sum model.bin
  memspan lock weights --timeout 5s -- true`,
		ValidArgsFunction: opts.spanNames(1),
	}
	flags := cmd.Flags()
	flags.BoolVar(&exclusive, "exclusive", false, "keep all others out (the default)")
	flags.BoolVar(&shared, "shared", false, "keep out those only that lock exclusively")
	flags.DurationVar(&timeout, "timeout", 0, "give up after waiting this `duration` for the lock (default: wait without end)")
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if cmd.ArgsLenAtDash() != 1 || len(args) < 2 {
			return usagef("%s takes a span's name or id, then -- and the command to run", cmd.CommandPath())
		}
		if shared && exclusive {
			return usagef("--shared and --exclusive: want one of them")
		}
		if timeout < 0 {
			return usagef("--timeout %v: want a positive duration, like 5s", timeout)
		}
		return nil
	}
	cmd.RunE = opts.withClient(func(cmd *cobra.Command, client *memspan.Client, args []string) error {
		span, err := client.Open(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		kind := memspan.Exclusive
		if shared {
			kind = memspan.Shared
		}
		lock, err := await(cmd.Context(), span, kind, timeout)
		if err != nil {
			return err
		}
		if lock.Abandoned() {
			fmt.Fprintf(cmd.ErrOrStderr(), "memspan: the last exclusive holder of %s died with the lock held; what it was changing may be half done\n", args[0])
		}
		err = runLocked(cmd, client, args[1:])
		// Given back although the user may have interrupted the command.
		unlockErr := lock.Unlock(context.WithoutCancel(cmd.Context()))
		if errors.Is(unlockErr, memspan.ErrLockLost) {
			return unlockErr
		}
		return errors.Join(err, unlockErr)
	})
	return cmd
}

// await locks all of a span, waiting for up to timeout, or for ever if that
// is 0.
func await(ctx context.Context, span *memspan.Span, kind memspan.LockKind, timeout time.Duration) (*memspan.Lock, error) {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	return span.Lock(ctx, 0, span.Size(), kind)
}

// runLocked runs a command until it ends, is interrupted, or the connection is
// lost and the lock with it. Its error is an exitError if the command failed.
func runLocked(cmd *cobra.Command, client *memspan.Client, args []string) error {
	ctx, cancel := context.WithCancel(cmd.Context())
	var watching sync.WaitGroup
	watching.Go(func() {
		select {
		case <-client.Done():
			cancel()
		case <-ctx.Done():
		}
	})
	defer watching.Wait()
	defer cancel()
	child := exec.CommandContext(ctx, args[0], args[1:]...)
	child.Cancel = func() error { return child.Process.Signal(syscall.SIGTERM) }
	child.Stdin, child.Stdout, child.Stderr = cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()
	return exitOf(child.Run())
}
