// SPDX-License-Identifier: Apache-2.0

package memspan

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/memspan/memspan/mapping"
	"github.com/memspan/memspan/wire/control"
)

// A Mode says what a mapping is for: one of ReadOnly, WriteOnly, ReadWrite and
// WriteDiscard, and whatever else of the modes is or-ed to it.
type Mode uint8

// The modes.
const (
	// ReadOnly mappings are loaded from. Stores to them fault, or are lost.
	ReadOnly Mode = 0
	// WriteOnly mappings are not filled with the span's bytes, and what was
	// stored is not looked for: each Flush names its ranges, and sends them
	// whole. Unmap sends nothing.
	WriteOnly Mode = 1
	// ReadWrite mappings are loaded from and stored to.
	ReadWrite Mode = 2
	// WriteDiscard mappings are for storing every byte anew, and cost no look
	// at what was there: they begin as zeros, or if direct as whatever the span
	// holds. Flush without ranges and Unmap send the whole mapping, and each
	// range of a Flush is sent whole, whoever wrote there last. After a Flush
	// Discard ends the mapping without sending it once more.
	WriteDiscard Mode = 3

	access Mode = 3

	// Shadow asks for a shadow buffer even where the mapping could be direct.
	Shadow Mode = 1 << 6
	// LastWriterWins lets flushes overwrite what others stored to the same
	// bytes meanwhile.
	LastWriterWins Mode = 1 << 7
)

// controlModes is how the protocol calls them.
var controlModes = [...]control.Mode{
	ReadOnly: control.ModeRead, WriteOnly: control.ModeWrite, ReadWrite: control.ModeReadWrite, WriteDiscard: control.ModeWrite,
}

// blind reports whether a shadow buffer of the mode is not filled, nor compared
// with anything.
func (m Mode) blind() bool { return m&access == WriteOnly || m&access == WriteDiscard }

// A Mapping is a []byte that is a range of a span. Its methods may be called
// concurrently; Flush, Invalidate, Unmap and Discard take turns.
type Mapping struct {
	span   *Span
	id     uint64
	off, n int64
	mode   Mode
	done   chan struct{}

	turn   chan struct{} // has room for the one that does what follows
	direct *mapping.Direct
	shadow *shadow // if not direct

	mu   sync.Mutex // guards what follows
	err  error      // set when done is closed
	mem  []byte     // nil once unmapped
	gone bool       // unmapped
}

// Map maps bytes [off, off+n) of the span, n > 0. The mapping holds what was
// committed before the call; blocks that were never written are not asked for,
// and read as zeros.
//
// Over a unix socket the mapping is direct, unless mode has Shadow: no bytes
// move. Otherwise it is a shadow buffer, which takes n bytes of memory here,
// and as much again if it is ReadWrite.
func (s *Span) Map(ctx context.Context, off, n int64, mode Mode) (*Mapping, error) {
	m, err := s.mapRange(ctx, off, n, mode)
	if err != nil {
		return nil, s.failed("map", off, n, err)
	}
	return m, nil
}

func (s *Span) mapRange(ctx context.Context, off, n int64, mode Mode) (*Mapping, error) {
	if n <= 0 {
		return nil, &Error{Code: ErrInvalid, Message: "a mapping has one byte at least"}
	}
	if err := s.checkRange(off, n); err != nil {
		return nil, err
	}
	if mode&^(access|Shadow|LastWriterWins) != 0 {
		return nil, &Error{Code: ErrWrongMode, Message: fmt.Sprintf("unknown mode %#x", mode)}
	}
	if err := s.mapped(); err != nil {
		return nil, err
	}
	m := &Mapping{span: s, off: off, n: n, mode: mode, done: make(chan struct{}), turn: make(chan struct{}, 1)}
	answer, err := m.ask(ctx)
	if err != nil {
		s.unmapped()
		return nil, err
	}
	if err := m.attach(ctx, answer); err != nil {
		m.drop(context.WithoutCancel(ctx)) // nothing was stored through it
		return nil, err
	}
	return m, nil
}

// mapAnswer is the answer to a map request.
type mapAnswer struct {
	control.Mapped
	file *os.File // if direct
}

// ask asks the server for the mapping and makes it known to the client.
func (m *Mapping) ask(ctx context.Context) (*mapAnswer, error) {
	c := m.span.client
	answer := new(mapAnswer)
	// The descriptor must be taken before the next frame is read, and events
	// about the mapping must find it.
	received := func(data []byte) error {
		if err := json.Unmarshal(data, &answer.Mapped); err != nil {
			return protocolError("answer to %s: %w", control.OpMap, err)
		}
		if answer.Direct {
			if c.link.fds == nil {
				return protocolError("a direct mapping over a connection that carries no descriptors")
			}
			file, err := c.link.fds.Take()
			if err != nil {
				return protocolError("a direct mapping without a descriptor: %w", err)
			}
			answer.file = file
		}
		m.id = answer.Mapping
		c.register(m)
		return nil
	}
	_, err := c.link.control(ctx, control.OpMap, control.Map{
		Handle: m.span.handle,
		Offset: m.off,
		Length: m.n,
		Mode:   controlModes[m.mode&access],
		Shadow: m.mode&Shadow != 0,
	}, received)
	if err != nil {
		return nil, err
	}
	return answer, nil
}

