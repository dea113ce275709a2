// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"rsc.io/qr"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/surface"
)

// spanPrefix says that an argument is a span, whatever files there are.
const spanPrefix = "span:"

type exposeFlags struct {
	name     string
	kind     string
	expires  time.Duration
	readOnce bool
	encrypt  bool
	chunk    size
	qr       bool
}

func newExpose(opts *options) *cobra.Command {
	f := new(exposeFlags)
	cmd := &cobra.Command{
		Use:   "expose FILE|-|SPAN",
		Short: "Expose bytes to be pulled by whoever gets the ticket",
		Long: `Expose has the daemon keep a copy of a file, of standard input or of a span as
they are now, and prints a ticket: one line, to be given to those who may have the
bytes. 'memspan pull TICKET' gets them, on this machine without a copy.

What was exposed never changes, and is there until it expires, is revoked
('memspan surfaces --revoke') or the daemon stops. Of standard input the ticket is
printed at once, unless --json prints what came of it all; what has come can be
pulled while the rest is still written, whole chunks of it.

With --encrypt the daemon, and whoever passes the bytes on, keeps ciphertext: the
key is in the ticket alone. Pullers then decrypt a copy of their own.`,
		Example: `  memspan expose model.bin --expires 1h
  memspan pull $(memspan expose model.bin) -o copy.bin
  tail -f app.log | memspan expose - --chunk 4KiB --name log
  memspan expose span:weights --read-once`,
		Args: args(cobra.ExactArgs(1), "one file, - for standard input, or a span's name or id"),
		RunE: opts.withClient(func(cmd *cobra.Command, client *memspan.Client, args []string) error {
			return f.run(cmd, opts, client, args[0])
		}),
		ValidArgsFunction: opts.spanNames(1),
	}
	flags := cmd.Flags()
	flags.StringVarP(&f.name, "name", "n", "", "`name` that pullers see (default the file's or the span's)")
	flags.StringVar(&f.kind, "type", "", "content `type` that pullers see, as in HTTP")
	flags.DurationVar(&f.expires, "expires", 0, "`duration` after which nobody gets it any more, like 1h (default until it is revoked)")
	flags.BoolVar(&f.readOnce, "read-once", false, "give each byte once, to one puller, over a connection; then it is gone")
	flags.BoolVar(&f.encrypt, "encrypt", false, "keep ciphertext; the key is in the ticket alone")
	flags.Var(&f.chunk, "chunk", "bytes that are verified and waited for together, a power of two (default 1 MiB)")
	flags.BoolVar(&f.qr, "qr", false, "draw the ticket as a QR code, too")
	return cmd
}

func (f *exposeFlags) run(cmd *cobra.Command, opts *options, client *memspan.Client, arg string) error {
	if f.expires < 0 || cmd.Flags().Changed("expires") && f.expires < time.Millisecond {
		return usagef("--expires %v: want a duration, like 1h", f.expires)
	}
	o := memspan.ExposeOptions{
		Name: f.name, ContentType: f.kind, Chunk: int64(f.chunk), Lifetime: f.expires,
		ReadOnce: f.readOnce, Encrypt: f.encrypt,
	}
	ctx := cmd.Context()
	if arg == "-" {
		return f.stream(cmd, opts, client, cmd.InOrStdin(), o)
	}
	if name, ok := strings.CutPrefix(arg, spanPrefix); ok {
		return f.span(cmd, opts, client, name, o)
	}
	file, err := openUntil(ctx, arg)
	if errors.Is(err, fs.ErrNotExist) {
		err := f.span(cmd, opts, client, arg, o)
		if errors.Is(err, memspan.ErrNotFound) {
			return fmt.Errorf("expose %s: there is neither a file nor a span of that name: %w", arg, memspan.ErrNotFound)
		}
		return err
	}
	if err != nil {
		return err
	}
	defer file.Close()
	if o.Name == "" {
		o.Name = strings.ReplaceAll(shown(filepath.Base(arg)), "\n", `\n`) // control characters are none of a surface's
	}
	info, err := file.Stat()
	switch {
	case err != nil:
		return err
	case info.IsDir():
		return fmt.Errorf("%s is a directory; expose one file", arg)
	case !info.Mode().IsRegular() || info.Size() == 0 && hasMore(file):
		return f.stream(cmd, opts, client, file, o)
	}
	start := time.Now()
	done, err := client.ExposeFile(ctx, file, o)
	if err != nil {
		return err
	}
	return f.report(cmd, opts, done, time.Since(start))
}

