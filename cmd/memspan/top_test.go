// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
	"charm.land/lipgloss/v2"
	"pgregory.net/rapid"

	"github.com/memspan/memspan"
)

// testSpan is a span of so many MiB.
func testSpan(name string, mib int64, read, written int64) memspan.SpanStat {
	return memspan.SpanStat{
		SpanInfo: memspan.SpanInfo{ID: "id-of-" + name, Name: name, Size: mib << 20, Tier: memspan.Host, Home: memspan.Host},
		Blocks:   int(mib), Read: read, Written: written,
		Tiers: map[string]memspan.TierStat{"host": {Current: int(mib), Bytes: mib << 20, Lowest: 3, Highest: 9, Pinned: 1}},
	}
}

func testStats() memspan.Stats {
	return memspan.Stats{
		Budgets: map[string]memspan.Budget{"host": {Used: 5 << 20, Budget: 10 << 20, In: 100, Out: 7}},
		SessionList: []memspan.SessionStat{
			{Session: 4, Client: "first", Transport: "unix", PID: 42, Read: 1000},
			{Session: 9, Client: "second", Transport: "tls", Peer: "192.0.2.1:5"},
		},
		Vulkan:   []memspan.VulkanStat{{Session: 9, Application: "cube", PID: 77, Memory: 1 << 30}},
		Mappings: 3,
	}
}

// A screen is top as its user sees it.
type screen struct {
	t interface{ Fatalf(string, ...any) }
	m *topModel
}

func newScreen(t *testing.T, spans ...memspan.SpanStat) *screen {
	if len(spans) == 0 {
		spans = []memspan.SpanStat{testSpan("small", 1, 0, 0), testSpan("large", 30, 0, 0), testSpan("medium", 7, 0, 0)}
	}
	next := func() (*topSample, error) { return nil, errors.New("nobody is to ask by itself") }
	s := &screen{t, newTopModel("/a/socket", time.Second, newSample(time.Unix(1, 0), nil, spans, testStats()), next)}
	s.send(tea.WindowSizeMsg{Width: 120, Height: 24})
	return s
}

func (s *screen) send(msg tea.Msg) tea.Cmd {
	_, cmd := s.m.Update(msg)
	return cmd
}

// press presses keys: the names of some, or a text's letters.
func (s *screen) press(keys ...string) (cmd tea.Cmd) {
	special := map[string]tea.Key{
		"enter": {Code: tea.KeyEnter}, "esc": {Code: tea.KeyEscape}, "tab": {Code: tea.KeyTab},
		"shift+tab": {Code: tea.KeyTab, Mod: tea.ModShift}, "up": {Code: tea.KeyUp}, "down": {Code: tea.KeyDown},
		"end": {Code: tea.KeyEnd}, "home": {Code: tea.KeyHome}, "pgdown": {Code: tea.KeyPgDown}, "backspace": {Code: tea.KeyBackspace},
		"ctrl+c": {Code: 'c', Mod: tea.ModCtrl}, "space": {Code: tea.KeySpace, Text: " "},
	}
	for _, name := range keys {
		if key, ok := special[name]; ok {
			cmd = s.send(tea.KeyPressMsg(key))
			continue
		}
		for _, r := range name {
			cmd = s.send(tea.KeyPressMsg{Code: r, Text: string(r)})
		}
	}
	return cmd
}

var escapes = regexp.MustCompile("\x1b\\[[0-9;]*m")

// lines are what the screen shows, without colours.
func (s *screen) lines() []string {
	return strings.Split(escapes.ReplaceAllString(s.m.View().Content, ""), "\n")
}

// order is the order in which words are first seen on the screen.
func (s *screen) order(words ...string) []string {
	text := strings.Join(s.lines(), "\n")
	words = slices.DeleteFunc(words, func(w string) bool { return !strings.Contains(text, w) })
	slices.SortFunc(words, func(a, b string) int { return strings.Index(text, a) - strings.Index(text, b) })
	return words
}

// selected is the row that is shown inverse; the tabs are above.
func (s *screen) selected() (name string) {
	for line := range strings.SplitSeq(s.m.View().Content, "\n") {
		if plain := escapes.ReplaceAllString(line, ""); strings.HasPrefix(line, "\x1b[7m") && !strings.HasPrefix(plain, " ") {
			name = strings.Fields(plain)[0]
		}
	}
	return name
}

