// SPDX-License-Identifier: Apache-2.0

package mapping

import (
	"crypto/subtle"
	"errors"
	"slices"
)

// MergeDelta brings in what the other side changed from the span's offset off
// on, told as the difference (exclusive or) between its bytes now and as this
// side last knew them, its image. Zeros in delta are bytes that did not change:
// nothing is assumed of their value there, so changes of their neighbours may
// be told together even while bytes of this side are on their way to the other.
// Where delta is not zero MergeDelta does what Merge does, save that a byte to
// which the user stores at that very moment may take either value. The shadow
// must have an image.
func (s *Shadow) MergeDelta(off int64, delta []byte) error {
	at, err := s.locate(off, int64(len(delta)))
	if err != nil {
		return err
	}
	if !s.image {
		return errors.New("mapping: a delta for a mapping without an image")
	}
	for len(delta) > 0 {
		n := min(mergeStep-at.start%mergeStep, int64(len(delta)))
		if err := s.deltaPiece(at.start, delta[:n]); err != nil {
			return err
		}
		at.start, delta = at.start+n, delta[n:]
	}
	return nil
}

func (s *Shadow) deltaPiece(at int64, delta []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(); err != nil {
		return err
	}
	for len(delta) > 0 {
		n := min(pageSize-at%pageSize, int64(len(delta)))
		s.deltaPage(at, delta[:n])
		at, delta = at+n, delta[n:]
	}
	return nil
}

// deltaPage merges within one page.
func (s *Shadow) deltaPage(at int64, delta []byte) {
	begin := at &^ 7
	n := (at+int64(len(delta))+7)&^7 - begin // whole words
	if int64(len(delta)) < n {
		whole := make([]byte, n)
		copy(whole[at-begin:], delta)
		delta = whole
	}
	user, image := s.region.alias[begin:begin+n], s.region.image[begin:begin+n]
	now := slices.Grow(s.words[:0], len(image))[:len(image)]
	subtle.XORBytes(now, image, delta)
	s.words = now
	storeDelta(user, image, now, delta)
	s.imaged(begin, now)
}
