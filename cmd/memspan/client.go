// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/surface/pull"
	"github.com/memspan/memspan/wire/dial"
)

// dial connects to the daemon that the flags and the environment name.
func (o *options) dial(ctx context.Context) (*memspan.Client, error) {
	token, err := dial.ReadToken(o.tokenFile)
	if err != nil {
		return nil, err
	}
	config, err := o.clientTLS()
	if err != nil {
		return nil, err
	}
	return memspan.Dial(ctx, o.daemon(), &memspan.Options{Token: token, TLS: config, Name: "memspan command"})
}

// daemon returns the address to dial; empty means the default one.
func (o *options) daemon() string {
	if o.address != "" {
		return o.address
	}
	return os.Getenv("MEMSPAN_ADDRESS")
}

// clientTLS returns what the --tls flags say, or nil if none is given.
func (o *options) clientTLS() (*tls.Config, error) {
	if (o.tlsCert == "") != (o.tlsKey == "") {
		return nil, usagef("--tls-cert and --tls-key go together")
	}
	return dial.TLS(o.tlsCA, o.tlsCert, o.tlsKey)
}

// withClient makes a command's work out of work, which is given a connection.
func (o *options) withClient(work func(cmd *cobra.Command, client *memspan.Client, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		client, err := o.dial(cmd.Context())
		if err != nil {
			return err
		}
		err = work(cmd, client, args)
		if closeErr := client.Close(); err == nil {
			err = closeErr
		}
		return err
	}
}

// completionTimeout bounds the wait for a daemon while the user holds the tab
// key.
const completionTimeout = time.Second

// spanNames completes up to limit arguments, 0 meaning any number, with the
// names of the daemon's spans.
func (o *options) spanNames(limit int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if limit > 0 && len(args) >= limit {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
		defer cancel()
		client, err := o.dial(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		defer client.Close()
		spans, err := client.List(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		var names []string
		for _, s := range spans {
			if s.Name != "" && !s.Unpublished && !slices.Contains(args, s.Name) {
				names = append(names, s.Name)
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// hint returns what the user can do about an error, or "".
func hint(err error) string {
	var pulled *pull.Error
	if errors.As(err, &pulled) {
		return "" // these are about spans, and this machine's disk
	}
	for _, h := range []struct {
		code memspan.Code
		text string
	}{
		{memspan.ErrNotFound, "See what there is: memspan ls"},
		{memspan.ErrExists, "Choose another name, or replace the span: memspan put --replace"},
		{memspan.ErrTierAbsent, "See what this machine offers: memspan doctor. A disk tier needs a directory: memspan serve --data DIR"},
		{memspan.ErrBudget, "Free spans (memspan rm), or start the daemon with a larger --vram-budget or --host-budget, or with --data DIR to put on disk what does not fit."},
		{memspan.ErrTierFailed, "The disk failed. Save what can still be read, look at the disk, then restart the daemon: memspan fsck DIR says what the directory holds."},
		{memspan.ErrCorrupt, "Bytes on disk are damaged. See all that is: memspan fsck DIR; with --repair what can be mended is. Writing the whole block anew mends it, too."},
		{memspan.ErrDataLoss, "The newest bytes were lost with the device or the daemon that held them. Take what survives: memspan accept; or remove the span and put it again."},
	} {
		if errors.Is(err, h.code) {
			return h.text
		}
	}
	return ""
}
