// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/memspan/memspan"
)

// A topPane is a list of things of one kind.
type topPane struct {
	title   string
	columns []topColumn
	sort    int // the column that it is sorted by at first
	rows    func(s *topSample, sort int, descending bool) []topRow
}

// A topColumn is what the view knows of a column.
type topColumn struct {
	title  string
	number bool // aligned to the right, and sorted from the greatest down at first
	drop   int  // where there is too little room columns with a larger one go first; 0: never
}

// A topRow is a thing's text in every column.
type topRow struct {
	key   string // tells it from every other
	cells []string
	alarm bool // something is wrong with it
}

// A column is one of a pane whose things are Ts.
type column[T any] struct {
	topColumn
	text    func(T) string
	compare func(a, b T) int
}

func textColumn[T any](title string, drop int, get func(T) string) column[T] {
	return column[T]{topColumn{title, false, drop}, get, func(a, b T) int { return strings.Compare(get(a), get(b)) }}
}

func numberColumn[T any, N cmp.Ordered](title string, drop int, get func(T) N, show func(N) string) column[T] {
	return column[T]{
		topColumn{title, true, drop},
		func(t T) string { return show(get(t)) },
		func(a, b T) int { return cmp.Compare(get(a), get(b)) },
	}
}

func newTopPane[T any](title string, sort int, of func(*topSample) []T, key func(T) string, columns ...column[T]) topPane {
	p := topPane{title: title, sort: sort}
	alarming := func(thing T) bool { a, ok := any(thing).(interface{ alarm() bool }); return ok && a.alarm() }
	for _, c := range columns {
		p.columns = append(p.columns, c.topColumn)
	}
	p.rows = func(s *topSample, sort int, descending bool) []topRow {
		things := slices.Clone(of(s))
		slices.SortStableFunc(things, func(a, b T) int {
			order := columns[sort].compare(a, b)
			if descending {
				order = -order
			}
			return cmp.Or(order, columns[0].compare(a, b), strings.Compare(key(a), key(b)))
		})
		rows := make([]topRow, len(things))
		for i, thing := range things {
			rows[i] = topRow{key: key(thing), cells: make([]string, len(columns)), alarm: alarming(thing)}
			for j, c := range columns {
				rows[i].cells[j] = c.text(thing)
			}
		}
		return rows
	}
	return p
}

// alarm reports whether bytes are lost, or cannot be brought where they belong.
func (s topSpan) alarm() bool { return s.Lost > 0 || s.Debt > 0 && s.Error != "" }

func (s topSession) key() string { return strconv.FormatUint(s.Session, 10) }