// attach makes the mapping's memory.
func (m *Mapping) attach(ctx context.Context, answer *mapAnswer) (err error) {
	if answer.Direct {
		m.direct, err = m.span.client.kept.take(m.span, answer.file, answer.Size, m.off, m.n, m.mode&access != ReadOnly)
		if err == nil {
			m.mem = m.direct.Bytes()
		}
		return err
	}
	if m.shadow, err = newShadow(m, answer.Versions); err != nil {
		return err
	}
	if !m.mode.blind() {
		err = m.shadow.fill(ctx)
	}
	if err == nil {
		err = m.shadow.buf.Arm()
	}
	if err == nil {
		m.mem = m.shadow.buf.Bytes()
	}
	return err
}

// register makes a mapping known to events.
func (c *Client) register(m *Mapping) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mappings[m.id] = m
	if c.stopping != nil {
		m.end(c.stopping)
	}
}

func (c *Client) forget(m *Mapping) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mappings[m.id] == m {
		delete(c.mappings, m.id)
	}
}

// Bytes returns the mapped bytes, nil after Unmap and Discard. They must not
// be touched after either: they become another mapping's.
// Stores by several goroutines need the care that any []byte needs.
func (m *Mapping) Bytes() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mem
}

// Span returns the span that is mapped.
func (m *Mapping) Span() *Span { return m.span }

// Offset returns where in the span the mapping begins.
func (m *Mapping) Offset() int64 { return m.off }

// Direct reports whether the mapping is the span's own pages, not a shadow
// buffer.
func (m *Mapping) Direct() bool { return m.direct != nil }

// Done is closed when the mapping is about to be, or has become, of no use to
// others: the server is stopping (a Flush may still reach it), the span was
// freed, the connection is gone, or the mapping was unmapped. The memory stays
// valid until Unmap or Discard.
func (m *Mapping) Done() <-chan struct{} { return m.done }

// Err returns why Done is closed: an error that is ErrClosed, ErrFreed,
// ErrPeerLost or ErrNotMapped; nil while it is open.
func (m *Mapping) Err() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// end closes Done.
func (m *Mapping) end(reason error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err == nil {
		m.err = reason
		close(m.done)
	}
}

// begin waits for the mapping's turn.
func (m *Mapping) begin(ctx context.Context) error {
	select {
	case m.turn <- struct{}{}:
	default:
		select {
		case m.turn <- struct{}{}:
		case <-ctx.Done():
			return canceled(ctx)
		}
	}
	if m.unmapped() {
		<-m.turn
		return errNotMapped
	}
	return nil
}

func (m *Mapping) finish() { <-m.turn }

var errNotMapped = &Error{Code: ErrNotMapped, Message: "it was unmapped before"}

func (m *Mapping) unmapped() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.gone
}

func (m *Mapping) failed(op string, err error) error {
	return m.span.failed(op, m.off, m.n, err)
}

// checkRanges returns the ranges, the whole mapping for none.
func (m *Mapping) checkRanges(ranges []Range) ([]Range, error) {
	if len(ranges) == 0 {
		return []Range{{Offset: m.off, Length: m.n}}, nil
	}
	for _, r := range ranges {
		if r.Offset < m.off || r.Length <= 0 || r.Offset-m.off > m.n || r.Length > m.n-(r.Offset-m.off) {
			return nil, &Error{Code: ErrOutOfRange, Span: m.span.label(), Offset: r.Offset, Length: r.Length,
				Message: fmt.Sprintf("the mapping is of bytes [%d,+%d)", m.off, m.n)}
		}
	}
	return ranges, nil
}

// Flush makes what was stored to the ranges, which are in the span's offsets,
// or to all of the mapping if none are given, a new version for everybody. It
// returns when the span's write policy is met. Only bytes that differ from
// what the server last held travel; if none do, nothing travels and the last
// Commit is returned.
//
// ErrConflict says that others changed some of the same bytes since this
// mapping last saw them: the error, or each of the errors joined in it, names
// a range, and what was stored there is not flushed. Everything else is.
//
// A WriteOnly mapping's ranges must be named, and are stored whole, whoever
// wrote them last; so is what a WriteDiscard mapping flushes. A ReadOnly mapping cannot be flushed: ErrWrongMode.
func (m *Mapping) Flush(ctx context.Context, ranges ...Range) (Commit, error) {
	if err := m.begin(ctx); err != nil {
		return Commit{}, m.failed("flush", err)
	}
	defer m.finish()
	commit, err := m.flush(ctx, ranges)
	return commit, m.failed("flush", err)
}

