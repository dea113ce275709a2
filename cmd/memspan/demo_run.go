// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/memspan/memspan"
	"github.com/memspan/memspan/internal/memfd"
)

// The verdicts on a run.
const (
	verdictOK       = "ok"
	verdictMismatch = "MISMATCH"
	verdictFailed   = "FAILED"
)

// overwritten is what the staging span holds between the copy to the device
// and the copy back: a copy that does nothing must not verify.
const overwritten = 0xdeadbeef

// A demoRun is one way through the fifteen steps of the phase-08 document.
type demoRun struct {
	tier    memspan.Tier
	path    string
	size    int64
	pattern pattern
	say     func(format string, args ...any)
}

// A demoResult is what came out of a run.
type demoResult struct {
	Tier     string  `json:"tier"`
	Size     int64   `json:"size"`
	Path     string  `json:"path"`
	Direct   bool    `json:"direct"` // mappings were the daemon's own pages
	Pattern  string  `json:"pattern"`
	WriteMBs float64 `json:"write_mb_s"`
	ReadMBs  float64 `json:"read_mb_s"`
	// WireBytes were sent and received for the two mappings.
	WireBytes int64  `json:"wire_bytes"`
	OnDevice  bool   `json:"on_device"` // both copies stayed in device memory
	Words     int64  `json:"words"`     // compared and found right
	Verdict   string `json:"verdict"`
	Detail    string `json:"detail,omitempty"` // what went wrong
}

// A mismatch is the first wrong word of a read-back.
type mismatch struct {
	where     string
	offset    int64
	want, got uint32
}

func (m *mismatch) Error() string {
	return fmt.Sprintf("%s: wrong at offset %d: expected %#08x, got %#08x", m.where, m.offset, m.want, m.got)
}

// do takes all steps and frees what it made, whatever happens.
func (r *demoRun) do(ctx context.Context, client *memspan.Client) *demoResult {
	out := &demoResult{Tier: r.tier.String(), Size: r.size, Path: r.path, Pattern: r.pattern.name, Verdict: verdictOK}
	err := r.steps(ctx, client, out)
	var wrong *mismatch
	switch {
	case errors.As(err, &wrong):
		out.Verdict, out.Detail = verdictMismatch, err.Error()
	case err != nil:
		out.Verdict, out.Detail = verdictFailed, err.Error()
	}
	return out
}

func (r *demoRun) steps(ctx context.Context, client *memspan.Client, out *demoResult) (err error) {
	r.say("Phase 8: Memory Data Transfer")
	r.say("=============================")
	r.say("Connected over %s; the daemon has: %s", r.path, client.Tiers())
	want, got := make([]byte, r.size), make([]byte, r.size)
	r.pattern.store(want, 0)
	// The first touch of memory costs more than a copy; it is not to be timed.
	memfd.Copy(got, want)
	clear(got)

	staging, err := r.alloc(ctx, client, memspan.HostVisible)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, staging.Free(context.WithoutCancel(ctx))) }()
	r.say("Allocated %s staging span (host visible)", humanSize(r.size))
	if err := r.write(ctx, client, staging, want, out); err != nil {
		return err
	}

	device, err := r.alloc(ctx, client, memspan.DeviceLocal)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, device.Free(context.WithoutCancel(ctx))) }()
	r.say("Created device span (device local)")
	there, err := device.Copy(ctx, 0, staging, 0, r.size)
	if err != nil {
		return err
	}
	if _, err := staging.Fill(ctx, 0, r.size, overwritten); err != nil {
		return err
	}
	r.say("Copied staging to device, and overwrote staging")
	back, err := staging.Copy(ctx, 0, device, 0, r.size)
	if err != nil {
		return err
	}
	out.OnDevice = there.Device && back.Device
	if r.tier == memspan.VRAM && !out.OnDevice {
		return errors.New("the spans are in device memory, but the copies went through RAM")
	}
	r.say("Copied device back to staging")

	if err := r.read(ctx, client, staging, got, out); err != nil {
		return err
	}
	if err := r.verify("staging span, mapped", got, out); err != nil {
		return err
	}
	clear(got)
	if _, err := device.ReadAt(ctx, got, 0); err != nil {
		return err
	}
	if err := r.verify("device span, read without mapping", got, out); err != nil {
		return err
	}
	r.say("Data verification: PASSED")
	r.say("All %d uint32 values correct, twice", out.Words/2)
	r.say("")
	return nil
}

