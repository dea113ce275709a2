// SPDX-License-Identifier: Apache-2.0

package pull

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"

	"github.com/memspan/memspan/surface"
)

// A partState says what is in a file that is being made: FILE.part.state.
//
//	"MSPPART1", id [16], boot [16], root [32], u8 root is known,
//	i64 chunk, i64 offset, i64 end, u32 CRC-32C of all but itself behind
//	  the bitmap: u64 number of words, words
//
// All numbers are little-endian.
type partState struct {
	id     surface.ID
	boot   surface.Machine // on which it was written: what it says is in the page cache there
	root   *surface.Digest
	chunk  int64
	window window
	have   bitset // its base is the window's first chunk
}

const (
	stateMagic = "MSPPART1"
	stateFixed = len(stateMagic) + 16 + 16 + 32 + 1 + 3*8 + 8
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errState = errors.New("malformed state of a partial file")

func (p *partState) append(b []byte) []byte {
	start := len(b)
	b = append(b, stateMagic...)
	b = append(append(b, p.id[:]...), p.boot[:]...)
	var root surface.Digest
	known := byte(0)
	if p.root != nil {
		root, known = *p.root, 1
	}
	b = append(append(b, root[:]...), known)
	for _, v := range []int64{p.chunk, p.window.off, p.window.end, int64(len(p.have.words))} {
		b = binary.LittleEndian.AppendUint64(b, uint64(v))
	}
	for _, w := range p.have.words {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

// parseState reads what append writes, and nothing else.
func parseState(b []byte) (*partState, error) {
	if len(b) < stateFixed+4 || string(b[:len(stateMagic)]) != stateMagic {
		return nil, fmt.Errorf("%d bytes: %w", len(b), errState)
	}
	b, sum := b[:len(b)-4], binary.LittleEndian.Uint32(b[len(b)-4:])
	if crc32.Checksum(b, castagnoli) != sum {
		return nil, fmt.Errorf("its sum is wrong: %w", errState)
	}
	p := &partState{id: surface.ID(b[8:24]), boot: surface.Machine(b[24:40])}
	root := surface.Digest(b[40:72])
	switch known := b[72]; {
	case known == 1:
		p.root = &root
	case known != 0 || root != surface.Digest{}:
		return nil, fmt.Errorf("root %v, %d: %w", root, known, errState)
	}
	number := func(i int) int64 { return int64(binary.LittleEndian.Uint64(b[73+8*i:])) }
	p.chunk, p.window.off, p.window.end = number(0), number(1), number(2)
	words := number(3)
	b = b[stateFixed:]
	if words < 0 || words > int64(len(b)) || words*8 != int64(len(b)) || p.chunk < surface.MinChunk || p.chunk > surface.MaxChunk ||
		p.window.off < 0 || p.window.end < p.window.off || p.window.end > surface.MaxSize {
		return nil, fmt.Errorf("chunk of %d bytes, [%d, %d): %w", p.chunk, p.window.off, p.window.end, errState)
	}
	p.have.base = p.window.off / p.chunk
	for ; len(b) > 0; b = b[8:] {
		p.have.words = append(p.have.words, binary.LittleEndian.Uint64(b))
	}
	return p, nil
}

// save replaces the state at path in one step.
func (p *partState) save(path string) error {
	next := path + ".new"
	if err := os.WriteFile(next, p.append(nil), 0o600); err != nil {
		return err
	}
	return os.Rename(next, path)
}