func (m *Mapping) flush(ctx context.Context, ranges []Range) (Commit, error) {
	switch m.mode & access {
	case ReadOnly:
		return Commit{}, &Error{Code: ErrWrongMode, Message: "the mapping is read-only"}
	case WriteOnly:
		if len(ranges) == 0 {
			return Commit{}, &Error{Code: ErrWrongMode, Message: "a write-only mapping's flush names its ranges"}
		}
	}
	if m.direct != nil {
		if _, err := m.checkRanges(ranges); err != nil {
			return Commit{}, err
		}
		done, err := ask[control.Committed](ctx, m.span.client, control.OpFlush, control.Flush{Mapping: m.id, Ranges: ranges})
		return Commit(done), err
	}
	ranges, err := m.checkRanges(ranges)
	if err != nil {
		return Commit{}, err
	}
	if err := m.shadow.flush(ctx, ranges, false); err != nil {
		return m.shadow.last, err
	}
	return m.shadow.lastCommit(ctx)
}

// Invalidate takes in what others committed to the ranges, or to all of the
// mapping if none are given. Bytes that were stored here and not flushed stay
// on top. A direct mapping has others' stores at once, but for those of a GPU to
// the span of a ReadOnly one, which Invalidate brings.
// A WriteOnly or WriteDiscard mapping has nothing to compare with:
// ErrWrongMode.
func (m *Mapping) Invalidate(ctx context.Context, ranges ...Range) error {
	if err := m.begin(ctx); err != nil {
		return m.failed("invalidate", err)
	}
	defer m.finish()
	ranges, err := m.checkRanges(ranges)
	switch {
	case err != nil:
	case m.mode.blind():
		err = &Error{Code: ErrWrongMode, Message: "the mapping is for writing only"}
	case m.shadow != nil:
		err = m.shadow.invalidate(ctx, ranges)
	default:
		_, err = ask[nothing](ctx, m.span.client, control.OpInvalidate, control.Flush{Mapping: m.id, Ranges: ranges})
	}
	return m.failed("invalidate", err)
}

// Unmap flushes the mapping and ends it. If the flush fails the mapping stays
// as it is and nothing is lost: Unmap may be called again, or Discard. A
// WriteOnly mapping is not flushed. Where nothing is left to be committed Unmap
// does not wait for the server to know that the mapping is over: what is asked
// of it afterwards over the same connection finds it so. After the first Unmap or Discard that ends
// the mapping it is ErrNotMapped.
func (m *Mapping) Unmap(ctx context.Context) error {
	if err := m.begin(ctx); err != nil {
		return m.failed("unmap", err)
	}
	defer m.finish()
	if m.shadow != nil && (m.mode&access == ReadWrite || m.mode&access == WriteDiscard) {
		if err := m.shadow.flush(ctx, []Range{{Offset: m.off, Length: m.n}}, true); err != nil {
			return m.failed("unmap", err)
		}
	}
	if m.direct != nil && m.mode&access != ReadOnly {
		// The answer says what became of what was stored.
		err := m.tell(ctx)
		if err != nil && !errors.Is(err, ErrDebt) {
			return m.failed("unmap", err)
		}
		return m.failed("unmap", errors.Join(err, m.release()))
	}
	// What was stored is with the server. If it cannot be told that the mapping
	// is over, the end of the connection will tell it.
	m.span.client.link.notify(control.OpUnmap, control.Mapping{Mapping: m.id})
	return m.failed("unmap", m.release())
}

// Discard ends the mapping without a flush: what was stored to a shadow buffer
// since the last is lost. What was stored to a direct mapping is in the span
// already, and is committed as by Unmap. The mapping ends in any case; an
// error says that the server may not know of it.
func (m *Mapping) Discard(ctx context.Context) error {
	if err := m.begin(context.WithoutCancel(ctx)); err != nil {
		return m.failed("discard", err)
	}
	defer m.finish()
	return m.failed("discard", m.drop(ctx))
}

// drop ends the mapping whatever happens.
func (m *Mapping) drop(ctx context.Context) error {
	err := m.tell(ctx)
	if m.span.client.Err() != nil {
		err = nil // it ended with the connection
	}
	return errors.Join(err, m.release())
}

// tell tells the server that the mapping is over.
func (m *Mapping) tell(ctx context.Context) error {
	_, err := ask[nothing](ctx, m.span.client, control.OpUnmap, control.Mapping{Mapping: m.id})
	return err
}

// release gives the memory back.
func (m *Mapping) release() error {
	m.mu.Lock()
	m.gone, m.mem = true, nil
	m.mu.Unlock()
	m.end(errNotMapped)
	m.span.client.forget(m)
	m.span.unmapped()
	switch {
	case m.direct != nil:
		return m.span.client.kept.keep(m.span, m.direct)
	case m.shadow != nil:
		return m.shadow.close()
	}
	return nil
}
