// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"os"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/cwriter"
	"github.com/vbauerster/mpb/v8/decor"
)

// longStep is the size from which a transfer is worth a progress bar, in
// bytes.
const longStep = 64 << 20

// A progress is a bar on a terminal. Nil, and any bar on what is no terminal,
// does nothing.
type progress struct {
	container *mpb.Progress
	bar       *mpb.Bar
}

// newProgress begins a bar for a step of total bytes. It returns nil if the
// step is short or w is no terminal.
func newProgress(w io.Writer, title string, total int64) *progress {
	if total < longStep || !isTerminal(w) {
		return nil
	}
	return bar(w, title, total, decor.CountersKibiByte("% .1f / % .1f"))
}

// newSteps begins a bar that counts steps. It returns nil if w is no terminal.
func newSteps(w io.Writer, title string, total int) *progress {
	if !isTerminal(w) {
		return nil
	}
	return bar(w, title, int64(total), decor.CountersNoUnit("%d / %d"))
}

func bar(w io.Writer, title string, total int64, counters decor.Decorator) *progress {
	container := mpb.New(mpb.WithOutput(w), mpb.WithWidth(48))
	return &progress{container, container.AddBar(total,
		mpb.PrependDecorators(decor.Name(title+" ")),
		mpb.AppendDecorators(counters),
		mpb.BarRemoveOnComplete(),
	)}
}

func (p *progress) add(n int) {
	if p != nil {
		p.bar.IncrBy(n)
	}
}

// stop takes the bar off the terminal and waits until it is gone. It is
// idempotent.
func (p *progress) stop() {
	if p != nil {
		p.bar.Abort(true)
		p.container.Wait()
	}
}

// isTerminal reports whether w is a terminal that can move its cursor. Other
// character devices, like /dev/null, are none.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && cwriter.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb"
}
