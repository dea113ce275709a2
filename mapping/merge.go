// SPDX-License-Identifier: Apache-2.0

package mapping

import (
	"bytes"

	"github.com/memspan/memspan/internal/memfd"
)

// mergeStep is how much is merged before others get a turn at the shadow.
const mergeStep = 256 << 10

// Merge brings in what the server holds now at the span's offset off. Where
// remote differs from the image, its bytes are stored, unless the user has
// changed them and they were not collected and acknowledged since: those stay
// on top, and differ from the server's for the next Collect. No other byte is
// touched, so stores of other bytes at the same time lose nothing; and a byte
// that is stored to during Merge keeps the user's value. A shadow without an
// image takes remote as it is.
func (s *Shadow) Merge(off int64, remote []byte) error {
	at, err := s.locate(off, int64(len(remote)))
	if err != nil {
		return err
	}
	for len(remote) > 0 {
		n := min(mergeStep-at.start%mergeStep, int64(len(remote)))
		if err := s.mergePiece(at.start, remote[:n]); err != nil {
			return err
		}
		at.start, remote = at.start+n, remote[n:]
	}
	return nil
}

func (s *Shadow) mergePiece(at int64, remote []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(); err != nil {
		return err
	}
	if !s.image {
		memfd.Copy(s.region.alias[at:at+int64(len(remote))], remote)
		return nil
	}
	for len(remote) > 0 {
		n := min(pageSize-at%pageSize, int64(len(remote)))
		if !bytes.Equal(s.region.image[at:at+n], remote[:n]) {
			s.mergePage(at, remote[:n])
		}
		at, remote = at+n, remote[n:]
	}
	return nil
}

// mergePage merges within one page, word by word.
func (s *Shadow) mergePage(at int64, remote []byte) {
	begin := at &^ 7
	n := (at+int64(len(remote))+7)&^7 - begin // whole words
	user, image := s.region.alias[begin:begin+n], s.region.image[begin:begin+n]
	now := append(s.words[:0], image...) // remote, and what is beside it in its words
	copy(now[at-begin:], remote)
	s.words = now
	storeUnchanged(user, image, now)
	s.imaged(begin, now)
}

// imaged makes whole words of one page the image.
func (s *Shadow) imaged(begin int64, now []byte) {
	// Not word by word: each atomic store would have to wait for the one here.
	copy(s.region.image[begin:], now)
	if s.sums != nil {
		s.sums.sum(begin / pageSize)
	}
}
