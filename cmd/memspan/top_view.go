// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"charm.land/lipgloss/v2"
)

// topStyles are how top's text looks. They are values without state.
var (
	boldStyle     = lipgloss.NewStyle().Bold(true)
	faintStyle    = lipgloss.NewStyle().Faint(true)
	selectedStyle = lipgloss.NewStyle().Reverse(true)
	alarmStyle    = lipgloss.NewStyle().Foreground(lipgloss.Red).Bold(true)
)

const topKeys = "tab pane  ↑↓ move  enter details  / filter  s sort  p pause  ? help  q quit"

var topHelp = []string{
	"tab, shift+tab      the next pane, the one before",
	"up, down, k, j      move; pgup, pgdown, home, end, g, G too",
	"enter               a span's details; esc goes back",
	"/                   only rows that contain what you type; enter: done, esc: all",
	"s, S                sort by the next column, by the one before",
	"r                   sort the other way round",
	"p, space            stop asking the daemon; go on",
	"?                   this help",
	"q, ctrl+c           quit",
	"",
	"Rates are of what went through the daemon: what programs do with memory that",
	"they have mapped directly is theirs, until they flush.",
}

// View implements tea.Model.
func (m *topModel) View() tea.View {
	lines := m.head()
	switch {
	case m.help:
		lines = append(lines, m.scrolled(topHelp, len(lines))...)
	case m.detail != "":
		lines = append(lines, m.scrolled(m.details(), len(lines))...)
	default:
		lines = append(lines, m.list()...)
	}
	room := max(0, m.height-1)
	if len(lines) > room {
		lines = lines[:room]
	}
	for len(lines) < room {
		lines = append(lines, "")
	}
	lines = append(lines, m.foot())
	for i, line := range lines {
		lines[i] = clipStyled(line, m.width)
	}
	v := tea.NewView(strings.Join(lines, "\n"))
	v.AltScreen = true
	v.WindowTitle = "memspan top"
	return v
}

// head is what stands above every pane.
func (m *topModel) head() []string {
	state := "every " + m.interval.String()
	if m.paused {
		state = "paused"
	}
	lines := []string{boldStyle.Render("memspan") + " " + m.address + "  " + faintStyle.Render(state)}
	lines = append(lines, m.sample.Time.Local().Format(time.TimeOnly)+"  "+m.sample.summary())
	if m.height < 14 || m.detail != "" || m.help { // what is below is worth more than the gauges
		return append(lines, "")
	}
	for _, t := range m.sample.Tiers {
		lines = append(lines, tierLine(t, max(10, min(30, m.width-66))))
	}
	return append(lines, "")
}

// foot is the line at the bottom: what is wrong, what is typed, or the keys.
func (m *topModel) foot() string {
	list := m.lists[m.pane]
	switch {
	case m.err != nil:
		return alarmStyle.Render("cannot ask the daemon: " + strings.ReplaceAll(m.err.Error(), "\n", "; "))
	case list.typing:
		return "/" + list.filter + selectedStyle.Render(" ")
	case m.help || m.detail != "":
		return faintStyle.Render("esc back  ↑↓ scroll  p pause  q quit")
	case list.filter != "":
		return faintStyle.Render(fmt.Sprintf("rows that contain %q; esc: all  ", list.filter) + topKeys)
	}
	return faintStyle.Render(topKeys)
}

// room is how many rows of a list fit on the screen: without the head, the tabs,
// the titles and the foot.
func (m *topModel) room() int { return max(1, m.height-len(m.head())-3) }

// list is the pane on the screen.
func (m *topModel) list() []string {
	var tabs []string
	for i, p := range m.panes {
		tab := fmt.Sprintf(" %s %d ", p.title, len(p.rows(m.sample, p.sort, false)))
		if i == m.pane {
			tab = selectedStyle.Render(tab)
		}
		tabs = append(tabs, tab)
	}
	pane, list, rows := m.panes[m.pane], m.lists[m.pane], m.rows()
	widths := fit(pane.columns, rows, list.sort, m.width)
	lines := []string{strings.Join(tabs, " "), boldStyle.Render(titles(pane.columns, list, widths))}
	if len(rows) == 0 {
		return append(lines, faintStyle.Render("nothing here"))
	}
	for i := list.top; i < min(len(rows), list.top+m.room()); i++ {
		line, style := joinCells(pane.columns, rows[i].cells, widths), lipgloss.NewStyle()
		if rows[i].alarm {
			style = alarmStyle
		}
		if i == list.cursor {
			style = style.Reverse(true)
			line += strings.Repeat(" ", max(0, m.width-lipgloss.Width(line)))
		}
		lines = append(lines, style.Render(line))
	}
	return lines
}