// alloc makes a span whose writes are in the tier when they are answered.
func (r *demoRun) alloc(ctx context.Context, client *memspan.Client, placement memspan.Placement) (*memspan.Span, error) {
	return client.Alloc(ctx, memspan.SpanConfig{
		Size: r.size, Tier: memspan.On(r.tier), Home: memspan.On(r.tier), Policy: memspan.WriteThrough, Placement: placement,
	})
}

// write maps the span, stores want and unmaps.
func (r *demoRun) write(ctx context.Context, client *memspan.Client, span *memspan.Span, want []byte, out *demoResult) error {
	wire, start := wireBytes(client), time.Now()
	m, err := span.Map(ctx, 0, r.size, memspan.ReadWrite)
	if err != nil {
		return err
	}
	out.Direct = m.Direct()
	r.say("Mapped memory (%s)", map[bool]string{true: "direct: the daemon's own pages", false: "shadow buffer"}[m.Direct()])
	memfd.Copy(m.Bytes(), want)
	r.say("Wrote test data (%s, %d words)", r.pattern.text, (r.size+3)/4)
	if err := m.Unmap(ctx); err != nil {
		return errors.Join(err, m.Discard(context.WithoutCancel(ctx)))
	}
	took := time.Since(start)
	out.WriteMBs = megabytes(r.size, took.Seconds())
	out.WireBytes += wireBytes(client) - wire
	r.say("Unmapped: %d bytes are in the %s tier (took %v, %s)", r.size, r.tier, roundTime(took.Seconds()), rate(r.size, took.Seconds()))
	return nil
}

// read maps the span again and loads all of it.
func (r *demoRun) read(ctx context.Context, client *memspan.Client, span *memspan.Span, got []byte, out *demoResult) error {
	r.say("Reading back data...")
	wire, start := wireBytes(client), time.Now()
	m, err := span.Map(ctx, 0, r.size, memspan.ReadOnly)
	if err != nil {
		return err
	}
	memfd.Copy(got, m.Bytes())
	took := time.Since(start)
	if err := m.Unmap(ctx); err != nil {
		return err
	}
	out.ReadMBs = megabytes(r.size, took.Seconds())
	out.WireBytes += wireBytes(client) - wire
	r.say("Read %d bytes (took %v, %s)", r.size, roundTime(took.Seconds()), rate(r.size, took.Seconds()))
	return nil
}

// verify compares every word of got.
func (r *demoRun) verify(where string, got []byte, out *demoResult) error {
	if off, want, found, ok := r.pattern.check(got, 0); !ok {
		return &mismatch{where, off, want, found}
	}
	out.Words += (r.size + 3) / 4
	return nil
}

// A pattern says which 32-bit word stands at each place.
type pattern struct {
	name string // in tables and JSON
	text string
	word func(i int64) uint32
}

// patterns are the phase-08 document's constant, and one whose words all differ: a
// constant hides bytes that arrived in the wrong place.
var patterns = [...]pattern{
	{"constant", "0x12345678 repeated", func(int64) uint32 { return 0x12345678 }},
	// Odd, so that it maps 32-bit numbers one to one: words repeat after 16 GiB.
	{"position", "every word different", func(i int64) uint32 { return uint32(i)*0x9e3779b1 + 0x12345678 }},
}

// store writes the pattern to dst, whose first byte is that of word first.
func (p pattern) store(dst []byte, first int64) {
	var last [4]byte
	for i := int64(0); len(dst) > 0; i++ {
		binary.LittleEndian.PutUint32(last[:], p.word(first+i))
		dst = dst[copy(dst, last[:]):]
	}
}

// check finds the first word of got that is not the pattern's, with its offset
// in bytes. A word that got ends within counts with the bytes that are there.
func (p pattern) check(got []byte, first int64) (off int64, want, found uint32, ok bool) {
	whole := int64(len(got)) / 4
	for i := range whole {
		if want, found := p.word(first+i), binary.LittleEndian.Uint32(got[i*4:]); want != found {
			return i * 4, want, found, false
		}
	}
	if rest := got[whole*4:]; len(rest) > 0 {
		var have, full [4]byte
		binary.LittleEndian.PutUint32(full[:], p.word(first+whole))
		clear(full[copy(have[:], rest):])
		if have != full {
			return whole * 4, binary.LittleEndian.Uint32(full[:]), binary.LittleEndian.Uint32(have[:]), false
		}
	}
	return 0, 0, 0, true
}

// wireBytes returns what went over a connection so far, both ways.
func wireBytes(client *memspan.Client) int64 {
	t := client.Traffic()
	return int64(t.Received.Bytes + t.Sent.Bytes)
}
