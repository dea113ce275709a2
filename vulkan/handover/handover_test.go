// SPDX-License-Identifier: Apache-2.0

//go:build linux

package handover_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/memspan/memspan/internal/fdpass"
	"github.com/memspan/memspan/vulkan/handover"
	"github.com/memspan/memspan/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ends returns the daemon's and the worker's end of a socket.
func ends(t *testing.T) (daemon, worker *net.UnixConn) {
	t.Helper()
	daemon, f, err := fdpass.Pair()
	if err != nil {
		t.Fatal(err)
	}
	worker, err = fdpass.UnixConn(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { daemon.Close(); worker.Close() })
	return daemon, worker
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestHandover(t *testing.T) {
	for _, local := range []bool{true, false} {
		daemon, worker := ends(t)
		app, client, err := fdpass.Pair()
		check(t, err)
		defer app.Close()
		start := handover.Start{
			Session: 9, Application: "vkcube", PID: 42, Device: "0", Sums: true, IOTimeout: time.Minute, Local: local,
			Memory: 1 << 33, Objects: 7, QueueDepth: 8, Deadline: time.Second, HideImport: true,
		}
		w, err := handover.Begin(daemon, start, client)
		check(t, err)
		check(t, client.Close())
		p, err := handover.Accept(worker)
		check(t, err)
		if p.Start != start || (p.Files != nil) != local {
			t.Errorf("accepted %+v, files %v", p.Start, p.Files)
		}

		// The client's connection is as it was said to be.
		peer := wire.NewConn(app, wire.Config{Sums: true})
		check(t, peer.WriteFrame(wire.Header{Kind: wire.KindStream}, nil, []byte("hello")))
		h, err := p.Client.ReadHeader()
		check(t, err)
		data := make([]byte, h.Raw)
		check(t, p.Client.ReadData(data))
		if string(data) != "hello" || !h.Has(wire.FlagSum) {
			t.Errorf("the worker reads %q, %+v", data, h)
		}

		first := handover.Status{Confined: "landlock 7, seccomp", Full: true}
		second := handover.Status{Device: "llvmpipe", Memory: 1 << 20, Objects: 3}
		check(t, p.Report(first))
		check(t, p.Report(second))
		for _, want := range []handover.Status{first, second} {
			if got, err := w.Next(); got != want || err != nil {
				t.Errorf("Next = %+v, %v, want %+v", got, err, want)
			}
		}
		select {
		case <-p.Done():
			t.Error("the worker shall end")
		default:
		}
		w.End()
		<-p.Done()
		check(t, p.Close())
		if _, err := w.Next(); err != io.EOF {
			t.Errorf("Next of a worker that ends: %v", err)
		}
		check(t, w.Close())
		check(t, p.Client.Close())
	}
}

func TestDaemonDies(t *testing.T) {
	daemon, worker := ends(t)
	_, client, err := fdpass.Pair()
	check(t, err)
	defer client.Close()
	_, err = handover.Begin(daemon, handover.Start{Local: true}, client)
	check(t, err)
	p, err := handover.Accept(worker)
	check(t, err)
	check(t, daemon.Close())
	<-p.Done()
	check(t, p.Close())
	check(t, p.Client.Close())
}

// What a worker is not to take for a message of its daemon's.
func TestAcceptRefuses(t *testing.T) {
	message := func(n int, text string) []byte {
		return append(binary.LittleEndian.AppendUint32(nil, uint32(n)), text...)
	}
	socket := func() *os.File {
		_, f, err := fdpass.Pair()
		check(t, err)
		return f
	}
	file := func() *os.File {
		f, err := os.Open(os.DevNull)
		check(t, err)
		return f
	}
	for name, test := range map[string]struct {
		message []byte
		file    func() *os.File
	}{
		"nothing":      {nil, nil},
		"a part":       {message(10, "{"), socket},
		"too long":     {message(1<<30, "{}"), socket},
		"not JSON":     {message(1, "?"), socket},
		"no file":      {message(2, "{}"), nil},
		"no socket":    {message(2, "{}"), file},
		"not unix":     {message(14, `{"local":true}`), tcpSocket},
		"wrong values": {message(13, `{"memory":""}`), socket},
	} {
		t.Run(name, func(t *testing.T) {
			daemon, worker := ends(t)
			switch {
			case test.file != nil:
				f := test.file()
				defer f.Close()
				check(t, fdpass.Send(daemon, test.message, f))
			case len(test.message) > 0:
				_, err := daemon.Write(test.message)
				check(t, err)
			}
			check(t, daemon.CloseWrite())
			if p, err := handover.Accept(worker); err == nil {
				p.Close()
				t.Error("accepted")
			}
		})
	}
}

func tcpSocket() *os.File {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		panic(err)
	}
	defer c.Close()
	f, err := c.(*net.TCPConn).File()
	if err != nil {
		panic(err)
	}
	return f
}

// What a daemon is not to believe, or to hold in memory, of a worker's.
func TestStatusIsBounded(t *testing.T) {
	for name, said := range map[string][]byte{
		"not JSON": []byte("?\n"),
		"endless":  bytes.Repeat([]byte("1"), 1<<20),
	} {
		daemon, worker := ends(t)
		_, client, err := fdpass.Pair()
		check(t, err)
		defer client.Close()
		w, err := handover.Begin(daemon, handover.Start{}, client)
		check(t, err)
		wrote := make(chan struct{})
		go func() {
			defer close(wrote)
			worker.Write(said) // in part, if nobody reads it
		}()
		if s, err := w.Next(); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("%s: Next = %+v, %v", name, s, err)
		}
		check(t, w.Close())
		<-wrote
	}
}

func TestTooLong(t *testing.T) {
	daemon, _ := ends(t)
	_, client, err := fdpass.Pair()
	check(t, err)
	defer client.Close()
	if _, err := handover.Begin(daemon, handover.Start{Application: strings.Repeat("x", 1<<20)}, client); err == nil {
		t.Error("a message of a megabyte was sent")
	}
}
