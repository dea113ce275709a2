// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/memspan/memspan/internal/durable"
	"github.com/memspan/memspan/internal/unixsock"
	"github.com/memspan/memspan/sharedbuf"
	"github.com/memspan/memspan/sharedbuf/host"
)

// checkShared looks at a directory of shared buffers: what its file system does
// for two sides that map one file, and whether a buffer can be made there and
// processed.
func checkShared(dir string) check {
	c := check{Name: "shared directory", State: stateEssential, Meaning: "no buffer can be shared in " + dir}
	system, err := durable.FileSystemOf(dir)
	if err != nil {
		c.Found, c.Reason, c.Fix = "no directory", err.Error(), "make it: mkdir -m 700 "+dir
		return c
	}
	coherence := sharedbuf.CoherenceOf(system.Name)
	c.Found = fmt.Sprintf("%s, %s, %v", system.Name, roomIn(system), coherence)
	if err := tryShared(dir); err != nil {
		c.Reason, c.Fix = err.Error(), "choose a directory that you may write, with room"
		return c
	}
	switch {
	case coherence == sharedbuf.WrittenThrough:
		c.State, c.Meaning = stateLimited, "buffers are written through before the host works on them, and read anew after"
		c.Reason = "the two sides have caches of their own on " + system.Name
	case system.Volatile:
		c.State, c.Meaning = stateOK, "both sides map the same pages: nothing is copied"
	default:
		c.State, c.Meaning = stateLimited, "both sides map the same pages, and the kernel writes them to disk meanwhile"
		c.Fix = "for speed choose a directory in RAM, like one in /dev/shm"
	}
	return c
}

// tryShared shares one buffer with a host of its own.
func tryShared(dir string) (err error) {
	temp, err := os.MkdirTemp("", "memspan-doctor-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(temp)) }()
	network, address := "unix", filepath.Join(temp, "s")
	if !peersAreKnown {
		network, address = "tcp", "127.0.0.1:0"
	}
	if err := unixsock.CheckPath(address); err != nil {
		return err
	}
	ln, err := net.Listen(network, address)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), daemonTimeout)
	defer cancel()
	h, err := host.New(host.Config{Dir: dir})
	if err != nil {
		return errors.Join(err, ln.Close())
	}
	done := make(chan error, 1)
	go func() { done <- h.Serve(ctx, ln) }()
	err = shareOne(ctx, ln.Addr().String(), dir)
	cancel()
	return errors.Join(err, <-done, h.Close())
}

func shareOne(ctx context.Context, address, dir string) error {
	c, err := sharedbuf.Dial(ctx, address, sharedbuf.Options{Dir: dir})
	if err != nil {
		return err
	}
	b, err := c.Alloc(ctx, int64(os.Getpagesize()))
	if err == nil {
		_, err = b.Process(ctx, sharedbuf.Fill(0x12345678), sharedbuf.Verify(0x12345678))
	}
	if err == nil && b.Bytes()[0] != 0x78 {
		err = errors.New("what the host writes is not seen")
	}
	return errors.Join(err, c.Close())
}