func (s *screen) shows(t *testing.T, want ...string) {
	t.Helper()
	text := strings.Join(s.lines(), "\n")
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("%q is not on the screen:\n%s", w, text)
		}
	}
}

func TestTopShowsPanes(t *testing.T) {
	s := newScreen(t)
	s.shows(t, "/a/socket", "3 spans, 38 blocks, 2 sessions, 3 mappings", "5 MiB of 10 MiB", "[|||||||||||||||               ]",
		"Spans 3", "Sessions 2", "Vulkan 1", "small", "large", "medium", "q quit")
	s.press("tab")
	s.shows(t, "first", "process 42", "second", "tls 192.0.2.1:5")
	s.press("tab")
	s.shows(t, "cube", "77", "1 GiB")
	s.press("tab")
	s.shows(t, "small")
	s.press("shift+tab")
	s.shows(t, "cube")
	s.press("?")
	s.shows(t, "the next pane, the one before")
	s.press("esc")
	s.shows(t, "cube")
}

func TestTopSorts(t *testing.T) {
	s := newScreen(t)
	names := []string{"small", "large", "medium"}
	for _, step := range []struct {
		keys []string
		want []string
	}{
		{nil, []string{"large", "medium", "small"}}, // by name
		{[]string{"r"}, []string{"small", "medium", "large"}},
		{[]string{"s"}, []string{"large", "medium", "small"}}, // by size, the largest first
		{[]string{"r"}, []string{"small", "medium", "large"}},
		{[]string{"S"}, []string{"large", "medium", "small"}},
	} {
		s.press(step.keys...)
		if got := s.order(slices.Clone(names)...); !slices.Equal(got, step.want) {
			t.Errorf("after %v: %v, want %v", step.keys, got, step.want)
		}
	}
}

// The selection stays on its row wherever that goes, and at its place when the
// row is gone.
func TestTopKeepsItsSelection(t *testing.T) {
	s := newScreen(t)
	s.press("j")
	if got := s.selected(); got != "medium" {
		t.Fatalf("selected %q", got)
	}
	s.press("r", "s", "s", "r")
	if got := s.selected(); got != "medium" {
		t.Errorf("after sorting: %q", got)
	}
	s.press("home")
	first := s.selected()
	s.press("up", "down", "k")
	if got := s.selected(); got != first {
		t.Errorf("above the first: %q", got)
	}
	s.press("end", "down", "pgdown")
	last := s.selected()
	spans := slices.DeleteFunc([]memspan.SpanStat{testSpan("small", 1, 0, 0), testSpan("large", 30, 0, 0), testSpan("medium", 7, 0, 0)},
		func(sp memspan.SpanStat) bool { return sp.Name == last })
	s.send(sampled{sample: newSample(time.Unix(2, 0), s.m.sample, spans, testStats())})
	if got := s.selected(); got == "" || got == last {
		t.Errorf("once the last row is gone: %q", got)
	}
	s.send(sampled{sample: newSample(time.Unix(3, 0), s.m.sample, nil, memspan.Stats{})})
	s.press("down", "enter", "tab", "down", "tab")
	s.shows(t, "nothing here")
}

func TestTopFilters(t *testing.T) {
	s := newScreen(t)
	s.press("/", "MedX", "backspace")
	s.shows(t, "/Med")
	if got := s.order("small", "large", "medium"); !slices.Equal(got, []string{"medium"}) {
		t.Errorf("filtered: %v", got)
	}
	s.press("enter", "r")
	s.shows(t, `rows that contain "Med"`)
	s.press("esc")
	if got := s.order("small", "large", "medium"); len(got) != 3 {
		t.Errorf("the filter is gone, but: %v", got)
	}
	// Keys are letters while a filter is typed.
	s.press("/", "q", "space", "p")
	s.shows(t, "/q p", "nothing here")
	if s.m.paused {
		t.Error("a letter of the filter paused")
	}
	s.press("esc")
	s.shows(t, "large")
}

