// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"crypto/rand"
	"io"
	"net"
	"testing"
	"time"
)

func TestParseLink(t *testing.T) {
	l, err := parseLink("2.5Gbit/1500µs")
	if err != nil || l.rate != 2.5e9/8 || l.trip != 1500*time.Microsecond {
		t.Errorf("%+v, %v", l, err)
	}
	for _, s := range []string{"", "/", "1Gbit", "1Gbit/", "Gbit/1ms", "1Kbit/1ms", "-1Mbit/1ms", "0Mbit/1ms", "1Mbit/-1ms", "NaNMbit/1ms"} {
		if _, err := parseLink(s); err == nil {
			t.Errorf("%q is a link", s)
		}
	}
}

// What goes through a link comes out of it.
func TestLink(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	echoed := make(chan error, 1)
	go func() {
		c, err := ln.Accept()
		if err == nil {
			_, err = io.Copy(c, c)
			c.Close()
		}
		echoed <- err
	}()
	address, stop, err := shapedLink{rate: 1e9, trip: time.Millisecond}.open(t.Context(), ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	sent := make([]byte, 3<<20+1)
	rand.Read(sent)
	go c.Write(sent) // an error shows in what comes back
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(sent, got) {
		t.Errorf("what came back is not what was sent: %v", err)
	}
	c.Close()
	stop()
	ln.Close()
	if err := <-echoed; err != nil {
		t.Log(err) // the link may have ended it before its end
	}
}
