// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/memspan/memspan"
)

// A topSample is the daemon at one moment, and what moved since the sample
// before. Rates are in bytes per second.
type topSample struct {
	Time     time.Time            `json:"time"`
	Seconds  float64              `json:"seconds"` // since the sample before; 0: there is none, and no rates
	Epoch    uint64               `json:"epoch"`
	Mappings int                  `json:"mappings"`
	Tiers    []topTier            `json:"tiers"`
	Spans    []topSpan            `json:"spans"`
	Sessions []topSession         `json:"sessions"`
	Vulkan   []memspan.VulkanStat `json:"vulkan"`
}

// A topTier is what a tier has taken, and moves.
type topTier struct {
	Tier   string `json:"tier"`
	Used   int64  `json:"used"`
	Budget int64  `json:"budget,omitempty"` // 0: only the machine limits it
	In     int64  `json:"in"`
	Out    int64  `json:"out"`
	rates
}

// A topSpan is a span and what users do with it.
type topSpan struct {
	memspan.SpanStat
	rates
}

// A topSession is a session and what it does.
type topSession struct {
	memspan.SessionStat
	rates
}

// rates are what was read and written, or given out and taken in, per second.
type rates struct {
	ReadRate  float64 `json:"read_rate"`
	WriteRate float64 `json:"write_rate"`
}

// counters are bytes since the daemon began.
type counters struct{ read, written int64 }

// since returns the rates over so many seconds. Counters that went back are
// another daemon's.
func (c counters) since(before counters, seconds float64) rates {
	if seconds <= 0 {
		return rates{}
	}
	return rates{float64(max(0, c.read-before.read)) / seconds, float64(max(0, c.written-before.written)) / seconds}
}

// newSample makes a sample of what the daemon says now. What the sample before
// does not have began since.
func newSample(now time.Time, before *topSample, spans []memspan.SpanStat, stats memspan.Stats) *topSample {
	s := &topSample{
		Time: now, Epoch: stats.Tiered.Epoch, Mappings: stats.Mappings,
		Tiers: []topTier{}, Spans: []topSpan{}, Sessions: []topSession{}, Vulkan: append([]memspan.VulkanStat{}, stats.Vulkan...),
	}
	was := make(map[string]counters)
	if before != nil {
		s.Seconds = now.Sub(before.Time).Seconds()
		for _, t := range before.Tiers {
			was[t.Tier] = counters{t.Out, t.In}
		}
		for _, sp := range before.Spans {
			was[sp.ID] = counters{sp.Read, sp.Written}
		}
		for _, se := range before.Sessions {
			was[se.key()] = counters{se.Read, se.Written}
		}
	}
	for _, tier := range []string{"vram", "host", "disk"} {
		if b, ok := stats.Budgets[tier]; ok {
			s.Tiers = append(s.Tiers, topTier{tier, b.Used, b.Budget, b.In, b.Out, counters{b.Out, b.In}.since(was[tier], s.Seconds)})
		}
	}
	for _, sp := range spans {
		s.Spans = append(s.Spans, topSpan{sp, counters{sp.Read, sp.Written}.since(was[sp.ID], s.Seconds)})
	}
	for _, se := range stats.SessionList {
		one := topSession{SessionStat: se}
		one.rates = counters{se.Read, se.Written}.since(was[one.key()], s.Seconds)
		s.Sessions = append(s.Sessions, one)
	}
	return s
}

// A sampler asks the daemon again and again, and dials it anew once it was gone.
type sampler struct {
	dial func(context.Context) (*memspan.Client, error)

	mu     sync.Mutex // held while the daemon is asked
	client *memspan.Client
	last   *topSample
	closed bool
}

// next takes a sample.
func (s *sampler) next(ctx context.Context) (*topSample, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, context.Canceled
	}
	if s.client == nil {
		client, err := s.dial(ctx)
		if err != nil {
			return nil, err
		}
		s.client, s.last = client, nil
	}
	spans, err := s.client.List(ctx)
	var stats memspan.Stats
	if err == nil {
		stats, err = s.client.Stats(ctx)
	}
	if err != nil {
		if s.client.Err() != nil {
			err = errors.Join(err, s.drop())
		}
		return nil, err
	}
	s.last = newSample(time.Now(), s.last, spans, stats)
	return s.last, nil
}

// drop ends the connection. The caller holds mu.
func (s *sampler) drop() error {
	client := s.client
	s.client = nil
	if client == nil {
		return nil
	}
	return client.Close()
}

// close waits for the sample that is being taken, which the end of its context
// ends, and takes no more.
func (s *sampler) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return s.drop()
}
