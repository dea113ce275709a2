// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/sharedbuf"
	"github.com/memspan/memspan/wire/dial"
)

func newBuffer(opts *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "buffer",
		Short: "Share buffers with a host",
		Example: `  memspan buffer test
  memspan buffer test --dir /dev/shm/buffers 64MiB
  memspan buffer run --size 64MiB fill pattern=1 then checksum`,
		Args: args(cobra.NoArgs, "one of its commands"),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newBufferTest(opts), newBufferRun(opts))
	return cmd
}

func newBufferTest(opts *options) *cobra.Command {
	dir := ""
	var o sharedbuf.AllocOptions
	cmd := &cobra.Command{
		Use:   "test [SIZE...]",
		Short: "Share buffers with a host and look whether they stay as they are",
		Long: `Test makes a buffer of each size, of 1, 8 and 32 MiB if none is given, fills
it, has the host process it, looks whether it is unchanged, and frees it.

--address is the host's: the path of its unix socket, HOST:PORT, or the tls:// one
that it prints, with --token-file. With --dir buffers are files in that directory,
which both sides see. Without they have no name over the unix socket, and over TCP
and TLS their bytes are sent. --encrypted looks for the pattern in the shared
memory, too, and wants not to find it.`,
		Example: `  memspan buffer test
  memspan buffer test --dir /dev/shm/buffers 64MiB 4GiB
  memspan buffer test --address 192.168.122.1:4660 --dir /mnt/c/temp
  memspan buffer test --address tls://gpu:4661#3f... --token-file token`,
		RunE: func(cmd *cobra.Command, args []string) error {
			list := []int64{1 << 20, 8 << 20, 32 << 20}
			if len(args) > 0 {
				list = nil
			}
			for _, text := range args {
				var n size
				if err := n.Set(text); err != nil {
					return usagef("%w", err)
				}
				if n == 0 {
					return usagef("%q: a buffer has at least one byte", text)
				}
				list = append(list, int64(n))
			}
			return bufferTest(cmd.Context(), opts, dir, o, list, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "shared `directory`, as this side names it")
	cmd.Flags().BoolVar(&o.Encrypted, "encrypted", false, "seal what is in shared memory; the host gets the key")
	return cmd
}

// A bufferReport is what buffer test found out about one buffer.
type bufferReport struct {
	Path  string `json:"path"`
	ID    uint32 `json:"id"`
	Size  int64  `json:"size"`
	Bytes int64  `json:"bytes_processed"`
}

// dialHost connects to the host of shared buffers that the flags name.
func (o *options) dialHost(ctx context.Context, dir string) (*sharedbuf.Client, error) {
	token, err := dial.ReadToken(o.tokenFile)
	if err != nil {
		return nil, err
	}
	config, err := o.clientTLS()
	if err != nil {
		return nil, err
	}
	return sharedbuf.Dial(ctx, o.address, sharedbuf.Options{Dir: dir, Token: token, TLS: config})
}

// bufferTest prints what the document's client prints.
func bufferTest(ctx context.Context, opts *options, dir string, o sharedbuf.AllocOptions, sizes []int64, stdout io.Writer) (err error) {
	c, err := opts.dialHost(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	say := stdout
	if opts.json {
		say = io.Discard
	}
	reports := []bufferReport{}
	fmt.Fprintln(say, "=== Dynamic Shared Buffer Test ===")
	for _, size := range sizes {
		r, err := tryBuffer(ctx, c, o, size, say)
		if err != nil {
			return err
		}
		reports = append(reports, r)
		fmt.Fprintln(say)
	}
	if opts.json {
		return printJSON(stdout, reports)
	}
	_, err = fmt.Fprintln(say, "Dynamic shared buffer tests completed successfully!")
	return err
}

func tryBuffer(ctx context.Context, c *sharedbuf.Client, o sharedbuf.AllocOptions, size int64, w io.Writer) (r bufferReport, err error) {
	fmt.Fprintf(w, "Testing %s dynamic buffer...\n", decimals(size))
	b, err := c.AllocWith(ctx, size, o)
	if err != nil {
		return r, err
	}
	path := b.Path()
	defer func() { err = errors.Join(err, b.Free()) }() // where something failed
	fmt.Fprintf(w, "✅ Allocated shared buffer: %s (%d bytes)\n", path, size)
	fmt.Fprintln(w, "  Filling buffer with test pattern...")
	pattern := []byte(strings.Repeat("\x78\x56\x34\x12", 64<<10))
	if _, err := inPieces(ctx, b.Bytes(), pattern, func(part, want []byte) bool { return copy(part, want) == len(part) }); err != nil {
		return r, fmt.Errorf("buffer %s: fill: %w", path, err)
	}
	fmt.Fprintln(w, "  Sending to host for processing...")
	result, err := b.Process(ctx, sharedbuf.Process())
	if err != nil {
		return r, err
	}
	if o.Encrypted {
		if err := showsNothing(b, pattern[:16]); err != nil {
			return r, err
		}
	}
	fmt.Fprintf(w, "✅ Host processed shared buffer: %s\n", path)
	fmt.Fprintln(w, "  Verifying buffer integrity...")
	at, err := inPieces(ctx, b.Bytes(), pattern, func(part, want []byte) bool { return string(part) == string(want) })
	if err != nil {
		return r, fmt.Errorf("buffer %s: verify: %w", path, err)
	}
	if at >= 0 || result.Bytes != size {
		return r, fmt.Errorf("buffer %s: the host processed %d of %d bytes; the first piece that changed is at %d", path, result.Bytes, size, at)
	}
	fmt.Fprintln(w, "  ✅ Buffer integrity verified")
	if err := b.Free(); err != nil {
		return r, err
	}
	fmt.Fprintf(w, "✅ Cleaned up shared buffer: %s\n", path)
	_, err = fmt.Fprintln(w, "  ✅ Buffer cleaned up")
	return bufferReport{path, b.ID(), size, result.Bytes}, err
}

// showsNothing looks that a text is not in a buffer's shared memory, if it has any.
func showsNothing(b *sharedbuf.Buffer, text []byte) error {
	if b.File() == nil || b.Size() < int64(len(text)) {
		return nil
	}
	piece := make([]byte, 1<<20)
	for off := int64(0); ; off += int64(len(piece) - len(text)) {
		n, err := b.File().ReadAt(piece, off)
		if bytes.Contains(piece[:n], text) {
			return fmt.Errorf("buffer %s is encrypted, and its bytes are in shared memory, at %d or later", b.Path(), off)
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}

// inPieces calls f with pieces of mem and as much of the pattern, until one is
// not as it should be: it returns where that is, or -1. It fails if the memory goes
// away, as whoever may open a buffer's file can cut it short, and when ctx ends.
func inPieces(ctx context.Context, mem, pattern []byte, f func(part, want []byte) bool) (wrong int, err error) {
	wrong = -1
	if fault := memfd.Guard(func() {
		for at := 0; at < len(mem) && wrong < 0 && ctx.Err() == nil; at += len(pattern) {
			part := mem[at:min(at+len(pattern), len(mem))]
			if !f(part, pattern[:len(part)]) {
				wrong = at
			}
		}
	}); fault != nil {
		return wrong, &sharedbuf.Error{Code: sharedbuf.ErrTruncated, Message: "the file was cut short while it was mapped", Err: fault}
	}
	return wrong, context.Cause(ctx)
}

// decimals returns n as the document prints sizes, in binary units that it
// calls by decimal names.
func decimals(n int64) string {
	for _, unit := range []struct {
		bytes int64
		name  string
	}{{1 << 30, "GB"}, {1 << 20, "MB"}, {1 << 10, "KB"}} {
		if n >= unit.bytes {
			return fmt.Sprintf("%.2f %s", float64(n)/float64(unit.bytes), unit.name)
		}
	}
	return fmt.Sprintf("%d bytes", n)
}
