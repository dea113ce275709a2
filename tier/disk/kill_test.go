// SPDX-License-Identifier: Apache-2.0

package disk_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/memspan/memspan/internal/memfd"
	"github.com/memspan/memspan/tier"
	"github.com/memspan/memspan/tier/disk"
)

// The blocks of the span that the killed process writes, all in one commit.
const killedBlocks = 4

// stamp fills a block with bytes that tell version and block.
func stamp(p []byte, version uint64, b int) {
	for i := 0; i+16 <= len(p); i += 16 {
		binary.LittleEndian.PutUint64(p[i:], version)
		binary.LittleEndian.PutUint64(p[i+8:], uint64(b))
	}
}

// TestKilled is the process that TestKill kills: it commits and says which
// version has returned.
func TestKilled(t *testing.T) {
	dir := os.Getenv("MEMSPAN_KILLED_DIR")
	if dir == "" {
		t.Skip("it is for TestKill")
	}
	d := openTier(t, disk.Config{Dir: dir})
	rec := disk.Record{ID: disk.ID{1}, Name: "killed", Size: killedBlocks << 20, Published: true}
	for _, r := range d.Recovered() {
		rec = r
	}
	s, err := d.Durable(rec)
	ok(t, err)
	x := d.Begin()
	x.Set(rec)
	ok(t, x.Commit(ctx))
	r, err := memfd.Create("killed", 1<<20)
	ok(t, err)
	m := tier.Memory{Region: r, Len: 1 << 20}
	for v := rec.Version + 1; ; v++ {
		x := d.Begin()
		for b := range killedBlocks {
			n := int64(1 << 20)
			if v%3 != 0 {
				n = 8192
			}
			stamp(m.Bytes()[:n], v, b)
			st, err := s.Stage(ctx, b, []disk.Run{{Offset: 0, Length: uint32(n)}}, m.Slice(0, n))
			ok(t, err)
			x.Put(st, v)
		}
		x.Version(s, v)
		ok(t, x.Commit(ctx))
		fmt.Println("version", v)
		if v%50 == 0 {
			ok(t, d.Checkpoint())
		}
	}
}

// A process is killed again and again while it commits: every commit that
// returned is there, whole, and no part of another.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	kills := 30
	if os.Getenv("MEMSPAN_SLOW") != "" {
		kills = 300
	}
	m := region(t, 1<<20)
	version := uint64(0)
	for range kills {
		version = max(version, killOne(t, dir))
		d := openTier(t, disk.Config{Dir: dir})
		recs := d.Recovered()
		if len(recs) == 0 && version == 0 {
			ok(t, d.Close())
			continue
		}
		if len(recs) != 1 || recs[0].Version < version || recs[0].Version > version+1 {
			t.Fatalf("recovered %+v, version %d returned", recs, version)
		}
		version = recs[0].Version
		s, err := d.Durable(recs[0])
		ok(t, err)
		n := 8192
		if version%3 == 0 {
			n = 1 << 20
		}
		want := make([]byte, n)
		for b := range killedBlocks {
			ok(t, s.Read(ctx, b, 0, m))
			if stamp(want, version, b); version > 0 && !bytes.Equal(m.Bytes()[:n], want) {
				t.Fatalf("block %d is not of version %d, but %d", b, version, binary.LittleEndian.Uint64(m.Bytes()))
			}
			if version > 3 {
				stamp(want, version/3*3, b)
				if !bytes.Equal(m.Bytes()[1<<20-4096:], want[:4096]) {
					t.Fatalf("block %d: its end is not of version %d", b, version/3*3)
				}
			}
		}
		if rand.IntN(2) == 0 {
			ok(t, d.Abandon())
		} else {
			ok(t, d.Close())
		}
	}
	if version == 0 {
		t.Error("no commit ever returned")
	}
	t.Logf("%d versions", version)
}

// killOne runs the process, kills it, and returns the last version it said.
func killOne(t *testing.T, dir string) (version uint64) {
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
	cmd.Env = append(os.Environ(), "MEMSPAN_KILLED_DIR="+dir)
	out, err := cmd.StdoutPipe()
	ok(t, err)
	ok(t, cmd.Start())
	kill := time.AfterFunc(time.Duration(rand.Int64N(int64(150*time.Millisecond))), func() { _ = cmd.Process.Signal(syscall.SIGKILL) })
	defer kill.Stop()
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		text, said := strings.CutPrefix(lines.Text(), "version ")
		if !said {
			t.Error(lines.Text())
			continue
		}
		if v, err := strconv.ParseUint(text, 10, 64); err == nil {
			version = v
		}
	}
	_ = cmd.Wait()
	return version
}
