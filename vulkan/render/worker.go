// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"github.com/memspan/memspan/internal/confine"
	"github.com/memspan/memspan/vulkan/handover"
)

// Worker is the main function of a worker process, which a daemon started: it
// serves the application whose connection the daemon hands over, until that
// ends, the daemon wants it to end, or ctx does. It confines the process first,
// for which it executes the program anew, and so must be called before anything
// else of note. After an error the process should end at once: calls may still
// be stuck in the driver.
func Worker(ctx context.Context) error {
	state, err := confine.Confine(os.Getenv(handover.CacheVariable))
	if err != nil {
		return err
	}
	conn, err := confine.Parent()
	if err != nil {
		return err
	}
	p, err := handover.Accept(conn)
	if err != nil {
		return err
	}
	defer p.Close()
	if err := p.Report(handover.Status{Confined: state.String(), Full: state.Full()}); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan struct{})
	defer func() { <-ended }()
	defer cancel()
	go func() {
		defer close(ended)
		select {
		case <-p.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	report := func(u Usage) {
		p.Report(handover.Status{Device: u.Device, Memory: u.Memory, Objects: u.Objects}) // a daemon that is gone is Done's business
	}
	err = Serve(ctx, p.Client, Config{
		Log:     slog.Default().With("session", p.Start.Session, "application", p.Start.Application),
		Objects: p.Start.Objects, QueueDepth: p.Start.QueueDepth, Deadline: p.Start.Deadline,
		Memory: p.Start.Memory, Device: p.Start.Device, HideHostCoherent: p.Start.HideHostCoherent, HideImport: p.Start.HideImport,
		Report: report,
	})
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("vulkan worker: %w", err)
	}
	return nil
}
