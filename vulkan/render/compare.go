// SPDX-License-Identifier: Apache-2.0

//go:build linux && !novulkan && (amd64 || arm64)

package render

import (
	"bytes"

	"github.com/memspan/memspan/vulkan/stream"
)

// pieceSize is how many bytes of a memory are compared before those who store
// to it get their turn.
const pieceSize = 1 << 20

// A comparison is what comparing needs, by whoever compares.
type comparison struct {
	delta
	caller caller
}

// compare sends what a submission has written to mapped memory so far, and what
// it may have waited for on other queues, whose ends may not have been seen.
func (r *renderer) compare(s *submission) {
	for _, w := range s.device.before(s) {
		r.compareMemory(w.memory, w.spans)
	}
}

// begin adds a submission to those under way, if it writes anything.
func (d *device) begin(s *submission) {
	if len(s.writes) == 0 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.open = append(d.open, s)
}

// end removes it.
func (d *device) end(s *submission) {
	if len(s.writes) == 0 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, o := range d.open {
		if o == s {
			d.open = append(d.open[:i], d.open[i+1:]...)
			return
		}
	}
}

// before returns what a submission writes and, if it may have waited for other
// queues, what submissions wrote that are older and not known to have ended.
func (d *device) before(s *submission) []write {
	if !s.joins {
		return s.writes
	}
	list := s.writes[:len(s.writes):len(s.writes)]
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, o := range d.open {
		if o == s {
			break
		}
		list = append(list, o.writes...)
	}
	return list
}

// compareMemory sends what differs from the client's image.
func (r *renderer) compareMemory(m *deviceMemory, spans []span) {
	if len(spans) == 0 {
		return
	}
	m.sending.Lock()
	defer m.sending.Unlock()
	x := r.comparisons.Get().(*comparison)
	defer r.comparisons.Put(x)
	x.reset()
	for _, s := range spans {
		for at := s.off; at < s.end; {
			end := min(s.end, (at/pieceSize+1)*pieceSize)
			m.mu.Lock()
			if m.bytes == nil {
				m.mu.Unlock()
				return
			}
			if !m.coherent {
				if err := m.synchronize(&x.caller, m.device.host.invalidate, []span{{at, end}}); err != nil {
					r.lose(resultOf(err), noCommand, err)
				}
			}
			at = m.compare(&x.delta, at, end)
			m.mu.Unlock()
			if x.full() {
				r.sendChanged(m, &x.delta)
			}
		}
	}
	if len(x.runs) > 0 {
		r.sendChanged(m, &x.delta)
	}
}

// sendChanged sends what is in the delta and empties it.
func (r *renderer) sendChanged(m *deviceMemory, d *delta) {
	d.head = stream.AppendRuns(d.head[:0], m.id, d.runs)
	r.conn.Write(stream.OpMemoryChanged, 0, 0, d.head, d.data) // a broken connection ends serve
	d.reset()
}

// compare adds to a delta what differs in [at, end), and returns how far it
// came before the delta was full. mu is held.
func (m *deviceMemory) compare(d *delta, at, end uint64) uint64 {
	image := m.image.Bytes()
	for at < end && !d.full() {
		c := at / chunkSize
		stop := min(end, (c+1)*chunkSize)
		switch m.chunks[c] {
		case imaged:
			if bytes.Equal(m.bytes[at:stop], image[at:stop]) {
				at = stop
				continue
			}
		case expected:
			if isZero(m.bytes[at:stop]) {
				at = stop
				continue
			}
			m.chunks[c] = imaged
		default: // nobody expects a write here
			at = stop
			continue
		}
		for at < stop && !d.full() {
			next := min(stop, (at/comparedPage+1)*comparedPage)
			d.compare(at, m.bytes[at:next], image[at:next])
			at = next
		}
	}
	return at
}

// isZero reports whether b holds zeros only.
func isZero(b []byte) bool {
	n := min(len(b), 64)
	return nonZero(b[:n], 0) == n && bytes.Equal(b[n:], b[:len(b)-n])
}
