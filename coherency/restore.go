// SPDX-License-Identifier: Apache-2.0

package coherency

// Restore tells a new Manager what home kept of block b beyond its own life: the
// version that was the block's last, and, if held, the one whose bytes home
// has, which may be older. If it is, or if home has none, the last one is lost:
// see Accept.
//
// It must be called before anything else is asked of the block. It fails with
// ErrState if block b is not new or held is newer than last; with ErrRange.
func (m *Manager) Restore(b int, last uint64, held uint64, atHome bool) error {
	if err := m.check("restore", b, m.home); err != nil {
		return err
	}
	blk := &m.blocks[b]
	if blk.version != 0 || blk.slot != 0 || atHome && held > last || last == 0 {
		return m.refuse(ErrState, "restore", b, m.home, "the block is not new, or its versions are not in order")
	}
	for a := range m.holders(b).All() { // zeroed storage is stale from here on
		m.put(b, a, 0)
	}
	blk.version, blk.flags = last, 0
	if atHome {
		m.put(b, m.home, held+1)
		if held == last {
			blk.owner = m.home
		}
	}
	return nil
}
