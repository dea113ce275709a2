// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/surface"
	"github.com/memspan/memspan/surface/pull"
)

// makeData fills memory that becomes a surface as it is.
func makeData(ctx context.Context, _ io.Reader, out, report io.Writer) error {
	client, err := memspan.Dial(ctx, os.Getenv(serverEnv), nil)
	if err != nil {
		return err
	}
	defer client.Close()
	d, err := memspan.NewDraft(size)
	if err != nil {
		return err
	}
	fill(d.Bytes())
	start := time.Now()
	e, err := d.Expose(ctx, client, memspan.ExposeOptions{Name: "data", Chunk: chunk})
	if err != nil {
		return err
	}
	fmt.Fprintf(report, "make:   exposed %d MiB in %v, %d bytes copied\n", e.Size>>20, time.Since(start).Round(time.Microsecond), e.Copied)
	return send(out, e.Ticket)
}

// sumChunks reads the data where it is, and exposes the sum of each chunk's bytes.
func sumChunks(ctx context.Context, in io.Reader, out, report io.Writer) error {
	data, err := receive(bufio.NewReader(in))
	if err != nil {
		return err
	}
	p, err := attach(ctx, data)
	if err != nil {
		return err
	}
	defer p.close()
	d, err := memspan.NewDraft(int64(len(p.bytes)) / chunk * 8)
	if err != nil {
		return err
	}
	defer d.Close()
	for i := range len(p.bytes) / chunk {
		binary.LittleEndian.PutUint64(d.Bytes()[8*i:], sum(p.bytes[i*chunk:][:chunk]))
	}
	client, err := memspan.Dial(ctx, os.Getenv(serverEnv), nil)
	if err != nil {
		return err
	}
	defer client.Close()
	e, err := d.Expose(ctx, client, memspan.ExposeOptions{Name: "sums"})
	if err != nil {
		return err
	}
	fmt.Fprintf(report, "sum:    %v; exposed %d bytes of sums, %d bytes copied\n", p, e.Size, e.Copied)
	return send(out, data, e.Ticket)
}

// verify maps the data and the sums, and knows what both must be.
func verify(ctx context.Context, in io.Reader, _, report io.Writer) error {
	lines := bufio.NewReader(in)
	var parts [2]*attached
	for i := range parts {
		t, err := receive(lines)
		if err != nil {
			return err
		}
		if parts[i], err = attach(ctx, t); err != nil {
			return err
		}
		defer parts[i].close()
	}
	data, sums := parts[0], parts[1]
	if len(data.bytes) != size || len(sums.bytes) != size/chunk*8 {
		return fmt.Errorf("%d bytes of data and %d of sums: want %d and %d", len(data.bytes), len(sums.bytes), size, size/chunk*8)
	}
	want := make([]byte, chunk)
	for i := range size / chunk {
		fillChunk(want, i)
		if string(data.bytes[i*chunk:][:chunk]) != string(want) {
			return fmt.Errorf("chunk %d is not what was made", i)
		}
		if got := binary.LittleEndian.Uint64(sums.bytes[8*i:]); got != sum(want) {
			return fmt.Errorf("the sum of chunk %d is %d, not %d", i, got, sum(want))
		}
	}
	fmt.Fprintf(report, "verify: %v, %v; %d chunks and their sums are right\n", data, sums, size/chunk)
	return nil
}

// An attached is a surface that is mapped.
type attached struct {
	surface *pull.Surface
	bytes   []byte
	took    time.Duration
}

func attach(ctx context.Context, t *surface.Ticket) (*attached, error) {
	start := time.Now()
	s, err := pull.Open(ctx, t, pull.Options{})
	if err != nil {
		return nil, err
	}
	p, err := s.Bytes()
	if err != nil {
		s.Close()
		return nil, err
	}
	return &attached{s, p, time.Since(start)}, nil
}

// String says what attaching has cost.
func (a *attached) String() string {
	var copied int64
	for _, source := range a.surface.Sources() {
		copied += source.Bytes
	}
	return fmt.Sprintf("attached %d bytes in %v, %d bytes copied", len(a.bytes), a.took.Round(time.Microsecond), copied)
}

func (a *attached) close() { a.surface.Close() }

// A ticket opens what it is for, to whoever has it: it goes by pipe, and not by argument,
// which other users of the machine can see.
func send(w io.Writer, tickets ...*surface.Ticket) error {
	for _, t := range tickets {
		text, err := t.Text()
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintln(w, text); err != nil {
			return err
		}
	}
	return nil
}

func receive(lines *bufio.Reader) (*surface.Ticket, error) {
	text, err := lines.ReadString('\n')
	if err != nil {
		return nil, fmt.Errorf("no ticket from the stage before: %w", err)
	}
	return surface.ParseTicket(text[:len(text)-1])
}

func fill(p []byte) {
	for i := range len(p) / chunk {
		fillChunk(p[i*chunk:][:chunk], i)
	}
}

// fillChunk makes chunk i: numbers that count up, mixed.
func fillChunk(p []byte, i int) {
	for j := 0; j < len(p); j += 8 {
		binary.LittleEndian.PutUint64(p[j:], uint64(i*chunk+j)*0x9e3779b97f4a7c15)
	}
}

func sum(p []byte) (n uint64) {
	for _, b := range p {
		n += uint64(b)
	}
	return n
}