// topPanes are the panes, in the order of the tab key.
func topPanes() []topPane {
	count := func(n int) string {
		if n == 0 {
			return "-"
		}
		return strconv.Itoa(n)
	}
	age := func(since time.Time) string { return since.Local().Format(time.TimeOnly) }
	return []topPane{
		newTopPane("Spans", 0, func(s *topSample) []topSpan { return s.Spans }, func(s topSpan) string { return s.ID },
			textColumn("NAME", 0, func(s topSpan) string { return label(s.SpanStat) }),
			numberColumn("SIZE", 0, func(s topSpan) int64 { return s.Size }, humanSize),
			textColumn("TIER", 3, func(s topSpan) string { return s.Tier.String() }),
			textColumn("HOME", 6, func(s topSpan) string { return s.Home.String() }),
			textColumn("STATE", 4, func(s topSpan) string { return s.State.String() }),
			textColumn("HELD BY", 5, func(s topSpan) string { return holders(s.SpanStat) }),
			numberColumn("DEBT", 2, func(s topSpan) int { return s.Debt }, count),
			numberColumn("LOST", 8, func(s topSpan) int { return s.Lost }, count),
			numberColumn("DIRECT", 7, func(s topSpan) int { return s.Direct }, count),
			numberColumn("SHADOW", 7, func(s topSpan) int { return s.Shadow }, count),
			numberColumn("READ/S", 0, func(s topSpan) float64 { return s.ReadRate }, flow),
			numberColumn("WRITE/S", 0, func(s topSpan) float64 { return s.WriteRate }, flow),
		),
		newTopPane("Sessions", 1, func(s *topSample) []topSession { return s.Sessions }, topSession.key,
			textColumn("CLIENT", 0, func(s topSession) string { return cmp.Or(s.Client, "?") }),
			numberColumn("SESSION", 4, func(s topSession) uint64 { return s.Session }, func(n uint64) string { return strconv.FormatUint(n, 10) }),
			textColumn("FROM", 1, func(s topSession) string { return origin(s.SessionStat) }),
			textColumn("SINCE", 6, func(s topSession) string { return age(s.Since) }),
			numberColumn("HANDLES", 5, func(s topSession) int { return s.Handles }, count),
			numberColumn("MAPPINGS", 3, func(s topSession) int { return s.Mappings }, count),
			numberColumn("LOCKS", 5, func(s topSession) int { return s.Locks }, count),
			numberColumn("READ", 7, func(s topSession) int64 { return s.Read }, humanSize),
			numberColumn("WRITTEN", 7, func(s topSession) int64 { return s.Written }, humanSize),
			numberColumn("READ/S", 0, func(s topSession) float64 { return s.ReadRate }, flow),
			numberColumn("WRITE/S", 0, func(s topSession) float64 { return s.WriteRate }, flow),
		),
		newTopPane("Vulkan", 0, func(s *topSample) []memspan.VulkanStat { return s.Vulkan },
			func(a memspan.VulkanStat) string { return strconv.FormatUint(a.Session, 10) },
			textColumn("APPLICATION", 0, func(a memspan.VulkanStat) string { return cmp.Or(a.Application, "?") }),
			numberColumn("PID", 2, func(a memspan.VulkanStat) int { return a.PID }, strconv.Itoa),
			textColumn("FROM", 3, func(a memspan.VulkanStat) string { return cmp.Or(a.Peer, "this machine") }),
			numberColumn("WORKER", 4, func(a memspan.VulkanStat) int { return a.Worker }, strconv.Itoa),
			textColumn("DEVICE", 1, func(a memspan.VulkanStat) string { return cmp.Or(a.Device, "none yet") }),
			numberColumn("MEMORY", 0, func(a memspan.VulkanStat) int64 { return a.Memory }, humanSize),
			numberColumn("OBJECTS", 5, func(a memspan.VulkanStat) int { return a.Objects }, strconv.Itoa),
			textColumn("SINCE", 6, func(a memspan.VulkanStat) string { return age(a.Since) }),
		),
	}
}

// flow returns a rate in decimal units, like "12.3 MB/s", or "-" where nothing
// moves.
func flow(perSecond float64) string {
	switch {
	case perSecond < 0.5:
		return "-"
	case perSecond < 1e3:
		return fmt.Sprintf("%.0f B/s", perSecond)
	}
	for _, unit := range []string{"kB/s", "MB/s"} {
		if perSecond /= 1e3; perSecond < 999.5 {
			return fmt.Sprintf("%.3g %s", perSecond, unit)
		}
	}
	return fmt.Sprintf("%.3g GB/s", perSecond/1e3)
}

// gauge shows a part of a whole, in so many columns.
func gauge(part, whole int64, width int) string {
	full := 0
	if whole > 0 {
		full = int(float64(width) * min(1, float64(part)/float64(whole)))
		if full == 0 && part > 0 {
			full = 1
		}
	}
	return "[" + strings.Repeat("|", full) + strings.Repeat(" ", width-full) + "]"
}

// tierLine describes a tier in one line.
func tierLine(t topTier, barWidth int) string {
	used := humanSize(t.Used)
	shown := strings.Repeat(" ", barWidth+2)
	if t.Budget > 0 {
		used += " of " + humanSize(t.Budget)
		shown = gauge(t.Used, t.Budget, barWidth)
	}
	return fmt.Sprintf("%-4s %s %-22s out %10s  in %10s", t.Tier, shown, used, flow(t.ReadRate), flow(t.WriteRate))
}
