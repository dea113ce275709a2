// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A shapedLink is a network between two ends of one machine: a rate and a round
// trip. It has no losses and no slow start.
type shapedLink struct {
	name string
	rate float64       // bytes per second
	trip time.Duration // half of it each way
}

// parseLink reads a link's description, like 100Mbit/10ms.
func parseLink(s string) (shapedLink, error) {
	rate, trip, ok := strings.Cut(s, "/")
	l := shapedLink{name: s}
	var err error
	if ok {
		l.trip, err = time.ParseDuration(trip)
	}
	number, unit := strings.TrimRight(rate, "GMbit"), 0.0
	switch rate[len(number):] {
	case "Mbit":
		unit = 1e6 / 8
	case "Gbit":
		unit = 1e9 / 8
	}
	n, rateErr := strconv.ParseFloat(number, 64)
	l.rate = n * unit
	if !ok || err != nil || rateErr != nil || l.trip < 0 || !(l.rate > 0) {
		return shapedLink{}, usagef("--link %s: want a rate and a round trip, like 100Mbit/10ms", s)
	}
	return l, nil
}

// open listens on loopback and passes on to target, a HOST:PORT, all that
// comes, at the link's rate and as late as its round trip says, until stop is
// called. Stop waits for all of its goroutines.
func (l shapedLink) open(ctx context.Context, target string) (address string, stop func(), err error) {
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, fmt.Errorf("link %s: %w", l.name, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	all.Go(func() {
		for {
			near, err := ln.Accept()
			if err != nil {
				return
			}
			all.Go(func() { l.connect(ctx, near, target) })
		}
	})
	return ln.Addr().String(), func() {
		cancel()
		ln.Close()
		all.Wait()
	}, nil
}

// connect carries one connection until either side ends it or ctx does.
func (l shapedLink) connect(ctx context.Context, near net.Conn, target string) {
	defer near.Close()
	far, err := new(net.Dialer).DialContext(ctx, "tcp", target)
	if err != nil {
		return
	}
	defer far.Close()
	defer context.AfterFunc(ctx, func() { near.Close(); far.Close() })()
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{near, far}, {far, near}} {
		both.Go(func() {
			l.carry(way[1], way[0])
			near.Close()
			far.Close()
		})
	}
	both.Wait()
}

// A parcel is bytes on their way.
type parcel struct {
	data []byte
	due  time.Time
}

// parcelSize is how much travels as one, at most; it bounds how much a link
// holds, too.
const parcelSize = 16 << 10

// carry moves bytes in one direction.
func (l shapedLink) carry(dst io.Writer, src io.Reader) {
	// What is under way at full rate, and some more that waits in the link.
	parcels := make(chan parcel, 64+int(l.rate*l.trip.Seconds())/parcelSize)
	var reading sync.WaitGroup
	defer reading.Wait()
	reading.Go(func() {
		defer close(parcels)
		var sent time.Time // when the last one has left
		for {
			buf := make([]byte, parcelSize)
			n, err := src.Read(buf)
			if n > 0 {
				if now := time.Now(); sent.Before(now) {
					sent = now
				}
				sent = sent.Add(time.Duration(float64(n) / l.rate * 1e9))
				parcels <- parcel{buf[:n], sent.Add(l.trip / 2)}
			}
			if err != nil {
				return
			}
		}
	})
	var err error
	for p := range parcels { // all of them, or the reader would wait for ever
		if err == nil {
			time.Sleep(time.Until(p.due))
			_, err = dst.Write(p.data)
		}
		if err != nil && !errors.Is(err, net.ErrClosed) {
			if c, ok := src.(io.Closer); ok {
				c.Close() // the other end is gone
			}
		}
	}
}