func (f *exposeFlags) span(cmd *cobra.Command, opts *options, client *memspan.Client, name string, o memspan.ExposeOptions) error {
	span, err := client.Open(cmd.Context(), name)
	if err != nil {
		return err
	}
	defer span.Close()
	if o.Name == "" {
		o.Name = span.Name()
	}
	start := time.Now()
	done, err := span.Expose(cmd.Context(), o)
	if err != nil {
		return err
	}
	return f.report(cmd, opts, done, time.Since(start))
}

// stream exposes what comes from r until it ends. The ticket is printed first.
func (f *exposeFlags) stream(cmd *cobra.Command, opts *options, client *memspan.Client, r io.Reader, o memspan.ExposeOptions) error {
	ctx := cmd.Context()
	start := time.Now()
	w, err := client.Expose(ctx, -1, o)
	if err != nil {
		return err
	}
	defer w.Close()
	if !opts.json {
		if err := f.print(cmd.OutOrStdout(), w.Ticket()); err != nil {
			return err
		}
	}
	if err := copyUntil(ctx, w, r); err != nil {
		return err
	}
	done, err := w.Seal()
	if err != nil || !opts.json {
		return err
	}
	return f.report(cmd, opts, done, time.Since(start))
}

// hasMore reports whether a file has bytes although it is said to be empty, as those of
// /proc are.
func hasMore(file *os.File) bool {
	n, _ := file.ReadAt(make([]byte, 1), 0)
	return n > 0
}