func TestTopShowsDetails(t *testing.T) {
	s := newScreen(t)
	s.press("end", "enter")
	s.shows(t, "small", "host (home)", "3..9", "id-of-small", "esc back")
	s.press("end")
	s.shows(t, "locks")
	s.send(sampled{sample: newSample(time.Unix(2, 0), s.m.sample, []memspan.SpanStat{testSpan("small", 1, 500, 2_000_000)}, testStats())})
	s.press("home")
	s.shows(t, "read 500 B/s, written 2 MB/s")
	s.send(sampled{sample: newSample(time.Unix(3, 0), s.m.sample, nil, testStats())})
	s.shows(t, "The span was freed")
	s.press("esc")
	s.shows(t, "Spans 0", "nothing here")
}

// What is lost, and what cannot be brought home, is told by its colour.
func TestTopAlarms(t *testing.T) {
	lost, owed, late := testSpan("lost", 1, 0, 0), testSpan("owed", 1, 0, 0), testSpan("late", 1, 0, 0)
	lost.Lost, owed.Debt, owed.Error, late.Debt = 1, 2, "no room", 3
	s := newScreen(t, testSpan("fine", 1, 0, 0), lost, owed, late)
	for line := range strings.SplitSeq(s.m.View().Content, "\n") {
		for name, want := range map[string]bool{"fine": false, "late": false, "lost": true, "owed": true} {
			if strings.Contains(line, name+" ") && strings.Contains(line, "31m") != want {
				t.Errorf("an alarm: %v; want %v: %q", !want, want, line)
			}
		}
	}
}

func TestTopPauses(t *testing.T) {
	s := newScreen(t)
	if s.m.Init() == nil {
		t.Fatal("nobody waits for the next sample")
	}
	if cmd := s.send(timeIsUp{}); cmd == nil {
		t.Fatal("no sample is taken when it is due")
	}
	if cmd := s.send(sampled{sample: s.m.sample}); cmd == nil {
		t.Fatal("nobody waits for the sample after")
	}
	s.press("p")
	s.shows(t, "paused")
	if cmd := s.press("p"); cmd != nil {
		t.Error("two samples are waited for")
	}
	s.press("p")
	if cmd := s.send(timeIsUp{}); cmd != nil {
		t.Error("the daemon is asked while paused")
	}
	if cmd := s.press("p"); cmd == nil {
		t.Error("nothing is asked when it goes on")
	}
}

func TestTopSurvivesTheDaemon(t *testing.T) {
	s := newScreen(t)
	if cmd := s.send(sampled{err: errors.New("peer-lost: it\nwent")}); cmd == nil {
		t.Error("the daemon is not asked again")
	}
	s.shows(t, "cannot ask the daemon: peer-lost: it; went", "large")
	s.send(sampled{sample: newSample(time.Unix(9, 0), nil, []memspan.SpanStat{testSpan("new", 1, 0, 0)}, testStats())})
	s.shows(t, "new", "q quit")
}

func TestTopQuits(t *testing.T) {
	for _, keys := range [][]string{{"q"}, {"ctrl+c"}, {"enter", "q"}, {"/", "x", "ctrl+c"}, {"?", "q"}} {
		cmd := newScreen(t).press(keys...)
		if cmd == nil {
			t.Errorf("%v: goes on", keys)
		} else if _, ok := cmd().(tea.QuitMsg); !ok {
			t.Errorf("%v: not the end", keys)
		}
	}
}

func TestTopScrolls(t *testing.T) {
	var spans []memspan.SpanStat
	for i := range 100 {
		spans = append(spans, testSpan(fmt.Sprintf("span-%03d", i), 1, 0, 0))
	}
	s := newScreen(t, spans...)
	s.press("end")
	s.shows(t, "span-099")
	if len(s.order("span-000")) != 0 {
		t.Error("the first row is still there")
	}
	s.send(tea.WindowSizeMsg{Width: 120, Height: 10})
	s.shows(t, "span-099")
	s.press("home")
	s.shows(t, "span-000")
}