// titles is a list's first line: the column that it is sorted by is marked.
func titles(columns []topColumn, list topList, widths []int) string {
	cells := make([]string, len(columns))
	for i, c := range columns {
		cells[i] = c.title
		if i == list.sort {
			cells[i] += map[bool]string{false: "^", true: "v"}[list.descending]
		}
	}
	return joinCells(columns, cells, widths)
}

// scrolled is the part of a text that stands below so many lines. It keeps the
// scrolling within the text, whose length is known only now.
func (m *topModel) scrolled(text []string, below int) []string {
	room := max(1, m.height-1-below)
	m.scroll = max(0, min(m.scroll, len(text)-room))
	return text[m.scroll:]
}

// details is a span as 'memspan stat' describes it, with its rates.
func (m *topModel) details() []string {
	i := slices.IndexFunc(m.sample.Spans, func(s topSpan) bool { return s.ID == m.detail })
	if i < 0 {
		return []string{"The span was freed. esc: back"}
	}
	s := m.sample.Spans[i]
	var b strings.Builder // nothing fails to be written there
	fmt.Fprintf(&b, "%s  read %s, written %s\n\n", boldStyle.Render(label(s.SpanStat)), flow(s.ReadRate), flow(s.WriteRate))
	_ = printTiers(&b, s.SpanStat)
	b.WriteByte('\n')
	_ = printFields(&b, s.SpanStat)
	return strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
}

// leastName is how narrow the first column may become before another is left
// out.
const leastName = 24

// fit returns the columns' widths in so much room, sorted by one of them; 0: left
// out.
func fit(columns []topColumn, rows []topRow, sort, room int) []int {
	widths := make([]int, len(columns))
	for i, c := range columns {
		widths[i] = lipgloss.Width(c.title)
		if i == sort {
			widths[i]++ // for the mark of the order
		}
		for _, row := range rows {
			widths[i] = max(widths[i], lipgloss.Width(row.cells[i]))
		}
	}
	total := func() (n int) {
		for _, w := range widths {
			if w > 0 {
				n += w + columnGap
			}
		}
		return n - columnGap
	}
	least := min(widths[0], leastName)
	for {
		excess := total() - room
		if excess <= 0 {
			return widths
		}
		if give := widths[0] - least; give >= excess {
			widths[0] -= excess
			return widths
		}
		last := -1
		for i, c := range columns {
			if widths[i] > 0 && c.drop > 0 && (last < 0 || c.drop >= columns[last].drop) {
				last = i
			}
		}
		if last < 0 {
			widths[0] = max(1, widths[0]-excess)
			return widths
		}
		widths[last] = 0
	}
}

// columnGap is the blanks between two columns.
const columnGap = 2

func joinCells(columns []topColumn, cells []string, widths []int) string {
	var parts []string
	for i, cell := range cells {
		if widths[i] == 0 {
			continue
		}
		cell = clip(cell, widths[i])
		pad := strings.Repeat(" ", max(0, widths[i]-lipgloss.Width(cell)))
		if columns[i].number {
			cell = pad + cell
		} else {
			cell += pad
		}
		parts = append(parts, cell)
	}
	return strings.Join(parts, strings.Repeat(" ", columnGap))
}

// clip cuts plain text to a width, and shows that it did.
func clip(s string, width int) string {
	if lipgloss.Width(s) <= width {
		return s
	}
	runes := []rune(s)
	for len(runes) > 0 && lipgloss.Width(string(runes))+1 > width {
		runes = runes[:len(runes)-1]
	}
	return string(runes) + "~"
}

// clipStyled cuts a line to a width.
func clipStyled(line string, width int) string {
	return lipgloss.NewStyle().MaxWidth(max(1, width)).Render(line)
}