// openUntil opens a file, or gives up when ctx ends: a pipe opens only once somebody
// writes to it.
func openUntil(ctx context.Context, path string) (*os.File, error) {
	type opened struct {
		file *os.File
		err  error
	}
	done := make(chan opened, 1)
	go func() { // it may outlive the command's work
		file, err := os.Open(path)
		done <- opened{file, err}
	}()
	select {
	case o := <-done:
		return o.file, o.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// copyUntil copies r to w until it ends or ctx does: a read of standard input
// cannot be given up, but need not be waited for.
func copyUntil(ctx context.Context, w io.Writer, r io.Reader) error {
	done := make(chan error, 1)
	go func() { // it may outlive the command's work by one read
		_, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, make([]byte, 1<<20))
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// report prints what was exposed.
func (f *exposeFlags) report(cmd *cobra.Command, opts *options, e *memspan.Exposed, took time.Duration) error {
	if !opts.json {
		return f.print(cmd.OutOrStdout(), e.Ticket)
	}
	text, err := e.Ticket.Text()
	if err != nil {
		return err
	}
	return printJSON(cmd.OutOrStdout(), struct {
		ID      string  `json:"id"`
		Ticket  string  `json:"ticket"`
		Size    int64   `json:"size"`
		Copied  int64   `json:"copied"`
		Memory  int64   `json:"memory"`
		Seconds float64 `json:"seconds"`
	}{e.Ticket.ID.String(), text, e.Size, e.Copied, e.Memory, took.Seconds()})
}

func (f *exposeFlags) print(w io.Writer, t *surface.Ticket) error {
	text, err := t.Text()
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(w, text); err != nil {
		return err
	}
	if !f.qr {
		return nil
	}
	code, err := qr.Encode(text, qr.L)
	if err != nil {
		return fmt.Errorf("--qr: %w", err)
	}
	return drawQR(w, code)
}

// drawQR draws a code for a terminal, two modules in a character, dark on light
// whatever the terminal's colours are.
func drawQR(w io.Writer, code *qr.Code) error {
	const quiet = 2 // modules around it
	var b strings.Builder
	for y := -quiet; y < code.Size+quiet; y += 2 {
		b.WriteString("\x1b[30;107m")
		for x := -quiet; x < code.Size+quiet; x++ {
			switch top, bottom := code.Black(x, y), code.Black(x, y+1); {
			case top && bottom:
				b.WriteRune('█')
			case top:
				b.WriteRune('▀')
			case bottom:
				b.WriteRune('▄')
			default:
				b.WriteByte(' ')
			}
		}
		b.WriteString("\x1b[0m\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func newSurfaces(opts *options) *cobra.Command {
	var revoke []string
	cmd := &cobra.Command{
		Use:   "surfaces",
		Short: "List what is exposed, and who pulls it",
		Long: `Surfaces lists what the daemon exposes. PULLING is how many have it open, and
WAITING how many of them wait for bytes that are not there yet.

A surface that is revoked opens for nobody any more; memory of it that pullers have
mapped stays theirs until they let go.`,
		Example: `  memspan surfaces
  memspan surfaces --revoke 6f3c0d…`,
		Args: args(cobra.NoArgs, "no arguments"),
		RunE: opts.withClient(func(cmd *cobra.Command, client *memspan.Client, _ []string) error {
			if len(revoke) > 0 {
				return revokeAll(cmd.Context(), client, revoke)
			}
			list, err := client.Surfaces(cmd.Context())
			if err != nil {
				return err
			}
			if opts.json {
				return printJSON(cmd.OutOrStdout(), append([]memspan.SurfaceStat{}, list...)) // [], not null
			}
			t := newTable(cmd.OutOrStdout(), "ID", "NAME", "SIZE", "THERE", "STATE", "EXPIRES", "PULLING", "WAITING", "PULLS", "DIRECT", "GIVEN")
			for _, s := range list {
				t.row(s.ID, s.Name, humanSize(s.Size), there(s), surfaceState(s), expires(s.Expires), fmt.Sprint(s.Pullers),
					fmt.Sprint(s.Waiting), fmt.Sprint(s.Pulls), fmt.Sprint(s.Direct), humanSize(s.Given))
			}
			return t.flush()
		}),
	}
	cmd.Flags().StringArrayVar(&revoke, "revoke", nil, "take back the surface of this `id` (or the beginning of it), or of this ticket; may be repeated")
	return cmd
}

// revokeAll revokes surfaces by id, the unique beginning of one, or ticket.
func revokeAll(ctx context.Context, client *memspan.Client, names []string) error {
	for _, name := range names {
		id, err := surface.ParseID(name)
		if t, terr := surface.ParseTicket(name); terr == nil {
			id = t.ID
		} else if err != nil {
			if id, err = surfaceOf(ctx, client, name); err != nil {
				return err
			}
		}
		if err := client.Revoke(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// surfaceOf returns the id that begins so.
func surfaceOf(ctx context.Context, client *memspan.Client, beginning string) (id surface.ID, err error) {
	list, err := client.Surfaces(ctx)
	if err != nil {
		return id, err
	}
	found := 0
	for _, s := range list {
		if one, err := surface.ParseID(s.ID); err == nil && strings.HasPrefix(s.ID, beginning) {
			id = one
			found++
		}
	}
	if found != 1 || beginning == "" {
		return id, fmt.Errorf("--revoke %s: %d surfaces are meant; see what there is: memspan surfaces: %w", beginning, found, memspan.ErrNotFound)
	}
	return id, nil
}

func there(s memspan.SurfaceStat) string {
	switch {
	case s.Error != "":
		return fmt.Sprintf("%d chunks", s.Have)
	case s.Have == s.Chunks:
		return "all"
	}
	return fmt.Sprintf("%d of %d chunks", s.Have, s.Chunks)
}

func surfaceState(s memspan.SurfaceStat) string {
	state := "being written"
	switch {
	case s.Error != "":
		state = "failed"
	case s.Sealed:
		state = "sealed"
	}
	for _, also := range []struct {
		is   bool
		word string
	}{{s.Replica, "replica"}, {s.ReadOnce, "read-once"}, {s.Encrypted, "encrypted"}} {
		if also.is {
			state += ", " + also.word
		}
	}
	return state
}

func expires(at time.Time) string {
	if at.IsZero() {
		return "never"
	}
	return "in " + time.Until(at).Round(time.Second).String()
}

func newTicket(opts *options) *cobra.Command {
	var (
		span    string
		expires time.Duration
	)
	cmd := &cobra.Command{
		Use:   "ticket TICKET|-",
		Short: "Show a ticket, or make a narrower one of it",
		Long: `Ticket shows what a ticket opens. With --range or --expires it prints a ticket of
the same surface that opens less, and cannot be made to open more again. No daemon is
asked.

A range is enforced by whole chunks: whoever has the ticket gets the chunks that it
touches.`,
		Example: `  memspan ticket $TICKET
  memspan ticket $TICKET --range 0:64MiB --expires 10m`,
		Args: args(cobra.ExactArgs(1), "one ticket, or - to read it from standard input"),
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := readTicket(cmd, args[0])
			if err != nil {
				return err
			}
			var caveats []surface.Caveat
			if cmd.Flags().Changed("range") {
				r, err := parseRange(span)
				if err != nil {
					return err
				}
				caveats = append(caveats, r)
			}
			if cmd.Flags().Changed("expires") {
				if expires <= 0 {
					return usagef("--expires %v: want a duration, like 10m", expires)
				}
				caveats = append(caveats, surface.Expiry{Time: time.Now().Add(expires)})
			}
			if len(caveats) == 0 {
				return showTicket(cmd, opts, t)
			}
			narrow, err := t.Derive(caveats...)
			if err != nil {
				return err
			}
			text, err := narrow.Text()
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), text)
			return err
		},
	}
	cmd.Flags().StringVar(&span, "range", "", "`A:B`: bytes from A on and before B, like 1MiB:2MiB")
	cmd.Flags().DurationVar(&expires, "expires", 0, "`duration` after which the new ticket opens nothing")
	return cmd
}

// parseRange reads bytes A:B.
func parseRange(text string) (surface.Range, error) {
	from, to, ok := strings.Cut(text, ":")
	var a, b size
	if !ok || a.Set(from) != nil || b.Set(to) != nil || b <= a {
		return surface.Range{}, usagef("%s is no range: want A:B, like 0:64MiB", text)
	}
	return surface.Range{Offset: int64(a), Length: int64(b - a)}, nil
}

// showTicket describes a ticket without its secrets.
func showTicket(cmd *cobra.Command, opts *options, t *surface.Ticket) error {
	var caveats []string
	for _, c := range t.Caveats {
		caveats = append(caveats, fmt.Sprint(c))
	}
	if opts.json {
		return printJSON(cmd.OutOrStdout(), struct {
			ID        string   `json:"id"`
			Addresses []string `json:"addresses"`
			Root      string   `json:"root,omitempty"`
			Encrypted bool     `json:"encrypted"`
			Caveats   []string `json:"caveats"`
		}{t.ID.String(), append([]string{}, t.Addresses...), rootText(t), t.Key != nil, append([]string{}, caveats...)})
	}
	table := newTable(cmd.OutOrStdout())
	table.row("surface", t.ID.String())
	for _, a := range t.Addresses {
		table.row("address", a)
	}
	if root := rootText(t); root != "" {
		table.row("root", root)
	} else {
		table.row("root", "none: it was being written; the daemon at the address vouches for it")
	}
	if t.Key != nil {
		table.row("encrypted", "the ticket has the key")
	}
	for _, c := range caveats {
		table.row("only", c)
	}
	return table.flush()
}

func rootText(t *surface.Ticket) string {
	if t.Root == nil {
		return ""
	}
	return t.Root.String()
}
