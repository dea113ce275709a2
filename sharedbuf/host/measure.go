// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"time"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/sharedbuf"
)

// The operations of buffer_test.
const (
	testRead = iota + 1
	testWrite
	testVerify
)

// payloadChunk is how many bytes of a payload are in memory at a time.
const payloadChunk = 64 << 10

// A testResult is what buffer_test answers.
type testResult struct {
	Bytes    int64  `json:"bytes_processed"`
	Checksum uint32 `json:"checksum"`
	Status   int    `json:"status"`
}

// bufferTest moves bytes over the connection itself, outside the JSON. Its error
// ends the connection: the place in the stream is lost.
func (c *conn) bufferTest(r *sharedbuf.Request) error {
	c.settle() // nobody's reply comes between
	op, err := r.OperationNumber()
	end := func(code sharedbuf.Code, format string, args ...any) error {
		c.reply(r.ID, nil, &sharedbuf.Error{Code: code, Op: r.API, Message: fmt.Sprintf(format, args...)})
		return errEnd
	}
	switch {
	case r.Transfer != nil && !*r.Transfer:
		c.reply(r.ID, nil, &sharedbuf.Error{Code: sharedbuf.ErrUnsupported, Op: r.API,
			Message: "there is no memory of a fixed layout here: use socket_transfer, or the api shared_buffer"})
		return nil
	case err != nil || op < testRead || op > testVerify:
		return end(sharedbuf.ErrInvalid, "operation %s; want 1, 2 or 3", r.Operation)
	case r.PayloadSize > c.h.config.MaxBuffer:
		return end(sharedbuf.ErrLimit, "a payload of %d bytes; at most %d are allowed", r.PayloadSize, c.h.config.MaxBuffer)
	}
	result := testResult{Bytes: r.PayloadSize, Checksum: uint32(r.Pattern)}
	if op != testRead {
		// Clients of the original system do not fill what they have verified:
		// nothing is compared, and the sum says what came.
		if result.Checksum, err = c.drain(r.PayloadSize); err != nil {
			return errEnd
		}
		c.reply(r.ID, result, nil)
		return nil
	}
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	c.out = sharedbuf.AppendReply(c.out[:0], r.ID, result, nil)
	c.write(c.out)
	payload := repeated(uint32(r.Pattern), int(min(payloadChunk, r.PayloadSize)))
	for left := r.PayloadSize; left > 0 && c.ctx.Err() == nil; left -= int64(len(payload)) {
		c.write(payload[:min(left, int64(len(payload)))])
	}
	return c.ctx.Err()
}

// drain reads a payload and returns the exclusive or of its words; the tail that
// is none is left out.
func (c *conn) drain(size int64) (sum uint32, err error) {
	defer c.within()()
	buf := make([]byte, min(payloadChunk, size))
	for left := size; left > 0; {
		piece := buf[:min(left, int64(len(buf)))]
		if _, err := io.ReadFull(c.r, piece); err != nil {
			return 0, err
		}
		left -= int64(len(piece))
		for ; len(piece) >= 4; piece = piece[4:] {
			sum ^= binary.LittleEndian.Uint32(piece)
		}
	}
	return sum, nil
}

// Bounds of a measurement.
const (
	maxIterations = 10_000_000
	maxMeasured   = 1 << 40 // bytes
	measuredPiece = 4 << 20
	latencyBytes  = 64
)

// A measurement is what performance answers.
type measurement struct {
	Min        int64   `json:"min_latency_ns"`
	Max        int64   `json:"max_latency_ns"`
	Avg        int64   `json:"avg_latency_ns"`
	Throughput float64 `json:"throughput_mbps"` // 10^6 bytes a second
	Iterations int64   `json:"iterations_completed"`
}

// performance measures the host's memory: each iteration copies a small message
// (type 1) or target_bytes (type 2). What the channel takes the guest measures
// itself, by echo.
func (h *Host) performance(ctx context.Context, r *sharedbuf.Request) (any, error) {
	iterations, size := max(r.Iterations, 1), r.TargetBytes
	switch {
	case r.TestType == 1:
		size = latencyBytes
	case r.TestType != 2:
		return nil, &sharedbuf.Error{Code: sharedbuf.ErrInvalid, Op: r.API, Message: fmt.Sprintf("test_type %d; want 1 or 2", r.TestType)}
	}
	if iterations > maxIterations || size > maxMeasured/iterations {
		return nil, &sharedbuf.Error{Code: sharedbuf.ErrLimit, Op: r.API, Message: fmt.Sprintf("%d times %d bytes; at most %d times and %d bytes are allowed", iterations, size, maxIterations, int64(maxMeasured))}
	}
	// One at a time: they would measure each other.
	select {
	case h.measuring <- struct{}{}:
		defer func() { <-h.measuring }()
	case <-ctx.Done():
		return nil, place(context.Cause(ctx), r.API, "")
	}
	from, to := make([]byte, min(size, measuredPiece)), make([]byte, min(size, measuredPiece))
	m := measurement{Min: 1<<63 - 1, Iterations: iterations}
	var total time.Duration
	for range iterations {
		start := time.Now()
		for left := size; left > 0; left -= int64(len(to)) {
			if ctx.Err() != nil {
				return nil, place(context.Cause(ctx), r.API, "")
			}
			memfd.Copy(to[:min(left, int64(len(to)))], from)
		}
		took := time.Since(start)
		total += took
		m.Min, m.Max = min(m.Min, int64(took)), max(m.Max, int64(took))
	}
	m.Avg = int64(total) / iterations
	m.Throughput = float64(size) * float64(iterations) / 1e6 / max(total.Seconds(), 1e-9)
	return m, nil
}
