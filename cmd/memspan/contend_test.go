// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"net"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// A contender is a daemon that may not get its socket.
type contender struct {
	cmd    *exec.Cmd
	stderr bytes.Buffer
	won    bool // it listens
}

// contend ROUNDS starts daemons for one socket at once, again and again. One
// must get it and answer on it, the others must exit and say why. The one that
// got it is killed, so that it leaves its socket to the next round.
func cmdContend(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: contend ROUNDS")
	}
	rounds, err := strconv.Atoi(args[0])
	ts.Check(err)
	program, err := lookPath(ts, "memspan")
	ts.Check(err)
	for round := range rounds {
		contendOnce(ts, program, round)
	}
}

func contendOnce(ts *testscript.TestScript, program string, round int) {
	const many = 3
	var contenders [many]*contender
	over := make(chan *contender)
	for i := range contenders {
		c := &contender{cmd: exec.Command(program, "serve", "--json", "--no-vram")}
		contenders[i] = c
		c.cmd.Env = environ(ts)
		c.cmd.Stderr = &c.stderr
		stdout, err := c.cmd.StdoutPipe()
		ts.Check(err)
		ts.Check(c.cmd.Start())
		ts.Defer(func() { c.cmd.Process.Kill() })
		go func() { // says when it listens, or has ended
			var said struct{ Addresses []string }
			c.won = json.NewDecoder(stdout).Decode(&said) == nil
			if !c.won {
				c.cmd.Wait()
			}
			over <- c
		}()
	}
	var winners []*contender
	for range contenders {
		select {
		case c := <-over:
			if c.won {
				winners = append(winners, c)
			} else if code := c.cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(c.stderr.String(), "daemon") {
				ts.Fatalf("round %d: a daemon without its socket exits %d and says: %s", round, code, c.stderr.String())
			}
		case <-time.After(patience):
			ts.Fatalf("round %d: a daemon neither listens nor ends", round)
		}
	}
	conn, dialErr := net.Dial("unix", filepath.Join(ts.Getenv("XDG_RUNTIME_DIR"), "memspan.sock"))
	if dialErr == nil {
		conn.Close()
	}
	for _, c := range winners {
		c.cmd.Process.Kill()
		c.cmd.Wait()
	}
	if len(winners) != 1 || dialErr != nil {
		ts.Fatalf("round %d: %d daemons of %d listen, want 1; dial: %v", round, len(winners), many, dialErr)
	}
}
