// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"github.com/spf13/cobra"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/memspan/memspan/surface"
	"github.com/memspan/memspan/surface/pull"
	"github.com/memspan/memspan/wire/dial"
)

type pullFlags struct {
	output   string
	keep     bool
	exec     string
	from     []string
	part     string
	copied   bool
	populate bool
	lock     bool
	share    bool
}

func newPull(opts *options) *cobra.Command {
	f := new(pullFlags)
	cmd := &cobra.Command{
		Use:   "pull TICKET|-",
		Short: "Get what a ticket opens",
		Long: `Pull gets the bytes that somebody exposed. Where they are on this machine their
memory is mapped, and no byte is copied before it is read; elsewhere chunks are
asked for of all sources at once, and verified.

With -o FILE the file appears when all of it is there. Until then it is in
FILE.part; a pull that was interrupted goes on where it was when it is run again.
What is still being written is waited for.

A ticket on the command line is there for all users of this machine to see, for as
long as the command runs: - reads it from standard input instead, one line.

--exec runs a command that finds the bytes in the file $MEMSPAN_SURFACE, which it
can map, and their number in $MEMSPAN_SURFACE_SIZE.`,
		Example: `  memspan pull $TICKET -o model.bin
  memspan pull $TICKET | tar x
  memspan pull - -o model.bin <ticket
  memspan pull $TICKET --range 0:1MiB | file -
  memspan pull $TICKET --exec './infer --weights $MEMSPAN_SURFACE'
  memspan pull $TICKET --from tls://cache.example:7070#FINGERPRINT -o model.bin`,
		Args: args(cobra.ExactArgs(1), "one ticket, or - to read it from standard input"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ticket, err := readTicket(cmd, args[0])
			if err != nil {
				return err
			}
			return f.run(cmd, opts, ticket)
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&f.output, "output", "o", "", "`file` to make, instead of writing to standard output")
	flags.BoolVar(&f.keep, "map", false, "map the bytes, say where, and keep them until interrupted")
	flags.StringVar(&f.exec, "exec", "", "shell `command` to run on the bytes")
	flags.StringArrayVar(&f.from, "from", nil, "`address` of another daemon that has the surface too; may be repeated")
	flags.StringVar(&f.part, "range", "", "`A:B`: only bytes from A on and before B, like 1MiB:2MiB")
	flags.BoolVar(&f.copied, "copy", false, "ask for chunks even where the memory could be mapped")
	flags.BoolVar(&f.populate, "populate", false, "with --map or --exec: have all pages mapped before going on")
	flags.BoolVar(&f.lock, "lock", false, "with --map or --exec: keep all pages in RAM")
	flags.BoolVar(&f.share, "share", false, "have this machine's daemon pull, and serve what it has to others (their --from) until interrupted")
	cmd.MarkFlagsMutuallyExclusive("output", "map", "exec")
	cmd.MarkFlagsMutuallyExclusive("share", "copy")
	return cmd
}

// readTicket reads a ticket that was given as an argument, or, for -, the first line of
// standard input, and nothing behind it: that may be for the command of --exec.
func readTicket(cmd *cobra.Command, arg string) (*surface.Ticket, error) {
	if arg == "-" {
		var line []byte
		for b := make([]byte, 1); len(line) <= maxTicketLine; line = append(line, b[0]) {
			n, err := cmd.InOrStdin().Read(b)
			if n == 1 && b[0] == '\n' || n == 0 && errors.Is(err, io.EOF) {
				break
			}
			if n == 0 && err != nil {
				return nil, fmt.Errorf("read the ticket from standard input: %w", err)
			}
		}
		arg = string(line)
	}
	t, err := surface.ParseTicket(arg)
	if err != nil {
		return nil, usagef("%w", err)
	}
	return t, nil
}

// maxTicketLine is more bytes than a ticket has.
const maxTicketLine = 16 << 10

func (f *pullFlags) run(cmd *cobra.Command, opts *options, ticket *surface.Ticket) error {
	ctx := cmd.Context()
	var err error
	if (f.populate || f.lock) && !f.keep && f.exec == "" {
		return usagef("--populate and --lock are for --map and --exec: nothing else is mapped")
	}
	var part surface.Range
	if f.part != "" {
		if part, err = parseRange(f.part); err != nil {
			return err
		}
	}
	config, err := opts.clientTLS()
	if err != nil {
		return err
	}
	bar := newPullBar(cmd.ErrOrStderr())
	defer bar.stop()
	start := time.Now()
	o := pull.Options{
		From: f.from, Copy: f.copied, Progress: bar.show,
		Dial: dial.Options{TLS: config, Name: "memspan command"},
	}
	if f.share {
		if o.Through = opts.daemon(); o.Through == "" {
			o.Through = "unix:" + dial.DefaultAddress()
		}
	}
	s, err := pull.Open(ctx, ticket, o)
	if err != nil {
		return err
	}
	defer s.Close()
	bar.begin(s)
	switch {
	case f.keep || f.exec != "":
		return f.mapped(cmd, opts, s, part, start, bar)
	case f.output != "" && f.output != "-":
		if to, err := openSpecial(f.output); to != nil || err != nil {
			if err != nil {
				return err
			}
			_, err = s.CopyTo(ctx, to, part)
			return errors.Join(err, to.Close())
		}
		if err := s.ToFile(ctx, f.output, part); err != nil {
			return err
		}
		bar.stop()
		if err := f.report(cmd, opts, s, f.output, time.Since(start)); err != nil || !f.share {
			return err
		}
		<-ctx.Done() // until then the daemon has others to give it to
		return nil
	}
	if opts.json {
		return usagef("pull --json needs -o FILE or --map: the bytes themselves go to standard output")
	}
	_, err = s.CopyTo(ctx, cmd.OutOrStdout(), part)
	return err
}

// openSpecial opens what is no plain file but can be written to, as a device and a pipe. It
// returns nil for what ToFile makes or replaces.
func openSpecial(path string) (*os.File, error) {
	info, err := os.Stat(path)
	if err != nil || info.Mode().IsRegular() || info.IsDir() {
		return nil, nil // whoever makes it says what is wrong
	}
	return os.OpenFile(path, os.O_WRONLY, 0)
}

// A pulled is what pull --json prints.
type pulled struct {
	ID      string       `json:"id"`
	Name    string       `json:"name,omitempty"`
	Bytes   int64        `json:"bytes"`
	Seconds float64      `json:"seconds"`
	Direct  bool         `json:"direct"`
	File    string       `json:"file"`
	Sources []pulledFrom `json:"sources"`
}

type pulledFrom struct {
	Address string `json:"address"`
	Bytes   int64  `json:"bytes"`
	Error   string `json:"error,omitempty"`
}

func (f *pullFlags) report(cmd *cobra.Command, opts *options, s *pull.Surface, file string, took time.Duration) error {
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	header := s.Header()
	r := pulled{ID: header.ID.String(), Name: header.Name, Bytes: info.Size(), Seconds: took.Seconds(), Direct: s.Direct(), File: file}
	r.Sources = []pulledFrom{}
	for _, source := range s.Sources() {
		from := pulledFrom{Address: source.Address, Bytes: source.Bytes}
		if source.Err != nil {
			from.Error = source.Err.Error()
		}
		r.Sources = append(r.Sources, from)
	}
	if opts.json {
		return printJSON(cmd.OutOrStdout(), r)
	}
	how := "verified"
	if r.Direct {
		how = "from this machine's memory"
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %s in %s (%s), %s\n", file, humanSize(r.Bytes), roundTime(r.Seconds), rate(r.Bytes, r.Seconds), how)
	return err
}

// mapped maps the bytes and runs a command on them, or waits.
func (f *pullFlags) mapped(cmd *cobra.Command, opts *options, s *pull.Surface, part surface.Range, start time.Time, bar *pullBar) error {
	ctx := cmd.Context()
	var m *pull.Memory
	var err error
	if part == (surface.Range{}) {
		m, err = s.Map(ctx)
	} else {
		m, err = s.ToMemory(ctx, part)
	}
	if err != nil {
		return err
	}
	defer m.Close()
	if f.populate {
		if err := m.Populate(); err != nil {
			return err
		}
	}
	if f.lock {
		if err := m.Lock(); err != nil {
			return err
		}
	}
	took := time.Since(start)
	bar.stop()
	if f.exec != "" {
		return f.execute(ctx, cmd, m)
	}
	path := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), m.File().Fd())
	if opts.json {
		err = f.report(cmd, opts, s, path, took)
	} else {
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %s mapped in %s\n", path, humanSize(int64(len(m.Bytes()))), took.Round(time.Microsecond))
	}
	if err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// execute runs the shell command with the memory as descriptor 3.
func (f *pullFlags) execute(ctx context.Context, cmd *cobra.Command, m *pull.Memory) error {
	c := exec.CommandContext(ctx, "sh", "-c", f.exec)
	c.Stdin, c.Stdout, c.Stderr = cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()
	c.ExtraFiles = []*os.File{m.File()}
	c.Env = append(os.Environ(), "MEMSPAN_SURFACE=/proc/self/fd/3", fmt.Sprintf("MEMSPAN_SURFACE_SIZE=%d", len(m.Bytes())))
	return exitOf(c.Run())
}

// A pullBar shows how far a pull is, on a terminal.
type pullBar struct {
	w         io.Writer
	container *mpb.Progress
	bar       *mpb.Bar
}

func newPullBar(w io.Writer) *pullBar { return &pullBar{w: w} }

// begin draws the bar, unless w is no terminal or the surface is small.
func (b *pullBar) begin(s *pull.Surface) {
	size, sealed := s.Size()
	if !isTerminal(b.w) || sealed && size < longStep || s.Direct() {
		return
	}
	header := s.Header()
	name := header.Name
	if name == "" {
		name = header.ID.String()[:8]
	}
	b.container = mpb.New(mpb.WithOutput(b.w), mpb.WithWidth(48))
	b.bar = b.container.AddBar(0,
		mpb.PrependDecorators(decor.Name("pull "+shown(name)+" ")),
		mpb.AppendDecorators(
			decor.CountersKibiByte("% .1f / % .1f"),
			decor.AverageSpeed(decor.SizeB1024(0), " % .1f"),
			decor.AverageETA(decor.ET_STYLE_GO, decor.WC{W: 7}),
			decor.Any(func(decor.Statistics) string {
				used := 0
				for _, source := range s.Sources() {
					if source.Err == nil {
						used++
					}
				}
				return fmt.Sprintf(" from %d", used)
			}),
		),
		mpb.BarRemoveOnComplete(),
	)
}

// show is called as chunks arrive.
func (b *pullBar) show(p pull.Progress) {
	if b.bar == nil {
		return
	}
	if p.Total >= 0 {
		b.bar.SetTotal(p.Total, false)
	} else {
		b.bar.SetTotal(p.Done+1, false)
	}
	b.bar.SetCurrent(p.Done)
}

// stop takes the bar off the terminal. It is idempotent.
func (b *pullBar) stop() {
	if b.bar != nil {
		b.bar.Abort(true)
		b.container.Wait()
		b.bar = nil
	}
}