// Whatever keys, samples and sizes come, every screen fits, and the selected row
// is on it.
func TestTopFitsAnyScreen(t *testing.T) {
	keys := []string{
		"enter", "esc", "tab", "shift+tab", "up", "down", "end", "home", "pgdown", "backspace", "space",
		"/", "s", "S", "r", "p", "?", "j", "k", "g", "G", "x", "wide", "文",
	}
	rapid.Check(t, func(rt *rapid.T) {
		s := newScreen(t)
		names := rapid.SliceOfNDistinct(rapid.StringMatching(`[a-z文-斎]{1,60}`), 0, 40, rapid.ID[string]).Draw(rt, "names")
		rt.Repeat(map[string]func(*rapid.T){
			"key": func(rt *rapid.T) { s.press(rapid.SampledFrom(keys).Draw(rt, "key")) },
			"size": func(rt *rapid.T) {
				s.send(tea.WindowSizeMsg{Width: rapid.IntRange(1, 200).Draw(rt, "width"), Height: rapid.IntRange(1, 60).Draw(rt, "height")})
			},
			"sample": func(rt *rapid.T) {
				var spans []memspan.SpanStat
				for _, name := range names {
					if rapid.Bool().Draw(rt, "there") {
						spans = append(spans, testSpan(name, 1, rapid.Int64Min(0).Draw(rt, "read"), 0))
					}
				}
				s.send(sampled{sample: newSample(s.m.sample.Time.Add(time.Second), s.m.sample, spans, testStats())})
			},
			"": func(rt *rapid.T) {
				lines := s.lines()
				if len(lines) > s.m.height {
					rt.Fatalf("%d lines on %d", len(lines), s.m.height)
				}
				for _, line := range lines {
					if w := lipgloss.Width(line); w > s.m.width {
						rt.Fatalf("%d columns on %d: %q", w, s.m.width, line)
					}
				}
				list := s.m.lists[s.m.pane]
				if rows := len(s.m.rows()); rows > 0 && (list.cursor < list.top || list.cursor >= list.top+s.m.room() || list.cursor >= rows) {
					rt.Fatalf("row %d of %d is selected, the screen shows %d from %d on", list.cursor, rows, s.m.room(), list.top)
				}
			},
		})
	})
}

func TestRates(t *testing.T) {
	first := newSample(time.Unix(10, 0), nil, []memspan.SpanStat{testSpan("a", 1, 100, 100)}, testStats())
	if first.Seconds != 0 || first.Spans[0].ReadRate != 0 {
		t.Errorf("rates of one sample: %+v", first.Spans[0])
	}
	stats := testStats()
	stats.Budgets["host"] = memspan.Budget{In: 300, Out: 7}
	stats.SessionList[0].Read = 500 // less than before: another daemon's
	second := newSample(time.Unix(12, 0), first, []memspan.SpanStat{testSpan("a", 1, 104, 100), testSpan("b", 1, 0, 50)}, stats)
	if a, b := second.Spans[0].rates, second.Spans[1].rates; a != (rates{ReadRate: 2}) || b != (rates{WriteRate: 25}) {
		t.Errorf("%+v, %+v", a, b)
	}
	if got := second.Tiers[0].rates; got != (rates{WriteRate: 100}) {
		t.Errorf("the tier's: %+v", got)
	}
	if got := second.Sessions[0].rates; got != (rates{}) {
		t.Errorf("the session's: %+v", got)
	}
	for perSecond, want := range map[float64]string{
		0: "-", 0.4: "-", 1: "1 B/s", 999: "999 B/s", 1500: "1.5 kB/s", 999_600: "1 MB/s", 12_345_678: "12.3 MB/s", 2e9: "2 GB/s", math.Inf(1): "+Inf GB/s",
	} {
		if got := flow(perSecond); got != want {
			t.Errorf("%v: %q, want %q", perSecond, got, want)
		}
	}
}

// The sampler dials once, and again when the connection is gone.
func TestSamplerDialsAgain(t *testing.T) {
	fails := errors.New("no daemon")
	dials := 0
	s := &sampler{dial: func(context.Context) (*memspan.Client, error) { dials++; return nil, fails }}
	for range 2 {
		if _, err := s.next(t.Context()); !errors.Is(err, fails) {
			t.Errorf("%v", err)
		}
	}
	if err := s.close(); err != nil || dials != 2 {
		t.Errorf("%d dials, %v", dials, err)
	}
	if _, err := s.next(t.Context()); err == nil || dials != 2 {
		t.Errorf("asked after the end: %v", err)
	}
}
